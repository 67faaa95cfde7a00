//! How the server was started last, so that a command which says how to start it again loses no
//! flag.

use std::path::{Path, absolute};

use common::machine::files::{self, FileError};
use proto::{
    human::{exact_time, misleads},
    typed::quoted,
};
use serde::{Deserialize, Serialize};

use crate::config::{Flags, HttpsFlags, ServeFlags};

/// The file in the state directory.
const FILE: &str = "started.json";

/// How the server was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    /// The unit of systemd that started it.
    unit: Option<Unit>,
    /// The flags of `serve`, each followed by its value, with its places.
    flags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unit {
    name: String,
    /// Whether it is of a user's own manager.
    is_users: bool,
}

impl Started {
    /// How this process was started.
    pub(crate) fn now(flags: &Flags, serve: &ServeFlags) -> Self {
        // systemd.exec(5): it is inherited by other processes of the unit.
        let is_unit = std::env::var("SYSTEMD_EXEC_PID")
            .is_ok_and(|pid| pid == std::process::id().to_string());
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let unit = if is_unit { unit_of(&groups) } else { None };
        let places = [&flags.config, &flags.state_dir].map(Option::as_deref);
        Self { unit, flags: words(serve, places) }
    }

    /// Writes it into the state directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn note(&self, dir: &Path) -> Result<(), FileError> {
        files::replace(&dir.join(FILE), &serde_json::to_vec(self).unwrap_or_default())
    }

    fn command(&self) -> String {
        match &self.unit {
            Some(unit) if unit.is_users => format!("systemctl --user start {}", quoted(&unit.name)),
            Some(unit) => format!("sudo systemctl start {}", quoted(&unit.name)),
            None => {
                let flags = self.flags.iter().map(|word| format!(" {}", quoted(word)));
                format!("aditd serve{}", flags.collect::<String>())
            }
        }
    }

    fn is_plain(&self) -> bool {
        let names = self.unit.iter().map(|unit| &unit.name);
        // A command stands between backticks.
        !self.flags.iter().chain(names).any(|word| word.contains(|c| misleads(c) || c == '`'))
    }
}

/// The command that starts the server's unit again, so that it reads another configuration file; `None`
/// if no unit of the system has started it.
pub(crate) fn unit_restart(dir: &Path) -> Option<String> {
    let bytes = files::read(&dir.join(FILE)).ok()?;
    let started = serde_json::from_slice::<Started>(&bytes).ok()?;
    let unit = started.unit.as_ref().filter(|unit| !unit.is_users && started.is_plain())?;
    Some(format!("sudo systemctl restart {}", quoted(&unit.name)))
}

/// How the running server is started again, so that it reads all settings: in words, and the command.
pub(crate) fn restart(dir: &Path) -> (&'static str, String) {
    match unit_restart(dir) {
        Some(command) => ("start aditd again", command),
        None => ("stop aditd and start it again", command(dir)),
    }
}

/// The command that starts the server again on the state in `dir`.
pub(crate) fn command(dir: &Path) -> String {
    noted(dir).unwrap_or_else(|| "aditd serve".to_owned())
}

/// The same; `None` if the state does not say how the server was started last.
pub(crate) fn noted(dir: &Path) -> Option<String> {
    let bytes = files::read(&dir.join(FILE)).ok()?;
    let started = serde_json::from_slice::<Started>(&bytes).ok()?;
    started.is_plain().then(|| started.command())
}

/// The unit of a process, from `/proc/PID/cgroup` (cgroups(7)).
fn unit_of(groups: &str) -> Option<Unit> {
    let path = groups.lines().last()?.rsplit(':').next()?;
    let name = path.rsplit('/').next()?.strip_suffix(".service")?;
    Some(Unit { name: name.to_owned(), is_users: path.contains("/user@") })
}

