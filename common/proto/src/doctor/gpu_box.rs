//! The checks of the box: `aditd` itself, and what it depends on. An enrolled device gets only the
//! lines about Ollama and about itself.

pub mod device;
mod found;
pub mod https;
pub mod ollama;
pub mod providers;
mod sandbox;
pub mod services;

use std::time::Duration;

pub use self::found::{
    AuditLog, Authorize, BoxFound, Devices, Disk, InFlight, ServerFound, Unit, UnitState,
};
pub use self::sandbox::Sandbox;
use self::{
    device::device,
    https::https,
    ollama::{exposed, models, ollama, pages, parallel},
    providers::{sign_in, tokens},
    sandbox::sandbox,
    services::services,
};
use super::{Check, Group, Judgement, Line, bad, examine, failed, laptop, not_checked, ok, warn};
use crate::{clock, human};

/// If `authorize` takes longer, people notice it in each request.
const SLOW_ANSWER: Duration = Duration::from_millis(250);
/// So many seconds before its end, the server's certificate should have been renewed long ago.
const SOON: i64 = 30 * 86_400;

/// All checks of the box, in the order in which they are shown.
pub const CHECKS: [Check<BoxFound>; 23] = [
    Check { id: "aditd", title: "aditd", needs: &[], judge: server },
    Check { id: "config", title: "configuration", needs: &[], judge: config },
    Check { id: "box_state", title: "state", needs: &[], judge: state },
    Check { id: "box_clock", title: "clock", needs: &[], judge: clock_there },
    Check {
        id: "box_certificate",
        title: "certificate",
        needs: &["box_state", "box_clock"],
        judge: certificate,
    },
    Check { id: "listening", title: "addresses", needs: &["aditd"], judge: listening },
    Check { id: "https", title: "HTTPS", needs: &["aditd"], judge: https },
    Check { id: "sandbox", title: "sandbox", needs: &["aditd"], judge: sandbox },
    Check { id: "unit", title: "service", needs: &[], judge: unit },
    Check { id: "ollama", title: "Ollama", needs: &[], judge: ollama },
    Check { id: "exposed", title: "Ollama's addresses", needs: &["ollama"], judge: exposed },
    Check { id: "origins", title: "web pages", needs: &["ollama"], judge: pages },
    Check { id: "parallel", title: "at once", needs: &["ollama"], judge: parallel },
    Check { id: "models", title: "models", needs: &["ollama"], judge: models },
    Check { id: "services", title: "services", needs: &[], judge: services },
    Check { id: "disk", title: "disk", needs: &[], judge: disks },
    Check { id: "authorize", title: "authorize", needs: &[], judge: authorize },
    Check { id: "oidc", title: "sign-in", needs: &[], judge: sign_in },
    Check { id: "jwt", title: "tokens", needs: &[], judge: tokens },
    Check { id: "audit", title: "audit log", needs: &["aditd"], judge: audit },
    Check { id: "devices", title: "devices", needs: &["aditd"], judge: devices },
    Check { id: "device", title: "this device", needs: &[], judge: device },
    Check { id: "box_buffers", title: "socket buffers", needs: &[], judge: sockets },
];

/// The checks whose lines a device gets that is not an administrator: none about other devices, the
/// files of the machine, or the programs that hold its ports.
const FOR_DEVICES: [&str; 5] = ["ollama", "exposed", "origins", "services", "device"];

/// The lines of the box for an administrator.
pub fn lines(found: &BoxFound) -> Vec<Line> {
    let mut lines = Vec::new();
    examine(Group::Box, &CHECKS, found, &mut lines);
    lines
}

/// The lines of the box for an enrolled device that is not an administrator.
pub fn lines_for_device(found: &BoxFound) -> Vec<Line> {
    let mut lines = lines(found);
    lines.retain(|line| FOR_DEVICES.contains(&&*line.id));
    lines
}

