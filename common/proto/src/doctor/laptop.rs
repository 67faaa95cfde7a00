//! The checks of the laptop: what can be wrong between a tool and `adit up`.

pub mod environment;
pub mod ports;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use self::{
    environment::{Environment, ollama_host, proxies},
    ports::{Port, port},
};
use super::{Check, Judgement, bad, failed, ok, warn};
use crate::{
    clock,
    failure::Failure,
    human,
    identity::Name,
    typed::quoted,
    wire::{OLLAMA_PORT, Revocation},
};

/// The free space below which the laptop's disk is told to be nearly full, in bytes.
const ENOUGH_FREE: u64 = 64 << 20;
/// The free space below which the few small files of the state may not find room, in bytes.
const LEAST_FREE: u64 = 1 << 20;

/// What was found on the laptop. Times are Unix seconds.
#[derive(Debug, Clone)]
pub struct LaptopFound {
    /// Version of this `adit`.
    pub version: String,
    /// The time.
    pub now: i64,
    /// The argument with which `adit up` means this profile; empty or with a leading space.
    pub argument: String,
    /// The flag with which `adit enroll` means this profile; empty or with a leading space.
    pub flag: String,
    /// The identity of this device; or why it can't be read.
    pub profile: Result<ProfileFound, Failure>,
    /// Where the device's key is, and why it cannot be used, if so; `None` if that cannot be read.
    pub key: Option<KeyFound>,
    /// Files whose owner or mode is wrong.
    pub state: Vec<Failure>,
    /// The state directory.
    pub state_dir: String,
    /// The settings file, if there is one; or what is wrong with it.
    pub settings: Result<Option<String>, Failure>,
    /// Whether `adit up` runs.
    pub adit: AditFound,
    /// Which programs hold the ports that tools use.
    pub ports: Vec<Port>,
    /// The environment variables that tools read.
    pub environment: Environment,
    /// The kernel's limits for socket buffers; `None` where they are not known.
    pub buffers: Option<Buffers>,
    /// The bytes that are free for the state; `None` where that is not known.
    pub free: Option<u64>,
}

/// The identity of this device.
#[derive(Debug, Clone)]
pub struct ProfileFound {
    /// The server's name on this device.
    pub server: Name,
    /// The name of this device on the server, and its id.
    pub device: String,
    /// The certificate's first and last second.
    pub valid: (i64, i64),
    /// How long after its end the certificate may still renew itself, in seconds.
    pub recovers_for: i64,
    /// The server has revoked it, or its user.
    pub revoked: Option<Revocation>,
}

/// The device's key.
#[derive(Debug, Clone)]
pub struct KeyFound {
    /// Where it is, for people.
    pub place: String,
    /// Why it cannot be used; `None` if its hardware is there. Nobody has logged in at it.
    pub wrong: Option<Failure>,
}

/// Whether `adit up` runs.
#[derive(Debug, Clone)]
pub enum AditFound {
    NotRunning,
    Running {
        pid: u32,
        version: String,
        /// The addresses for applications.
        listening: Vec<SocketAddr>,
        /// It is stopping.
        stopping: bool,
    },
    /// It could not be asked.
    Unasked(Failure),
}

/// The largest buffers that the kernel grants a socket, in bytes, and what we ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// The size that Adit asks for.
    pub wanted: u64,
    /// `net.core.rmem_max`.
    pub rmem_max: u64,
    /// `net.core.wmem_max`.
    pub wmem_max: u64,
}

impl AditFound {
    /// Where applications connect.
    pub fn listening(&self) -> &[SocketAddr] {
        match self {
            Self::Running { listening, .. } => listening,
            _ => &[],
        }
    }

    /// The port that tools have to use.
    pub fn port(&self) -> u16 {
        let ports: Vec<_> = self.listening().iter().map(SocketAddr::port).collect();
        let usual = ports.is_empty() || ports.contains(&OLLAMA_PORT);
        if usual { OLLAMA_PORT } else { ports[0] }
    }
}

