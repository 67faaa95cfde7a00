//! How a service is, as its manager says.

use std::collections::HashMap;

use serde::Serialize;

/// How a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceState {
    /// In the words of the manager, for example `active`, `failed` or `running`; null if it does not
    /// say.
    pub state: Option<String>,
    /// Whether it starts at each boot; null if the manager does not say.
    pub at_boot: Option<bool>,
    /// Its process; null if none runs.
    pub pid: Option<u32>,
}

impl ServiceState {
    /// From the output of `systemctl show`.
    pub(super) fn of_systemd(text: &str) -> Self {
        let properties: HashMap<_, _> =
            text.lines().filter_map(|line| line.split_once('=')).collect();
        let of = |name: &str| properties.get(name).copied().filter(|value| !value.is_empty());
        let is_enabled =
            |state: &str| matches!(state, "enabled" | "enabled-runtime" | "static" | "alias");
        Self {
            state: of("ActiveState").map(str::to_owned),
            at_boot: of("UnitFileState").map(is_enabled),
            pid: of("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0),
        }
    }

    /// From the output of `launchctl print`: what is loaded starts at each boot or login.
    pub(super) fn of_launchd(text: &str) -> Self {
        let of = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.trim().split_once(" = "));
            pairs.find(|(its_name, _)| *its_name == name).map(|(_, value)| value)
        };
        let state = of("state").map(str::to_owned);
        let pid = of("pid").and_then(|pid| pid.parse().ok());
        Self { at_boot: state.is_some().then_some(true), state, pid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_what_its_manager_says() {
        let is = |state: Option<&str>, at_boot, pid| ServiceState {
            state: state.map(str::to_owned),
            at_boot,
            pid,
        };
        let runs = "ActiveState=active\nUnitFileState=enabled\nMainPID=42\n";
        assert_eq!(ServiceState::of_systemd(runs), is(Some("active"), Some(true), Some(42)));
        let failed = "MainPID=0\nActiveState=failed\nUnitFileState=disabled";
        assert_eq!(ServiceState::of_systemd(failed), is(Some("failed"), Some(false), None));
        assert_eq!(ServiceState::of_systemd("UnitFileState=\n"), is(None, None, None));
        let runs = "gui/501/adit = {\n\tactive count = 1\n\tstate = running\n\n\tpid = 7\n}\n";
        assert_eq!(ServiceState::of_launchd(runs), is(Some("running"), Some(true), Some(7)));
        assert_eq!(ServiceState::of_launchd(""), is(None, None, None));
    }
}
