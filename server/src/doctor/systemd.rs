//! Asks systemd about a unit.

use std::{collections::HashMap, process::Stdio, time::Duration};

use common::machine::{process, service};
use proto::doctor::gpu_box::{Unit, UnitState};
use tokio::process::Command;

const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The properties of a unit, by name.
pub(super) type Properties = HashMap<String, String>;

/// aditd's unit: that of the system, or else that of the user who runs this command. `None` if
/// systemd does not answer.
pub(super) async fn unit() -> Option<Unit> {
    let system = show("aditd", &[]).await?;
    let mut state = loaded(&system, false);
    if state.is_none() {
        state = show("aditd", &["--user"]).await.and_then(|of_user| loaded(&of_user, true));
    }
    let uid = process::uid();
    let user = process::login(uid).unwrap_or_else(|| uid.to_string());
    let lingers = run("loginctl", &["show-user", &user, "--property=Linger"]).await;
    let lingers = lingers.is_some_and(|said| said.contains("Linger=yes"));
    Some(Unit { state, user, lingers })
}

/// The properties of a unit; `None` if systemd does not answer.
pub(super) async fn show(unit: &str, flags: &[&str]) -> Option<Properties> {
    const WANTED: &str = "--property=LoadState,UnitFileState,ActiveState,MainPID,Environment";
    let said = run("systemctl", &[flags, &["show", unit, WANTED]].concat()).await?;
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.into(), value.into()));
    let properties: Properties = said.lines().filter_map(pair).collect();
    properties.contains_key("LoadState").then_some(properties)
}

/// The state of a unit; `None` if systemd has not loaded it.
fn loaded(properties: &Properties, is_users: bool) -> Option<UnitState> {
    let of = |name: &str| properties.get(name).map_or("", String::as_str);
    (of("LoadState") == "loaded").then(|| UnitState {
        is_users,
        enabled: matches!(of("UnitFileState"), "enabled" | "enabled-runtime" | "static" | "alias"),
        active: of("ActiveState").to_owned(),
    })
}

async fn run(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.envs(service::user_manager()).args(args).stdin(Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(ANSWER_WITHIN, command.output()).await.ok()?.ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_what_systemd_has_loaded() {
        let of = |load: &str, file: &str| {
            let pairs = [("LoadState", load), ("UnitFileState", file), ("ActiveState", "active")];
            let properties = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            loaded(&properties.into(), false).map(|unit| unit.enabled)
        };
        assert_eq!(of("loaded", "enabled"), Some(true));
        assert_eq!(of("loaded", "disabled"), Some(false));
        assert_eq!(of("not-found", ""), None);
    }
}