/// All checks of the laptop, in the order in which they are shown.
pub const CHECKS: [Check<LaptopFound>; 12] = [
    Check { id: "settings", title: "settings", needs: &[], judge: settings },
    Check { id: "state", title: "state", needs: &[], judge: state },
    Check { id: "laptop_disk", title: "disk", needs: &[], judge: disk },
    Check { id: "identity", title: "device", needs: &["state"], judge: identity },
    Check { id: "key", title: "key", needs: &["identity"], judge: key },
    Check { id: "clock", title: "clock", needs: &[], judge: clock_here },
    Check {
        id: "certificate",
        title: "certificate",
        needs: &["identity", "clock"],
        judge: certificate,
    },
    Check { id: "adit", title: "adit", needs: &["identity"], judge: adit },
    Check { id: "port", title: "port", needs: &[], judge: port },
    Check { id: "ollama_host", title: "OLLAMA_HOST", needs: &[], judge: ollama_host },
    Check { id: "proxy", title: "proxy", needs: &[], judge: proxies },
    Check {
        id: "laptop_buffers",
        title: "socket buffers",
        needs: &[],
        judge: |found| buffers(found.buffers, "adit"),
    },
];

fn settings(found: &LaptopFound) -> Option<Judgement> {
    Some(match &found.settings {
        Ok(None) => ok("no file: the defaults hold"),
        Ok(Some(path)) => ok(format!("`{path}` can be read")),
        Err(wrong) => {
            // The parser shows the place in several lines: what is wrong is in the last one.
            let causes = wrong.causes().iter().map(|cause| {
                let place = cause.lines().next().unwrap_or_default();
                let place = place.trim_start_matches("TOML parse error at ");
                match cause.lines().next_back() {
                    Some(what) if cause.lines().count() > 1 => format!("{place}: {what}"),
                    _ => cause.clone(),
                }
            });
            let shown = std::iter::once(wrong.what().to_owned()).chain(causes);
            // The likeliest cure is the first.
            let hint = wrong.hints().first().map_or("correct it", String::as_str);
            let stop = if hint.ends_with('?') { "" } else { "." };
            bad(shown.collect::<Vec<_>>().join(": "))
                .cure_by(format!("{hint}{stop} To check the file"), "adit config")
        }
    })
}

fn state(found: &LaptopFound) -> Option<Judgement> {
    let Some(first) = found.state.first() else {
        return Some(ok(format!("`{}` can be read by nobody else", found.state_dir)));
    };
    let others = found.state.iter().skip(1);
    let judged = others.fold(failed(first), |judged, other| judged.hints(other.hints()));
    Some(judged)
}

fn disk(found: &LaptopFound) -> Option<Judgement> {
    let free = found.free?;
    let dir = &found.state_dir;
    let shown = format!("{} free for the state (`{dir}`)", human::size(free));
    let judged = match free {
        ENOUGH_FREE.. => return Some(ok(shown)),
        LEAST_FREE.. => warn(format!("only {shown}")),
        _ => bad(format!(
            "only {shown}: this device can't enroll, and its certificate can't renew itself"
        )),
    };
    let df = format!("df -h {}", quoted(dir));
    Some(judged.cure_by("see what is full, and delete there what nobody needs", df))
}

fn identity(found: &LaptopFound) -> Option<Judgement> {
    let profile = match &found.profile {
        Ok(profile) => profile,
        Err(failure) => return Some(failed(failure)),
    };
    let who = format!("{}, enrolled at the server `{}`", profile.device, profile.server);
    let Some(Revocation { user, reason }) = &profile.revoked else { return Some(ok(who)) };
    let name = profile.device.split(' ').next().unwrap_or_default();
    let why = reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    if let Some(user) = user {
        let judged = bad(format!("{who}, which has revoked its user `{user}`{why}")).denied();
        let restore = format!("aditd user restore {user}");
        return Some(judged.cure_by("to let this user in again, on the box", restore));
    }
    let judged = bad(format!("{who}, which has revoked it{why}"))
        .denied()
        .cure_by("to let it in again, on the box", format!("aditd device restore {name}"))
        .cure_by(
            "or as a new device, on the box",
            format!("aditd device forget {name} && aditd invite {name}"),
        )
        .cure_by("then here", {
            // The enrollment cannot be replaced while a tunnel uses it.
            let down = match found.adit {
                AditFound::NotRunning => String::new(),
                _ => format!("adit down{} && ", found.argument),
            };
            format!("{down}adit enroll --replace{}", found.flag)
        });
    Some(judged)
}

