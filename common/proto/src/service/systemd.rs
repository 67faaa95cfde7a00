//! Units of systemd, and the commands of its manager.

use super::{IfFails, MADE, Manager, Service, Step};

/// The unit: that of the packages, with this program and its arguments.
pub(super) fn unit(service: &Service) -> String {
    let program = in_unit(&service.path);
    let command = std::iter::once(&service.path).chain(&service.args);
    let command = command.map(|word| in_unit(word)).collect::<Vec<_>>().join(" ");
    // The comments at its head say how it is installed by hand.
    let sections = service.unit.split_once("\n[Unit]").map_or(service.unit, |(_, rest)| rest);
    let mut text = format!("# {MADE}: it is written anew each time.\n\n[Unit]");
    for line in sections.lines() {
        if line.starts_with("ExecStart=") {
            text += &format!("ExecStart={command}");
        } else if let Some(rest) = line.strip_prefix(&format!("ExecReload={}", service.program)) {
            text += &format!("ExecReload={program}{rest}");
        } else if line.starts_with("# systemd looks in ") {
            continue;
        } else {
            text += line;
        }
        text += "\n";
    }
    text
}

/// A word for a line of a unit (systemd.service(5), "Command lines").
fn in_unit(word: &str) -> String {
    let escaped =
        word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let is_plain =
        !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"\\;".contains(c));
    if is_plain { escaped } else { format!("\"{escaped}\"") }
}

fn systemctl(service: &Service, args: &[&str]) -> Step {
    match service.manager {
        Manager::User => Step::new("systemctl", &[&["--user"], args].concat()),
        _ => Step::new("systemctl", args),
    }
}

pub(super) fn probe(service: &Service) -> Step {
    systemctl(service, &["show", "--property=Version"])
}

pub(super) fn reload(service: &Service) -> Step {
    systemctl(service, &["daemon-reload"]).if_fails(IfFails::GoOn)
}

pub(super) fn start(service: &Service) -> Vec<Step> {
    let mut steps = Vec::new();
    if service.sysusers.is_some() {
        steps.push(Step::new("systemd-sysusers", &[]));
    }
    steps.push(systemctl(service, &["daemon-reload"]));
    steps.push(systemctl(service, &["enable", &service.name]));
    steps.push(systemctl(service, &["restart", &service.name]));
    if service.manager == Manager::User {
        let user = &service.user.0;
        let said = format!(
            "It ends when {user} logs out. To let it run without a login: `sudo loginctl enable-linger {user}`"
        );
        let linger = Step::new("loginctl", &["enable-linger", user]);
        steps.push(linger.if_fails(IfFails::Say(said)));
    }
    steps
}

pub(super) fn stop(service: &Service) -> Step {
    systemctl(service, &["stop", &service.name])
}

pub(super) fn main_pid(service: &Service) -> Step {
    systemctl(service, &["show", "--property=MainPID", &service.name])
}

pub(super) fn end(service: &Service) -> Vec<Step> {
    vec![systemctl(service, &["disable", "--now", &service.name])]
}

pub(super) fn properties(service: &Service) -> Step {
    const WANTED: &str = "--property=ActiveState,UnitFileState,MainPID";
    systemctl(service, &["show", WANTED, &service.name])
}

pub(super) fn status(service: &Service) -> Step {
    systemctl(service, &["status", "--no-pager", "--lines=5", &service.name])
}

pub(super) fn logs(service: &Service, lines: u32, follow: bool) -> Step {
    let lines = format!("--lines={lines}");
    let unit = match service.manager {
        Manager::User => format!("--user-unit={}", service.name),
        _ => format!("--unit={}", service.name),
    };
    let mut args = vec![unit.as_str(), "--no-pager", &lines];
    if service.manager == Manager::User {
        // Without a note that this user cannot read the log of the system.
        args.push("--quiet");
    }
    if follow {
        args.push("--follow");
    }
    Step::new("journalctl", &args)
}