fn words(serve: &ServeFlags, [config, state_dir]: [Option<&Path>; 2]) -> Vec<String> {
    let ServeFlags {
        listen,
        allow_from,
        upstream,
        device_life,
        idle_timeout,
        tcp_relay,
        enroll_group,
        https,
        advertise,
        no_sandbox,
        take_over: _,
        places: _,
    } = serve;
    let HttpsFlags { https, https_allow_from, https_name, tls_cert, tls_key } = https;
    let mut words = Vec::new();
    let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
    for address in listen {
        add("--listen", address.clone());
    }
    for network in allow_from {
        add("--allow-from", network.to_string());
    }
    for (name, value) in [
        ("--upstream", upstream.as_ref().map(ToString::to_string)),
        ("--device-life", device_life.map(exact_time)),
        ("--idle-timeout", idle_timeout.map(exact_time)),
        ("--tcp-relay", tcp_relay.map(|relay| relay.to_string())),
        ("--enroll-group", enroll_group.clone()),
    ] {
        if let Some(value) = value {
            add(name, value);
        }
    }
    for address in https {
        add("--https", address.clone());
    }
    for network in https_allow_from {
        add("--https-allow-from", network.to_string());
    }
    for name in https_name {
        add("--https-name", name.clone());
    }
    for address in &advertise.advertise {
        add("--advertise", address.clone());
    }
    for (name, place) in [
        ("--tls-cert", tls_cert.as_deref()),
        ("--tls-key", tls_key.as_deref()),
        ("--config", config),
        ("--state-dir", state_dir),
    ] {
        if let Some(place) = place {
            let place = absolute(place).unwrap_or_else(|_| place.to_owned());
            add(name, place.display().to_string());
        }
    }
    words.extend(no_sandbox.then(|| "--no-sandbox".to_owned()));
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: ServeFlags,
    }

    #[test]
    fn the_flags_that_the_server_was_started_with_are_typed_again() {
        let typed = "--listen 0.0.0.0:11435 --listen '[::]:11435' --allow-from 192.0.2.0/24 \
                     --upstream http://127.0.0.1:11500 --device-life 12h --idle-timeout '1h 30m' \
                     --tcp-relay false --enroll-group staff --https 0.0.0.0:8443 --https-allow-from 192.0.2.0/24 \
 --https-name gpu.lan --advertise gpu.lan:11435 --tls-cert /srv/c.pem --tls-key /srv/k.pem";
        let line = typed.replace('\'', "").replace("1h 30m", "90m");
        let line = Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace()));
        let places = ["/etc/my adit.toml", "/srv/a"].map(|path| Some(Path::new(path)));
        let started = Started { unit: None, flags: words(&line.expect("flags").serve, places) };
        let command = started.command();
        let words: Vec<_> = command.split_whitespace().collect();
        let expected =
            format!("aditd serve {typed} --config '/etc/my adit.toml' --state-dir /srv/a");
        assert_eq!(words, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!(Started { unit: None, flags: vec![] }.command(), "aditd serve");
    }

    #[test]
    fn a_service_is_started_by_its_manager() {
        for (groups, command) in [
            ("0::/system.slice/aditd.service\n", Some("sudo systemctl start aditd")),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/lab.service\n",
                Some("systemctl --user start lab"),
            ),
            ("0::/user.slice/user-7.slice/session-2.scope\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            let unit = unit_of(groups);
            let found = unit.map(|unit| Started { unit: Some(unit), flags: vec![] }.command());
            assert_eq!(found.as_deref(), command, "{groups}");
        }
    }

    #[test]
    fn what_a_terminal_could_mistake_is_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(command(dir.path()), "aditd serve");
        assert_eq!(restart(dir.path()).1, "aditd serve");
        let unit = unit_of("0::/system.slice/aditd.service\n");
        Started { unit, flags: vec![] }.note(dir.path()).expect("written");
        assert_eq!(restart(dir.path()).1, "sudo systemctl restart aditd");
        for (value, shown) in [
            ("a:1", "aditd serve --listen a:1"),
            ("a\u{1b}[2J", "aditd serve"),
            ("`x`", "aditd serve"),
        ] {
            let flags = ["--listen", value].map(str::to_owned).to_vec();
            Started { unit: None, flags }.note(dir.path()).expect("written");
            assert_eq!(command(dir.path()), shown, "{value}");
        }
        std::fs::write(dir.path().join(FILE), "{").expect("written");
        assert_eq!(command(dir.path()), "aditd serve");
    }
}