fn key(found: &LaptopFound) -> Option<Judgement> {
    let KeyFound { place, wrong } = found.key.as_ref()?;
    Some(match wrong {
        None => ok(place),
        Some(wrong) => failed(wrong),
    })
}

fn clock_here(found: &LaptopFound) -> Option<Judgement> {
    let shows = clock::shown(found.now);
    if found.now < clock::RELEASED {
        let judged =
            bad(format!("it shows {shows}, a time before this version of adit was released"));
        return Some(judged.cure("sudo timedatectl set-ntp true"));
    }
    Some(ok(shows))
}

fn certificate(found: &LaptopFound) -> Option<Judgement> {
    let profile = found.profile.as_ref().ok()?;
    let (begin, end) = profile.valid;
    let up = format!("adit up{}", found.argument);
    if found.now < begin {
        let judged = bad(format!(
            "it is valid from {} on, and this laptop's clock shows {}",
            clock::shown(begin),
            clock::shown(found.now)
        ));
        return Some(judged.cure("sudo timedatectl set-ntp true"));
    }
    let left = end - found.now;
    if left > 0 {
        let left = human::time(std::time::Duration::from_secs(left as u64));
        return Some(ok(format!(
            "valid for {left}, until {}; it renews itself",
            clock::shown(end)
        )));
    }
    let ended = format!("it ended at {}", clock::shown(end));
    if -left <= profile.recovers_for {
        return Some(warn(format!("{ended}, and renews itself at the next connection")).cure(up));
    }
    let judged = bad(format!("{ended}, too long ago to renew itself"));
    let name = profile.device.split(' ').next().unwrap_or_default();
    Some(
        judged
            .cure_by("on the box", format!("aditd device revoke {name} && aditd device forget {name} && aditd invite {name}"))
            .cure_by("then here", format!("adit enroll --replace{}", found.flag)),
    )
}

fn adit(found: &LaptopFound) -> Option<Judgement> {
    let up = format!("adit up{}", found.argument);
    Some(match &found.adit {
        AditFound::NotRunning => {
            warn("`adit up` does not run, so no tool reaches the box").cure(up)
        }
        AditFound::Running { pid, stopping: true, .. } => {
            warn(format!("`adit up` (pid {pid}) was told to stop, and waits for running answers"))
                .cure_by("when it has ended", up)
        }
        AditFound::Running { pid, listening, .. } if listening.is_empty() => warn(format!(
            "a tunnel of `adit run` is open (pid {pid}), and `adit up` does not run: other tools reach nobody"
        ))
        .cure_by("when its programs have ended", up),
        AditFound::Running { pid, version, .. } if *version != found.version => warn(format!(
            "`adit up` (pid {pid}) is version {version}, and this is {}",
            found.version
        ))
        .cure_by("start it again", format!("adit down{} && {up}", found.argument)),
        AditFound::Running { pid, version, .. } => {
            ok(format!("`adit up` runs (pid {pid}), version {version}"))
        }
        AditFound::Unasked(failure) => failed(failure),
    })
}

/// Judges the kernel's limits for socket buffers, of the laptop and of the box. `program` uses other
/// limits once it is started again.
pub(super) fn buffers(found: Option<Buffers>, program: &str) -> Option<Judgement> {
    let Buffers { wanted, rmem_max, wmem_max } = found?;
    let sizes =
        format!("{} for receiving, {} for sending", human::size(rmem_max), human::size(wmem_max));
    if rmem_max >= wanted && wmem_max >= wanted {
        return Some(ok(format!("up to {sizes}")));
    }
    let slow = "bursts that are longer are lost, which slows uploads and fast links";
    let judged = warn(format!("the kernel grants at most {sizes}: {slow}"));
    let setting = |name: &str, now: u64| {
        if now < wanted { format!(" net.core.{name}={wanted}") } else { String::new() }
    };
    let settings = setting("rmem_max", rmem_max) + &setting("wmem_max", wmem_max);
    Some(judged.cure_by(
        format!("until the next boot (of a container: on its host); then start {program} again"),
        format!("sudo sysctl -w{settings}"),
    ))
}

#[cfg(test)]
mod tests;