fn server(found: &BoxFound) -> Option<Judgement> {
    let has_unit = found.unit.as_ref().and_then(|unit| unit.state.as_ref());
    Some(match &found.server {
        ServerFound::Unasked(failure) => failed(failure),
        ServerFound::OfAnother => {
            not_checked("the rights of the user whose aditd runs here, or its `--state-dir`")
                .cure("sudo aditd doctor")
                .cure_by("whose it is, and with which flags", "ps -C aditd -o user,args")
        }
        ServerFound::NotRunning { state_dir } => {
            let judged = bad(format!("it does not run on the state in `{state_dir}`"));
            match has_unit {
                Some(unit) if unit.is_users => judged
                    .cure("systemctl --user start aditd")
                    .cure_by("why it ended", "journalctl --user -u aditd -n 20"),
                Some(_) => judged
                    .cure("sudo systemctl start aditd")
                    .cure_by("why it ended", "sudo journalctl -u aditd -n 20"),
                None => judged.cure(found.start.clone()),
            }
        }
        ServerFound::Running { pid, version, .. } if *version != found.version => warn(format!(
            "version {version} runs (pid {pid}), and version {} is installed",
            found.version
        ))
        .cure_by(
            "running answers go on",
            match has_unit {
                Some(unit) if !unit.is_users => "sudo aditd replace".to_owned(),
                _ => format!("aditd replace{}", found.argument),
            },
        ),
        ServerFound::Running { pid, version, .. } => {
            ok(format!("version {version} runs (pid {pid})"))
        }
    })
}

/// The command that starts the running server again.
fn start_again(found: &BoxFound) -> String {
    match found.unit.as_ref().and_then(|unit| unit.state.as_ref()) {
        Some(unit) if unit.is_users => "systemctl --user restart aditd".to_owned(),
        Some(_) => "sudo systemctl restart aditd".to_owned(),
        None if matches!(found.server, ServerFound::NotRunning { .. }) => found.start.clone(),
        None => format!("aditd replace{}", found.argument),
    }
}

/// Adds a cure that starts the server with a setting: with this flag, or, if it is a service, with this
/// line of its file. The setting may be there already, and a second one would be refused.
fn cure_with(found: &BoxFound, judged: Judgement, note: &str, flag: &str, line: &str) -> Judgement {
    match found.unit.as_ref().and_then(|unit| unit.state.as_ref()) {
        None => judged.cure_by(note, format!("aditd serve{} {flag}", found.argument)),
        Some(unit) if unit.is_users => {
            let name = flag.split(' ').next().unwrap_or(flag);
            judged.cure_by(
                format!("{note}: in the unit, change what is behind `{name}`; if it is not there, add `{flag}` behind `aditd serve`"),
                "systemctl --user edit --full aditd && systemctl --user restart aditd",
            )
        }
        Some(_) => {
            let file = match &found.config {
                Some(Ok(Some(path))) => path,
                _ => "/etc/adit/aditd.toml",
            };
            let key = line.split(' ').next().unwrap_or(line);
            judged.cure_by(
                format!("{note}: in `{file}`, change the line that begins with `{key}`; if there is none, add `{line}` above the first `[table]`; a flag in the unit overrides it; then"),
                "sudo systemctl restart aditd",
            )
        }
    }
}

fn config(found: &BoxFound) -> Option<Judgement> {
    Some(match found.config.as_ref()? {
        Ok(Some(path)) => ok(format!("`{path}` can be read")),
        Ok(None) => ok("no file: the defaults hold"),
        Err(failure) => failed(failure),
    })
}

fn state(found: &BoxFound) -> Option<Judgement> {
    let (dir, problems) = found.state.as_ref()?;
    Some(match problems.split_first() {
        None => ok(format!("nobody but its owner can read `{dir}`")),
        Some((first, others)) => {
            others.iter().fold(failed(first), |judged, other| judged.hints(other.hints()))
        }
    })
}

fn clock_there(found: &BoxFound) -> Option<Judgement> {
    Some(match found.clock.as_ref()? {
        Ok(now) => ok(clock::shown(*now)),
        Err(failure) => failed(failure),
    })
}

fn certificate(found: &BoxFound) -> Option<Judgement> {
    let (end, now) = found.certificate?;
    let until = clock::shown(end);
    Some(if end - now > SOON {
        ok(format!("the server's is valid until {until}"))
    } else {
        let judged = if end > now {
            warn(format!("the server's ends at {until}"))
        } else {
            bad(format!("the server's ended at {until}"))
        };
        judged.cure_by("a new one is made at the start", start_again(found))
    })
}

fn listening(found: &BoxFound) -> Option<Judgement> {
    let ServerFound::Running { listening, addresses, networks, .. } = &found.server else {
        return None;
    };
    let all = listening.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if listening.iter().all(|address| address.ip().is_loopback()) {
        return Some(ok(format!("{all} (UDP), on loopback alone: devices come over SSH")));
    }
    if addresses.is_empty() {
        let judged = warn(format!(
            "{all} (UDP), and this machine has no address that devices could be told"
        ));
        let (note, line) = ("name one that devices reach", r#"advertise = ["HOST:PORT"]"#);
        return Some(cure_with(found, judged, note, "--advertise HOST:PORT", line));
    }
    let (told, networks) = (addresses.join(", "), networks.join(", "));
    Some(ok(format!("{all} (UDP); devices are told {told}; from {networks}")))
}

fn unit(found: &BoxFound) -> Option<Judgement> {
    let unit = found.unit.as_ref()?;
    let Some(state) = &unit.state else {
        let judged = warn("systemd has no unit for aditd: it does not come back after a boot");
        return Some(judged.cure(match unit.user.as_str() {
            // The service of the system has its state in its own place.
            "root" => "sudo aditd service install".to_owned(),
            _ => format!("aditd service install{}", found.argument),
        }));
    };
    let systemctl = if state.is_users { "systemctl --user" } else { "sudo systemctl" };
    if state.active == "failed" {
        let journalctl = if state.is_users { "journalctl --user" } else { "sudo journalctl" };
        return Some(bad("the unit has failed").cure(format!("{journalctl} -u aditd -n 20")));
    }
    if !state.enabled {
        let judged = warn("the unit is not enabled: aditd does not come back after a boot");
        return Some(judged.cure(format!("{systemctl} enable aditd")));
    }
    if state.is_users && !unit.lingers {
        let judged = warn(format!(
            "the unit is that of the user {}, and ends when that user logs out",
            unit.user
        ));
        return Some(judged.cure(format!("loginctl enable-linger {}", unit.user)));
    }
    Some(ok(format!("the unit is enabled and {}", state.active)))
}

fn disks(found: &BoxFound) -> Option<Judgement> {
    let shown = |disk: &Disk| {
        format!("{} free for the {} (`{}`)", human::size(disk.free), disk.what, disk.path)
    };
    let low: Vec<_> = found.disks.iter().filter(|disk| disk.free < disk.enough).collect();
    if low.is_empty() {
        let all: Vec<_> = found.disks.iter().map(shown).collect();
        return (!all.is_empty()).then(|| ok(all.join(", ")));
    }
    let is_full = low.iter().any(|disk| disk.free < disk.enough / 16);
    let text = low.iter().map(|disk| shown(disk)).collect::<Vec<_>>().join(", ");
    let judged = if is_full { bad(format!("only {text}")) } else { warn(format!("only {text}")) };
    let judged = judged.cure_by(
        "see what is full",
        format!(
            "df -h {}",
            low.iter().map(|disk| format!("'{}'", disk.path)).collect::<Vec<_>>().join(" ")
        ),
    );
    Some(match low.iter().any(|disk| disk.what == "models") {
        true => {
            judged.cure_by("models that nobody needs: remove them with `ollama rm`", "ollama list")
        }
        false => judged,
    })
}

fn authorize(found: &BoxFound) -> Option<Judgement> {
    let Authorize { address, by_hand, answered } = found.authorize.as_ref()?;
    Some(match answered {
        Err(why) => bad(format!("{address} gives no answer ({why}), so what it decides is refused with 503"))
            .cure_by("ask it by hand", by_hand.clone()),
        Ok(took) if *took > SLOW_ANSWER => warn(format!(
            "{address} took {} ms to answer, and each request waits for it; with `Cache-Control: max-age=60` in its answer it is asked less often",
            took.as_millis()
        ))
        .cure_by("see how long it takes", format!("time {by_hand}")),
        Ok(took) => ok(format!("{address} answers in {} ms", took.as_millis())),
    })
}

fn audit(found: &BoxFound) -> Option<Judgement> {
    let AuditLog { dir, required, failing, cure, lost } = found.audit.as_ref()?;
    let cured = |judged: Judgement| {
        judged
            .cure_by("is the disk full?", format!("df -h '{dir}'"))
            .cure_by("whose is it?", format!("ls -ld '{dir}'"))
    };
    Some(match (failing, lost) {
        (Some(why), _) => {
            let then = if *required {
                "so every request gets 503"
            } else {
                "so nobody will know what was asked"
            };
            let judged = bad(format!("`{dir}` can't be written: {why}; {then}"));
            match cure {
                Some(cure) if cure.contains('`') => judged.hints(&[cure]),
                _ => cured(judged),
            }
        }
        (None, 1..) => cured(warn(format!(
            "{} lost since the start; it can be written now",
            human::count(*lost, "line")
        ))),
        (None, 0) => ok(format!("`{dir}` can be written")),
    })
}

fn devices(found: &BoxFound) -> Option<Judgement> {
    let Devices { enrolled, connected, without_role } = found.devices.as_ref()?;
    if let Some(first) = without_role.first() {
        let judged = warn(format!(
            "these have a role that the configuration does not know, and may do nothing: {}",
            without_role.join(", ")
        ));
        return Some(judged.cure(format!("aditd device role {first} infer{}", found.argument)));
    }
    if *enrolled == 0 {
        let judged = warn("none is enrolled");
        return Some(judged.cure(format!("aditd invite laptop{}", found.argument)));
    }
    Some(ok(format!("{enrolled} enrolled, {connected} connected")))
}

fn sockets(found: &BoxFound) -> Option<Judgement> {
    if let ServerFound::Running { batches_refused: 1.., refused_to, .. } = found.server {
        let to = refused_to.map(|ip| ip.to_canonical().to_string()).unwrap_or_default();
        return Some(batches(&to, "aditd"));
    }
    laptop::buffers(found.buffers, "aditd")
}

/// The judgement for a network card that refuses batches of datagrams. `where_to` is an address
/// that is reached through that card, or empty. `program` sends no batches until it is started again.
pub(super) fn batches(where_to: &str, program: &str) -> Judgement {
    let to = if where_to.is_empty() { "1.1.1.1" } else { where_to };
    warn("a network card refuses batches of datagrams (GSO), so each one is sent alone, which is slow on fast links")
        .cure_by(
            format!("until the next boot; then start {program} again"),
            format!("sudo ethtool -K \"$(ip -o route get {to} | sed 's/.* dev \\([^ ]*\\).*/\\1/')\" tx-udp-segmentation off"),
        )
}

/// The line for a box that could not be asked. `why` says what is needed to ask it.
pub fn unasked(why: &str) -> Line {
    let mut lines = Vec::new();
    let check = Check {
        id: "aditd",
        title: "aditd",
        needs: &[],
        judge: |why: &String| Some(not_checked(why)),
    };
    examine(Group::Box, &[check], &why.to_owned(), &mut lines);
    lines.remove(0)
}

#[cfg(test)]
mod tests;
