//! How `adit up USER@HOST` puts aditd on a box: what was found there and what is wished become a plan,
//! or the obstacle and its cure.

mod elf;
mod found;
mod obstacle;
mod service;
#[cfg(test)]
mod tests;
mod text;
mod upgrade;

pub use elf::Machine;
pub use found::{Found, Lines, Missing, Running};
pub use obstacle::Obstacle;
pub use service::{Install, Service};
pub use upgrade::{Replace, Upgrade, UpgradeObstacle};

use crate::wire::ADITD_PORT;

/// Free space that aditd needs besides its program, in bytes: for its state and its log.
const ROOM: u64 = 8 << 20;
/// The port of an Ollama that nobody has configured.
const OLLAMA_PORT: u16 = 11434;
/// How many ports after aditd's own are tried.
const MORE_PORTS: u16 = 64;

/// The program that would be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Its file on this computer, for people.
    pub file: String,
    pub machine: Machine,
    /// Its length in bytes.
    pub len: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What is wished.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// The login, as commands take it.
    pub to: &'a str,
    /// The version of this adit.
    pub version: &'a str,
    /// The program to upload; or why there is none, and what was tried.
    pub binary: Result<Binary, String>,
    /// The service that was named, as `--upstream` takes it.
    pub upstream: Option<&'a str>,
}

/// What is done on a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// An aditd runs and is kept.
    Keep {
        /// Its program, if it answers this user.
        running: Option<Running>,
    },
    /// aditd is installed and started.
    Install(Install),
}

impl Plan {
    /// Decides what is done on a box where this was found.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn new(found: &Found, wish: &Wish<'_>) -> Result<Self, Obstacle> {
        if let Some(running) = &found.running {
            if !is_compatible(&running.version, wish.version) {
                return Err(Obstacle::OtherVersion { runs: running.version.clone() });
            }
            return Ok(Self::Keep { running: Some(running.clone()) });
        }
        if found.enroll_group {
            return Ok(Self::Keep { running: None });
        }
        install(found, wish).map(Self::Install)
    }
}

fn install(found: &Found, wish: &Wish<'_>) -> Result<Install, Obstacle> {
    if found.system != "Linux" {
        return Err(Obstacle::OtherSystem { system: found.system.clone() });
    }
    if let Some(unit) = &found.foreign_unit {
        return Err(Obstacle::ForeignUnit { unit: unit.clone(), is_root: found.uid == 0 });
    }
    let machine = || found.machine.clone();
    let binary = match &wish.binary {
        Ok(binary) if binary.machine.runs_on(&found.machine) => binary,
        Ok(Binary { file, machine: has, .. }) => {
            return Err(Obstacle::OtherMachine {
                machine: machine(),
                file: file.clone(),
                has: has.name(),
            });
        }
        Err(why) => return Err(Obstacle::NoBinary { machine: machine(), why: why.clone() }),
    };
    let dir = || found.dir.clone();
    if !is_plain_path(&found.dir) {
        return Err(Obstacle::OddName { dir: dir() });
    }
    if let Err(says) = &found.writable {
        return Err(Obstacle::NotWritable { dir: dir(), says: says.clone() });
    }
    if let Err(says) = &found.runs {
        return Err(Obstacle::RunsNothing { dir: dir(), says: says.clone() });
    }
    let needed = if found.present { 0 } else { binary.len } + ROOM;
    if let Some(free) = found.free.filter(|free| *free < needed) {
        return Err(Obstacle::NoSpace { dir: dir(), free, needed });
    }
    let service = match (found.uid, found.systemd) {
        (0, true) => Service::System,
        (0, false) => Service::Process,
        (_, systemd) if systemd || found.user_manager => {
            Service::User { enable_linger: !found.linger }
        }
        _ => Service::Process,
    };
    Ok(Install {
        to: wish.to.to_owned(),
        home: found.home.clone(),
        dir: dir(),
        state: found.state.clone(),
        sha256: binary.sha256.clone(),
        upload: (!found.present).then_some(binary.len),
        version: wish.version.to_owned(),
        service,
        upstream: upstream(found, wish)?,
        listen: free_port(found.ports.as_deref()),
        others: found.others.clone(),
    })
}

/// Where Ollama listens, as `--upstream` takes it.
fn upstream(found: &Found, wish: &Wish<'_>) -> Result<String, Obstacle> {
    if let Some(named) = wish.upstream {
        return Ok(named.to_owned());
    }
    let usual = format!("127.0.0.1:{OLLAMA_PORT}");
    let mut tried: Vec<(String, u16)> = Vec::new();
    for value in found.ollama.iter().map(String::as_str).chain([&*usual]) {
        let place = on_loopback(value);
        if place.as_ref().is_some_and(|place| !tried.contains(place)) {
            tried.extend(place);
        }
    }
    let is_there = |port: &u16| found.listening.as_ref().is_none_or(|ports| ports.contains(port));
    match tried.iter().find(|(_, port)| is_there(port)) {
        Some((host, port)) => Ok(format!("http://{host}:{port}")),
        None => Err(Obstacle::NoOllama {
            tried: tried.iter().map(|(host, port)| format!("{host}:{port}")).collect(),
        }),
    }
}

/// The loopback address and port of a value of `OLLAMA_HOST`; `None` if it names another host.
fn on_loopback(value: &str) -> Option<(String, u16)> {
    let value = value.trim().trim_matches(['"', '\'']);
    let (scheme, rest) = value.split_once("://").unwrap_or(("", value));
    let authority = rest.split('/').next().unwrap_or_default();
    let usual = if scheme == "http" { 80 } else { OLLAMA_PORT };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().ok()?)
        }
        _ => (authority, usual),
    };
    match host.trim_start_matches('[').trim_end_matches(']') {
        "" | "0.0.0.0" | "::" | "127.0.0.1" | "localhost" => Some(("127.0.0.1".to_owned(), port)),
        "::1" => Some(("[::1]".to_owned(), port)),
        _ => None,
    }
}

/// The port that aditd is told to listen on, if its own is taken.
fn free_port(taken: Option<&[u16]>) -> Option<u16> {
    let taken = taken.unwrap_or_default();
    let free = (ADITD_PORT..ADITD_PORT + MORE_PORTS).find(|port| !taken.contains(port));
    free.filter(|port| *port != ADITD_PORT)
}

/// Whether every shell reads a path as it is, without quotes.
pub fn is_plain_path(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    path.starts_with('/') && path.chars().all(plain)
}

/// Whether programs of these two versions work together: those of one minor version before 1.0, of
/// one major version after it.
pub fn is_compatible(one: &str, other: &str) -> bool {
    let series = series(one);
    !series.is_empty() && series == self::series(other)
}

/// The part of a version that compatible versions share, with the dot behind it.
pub fn series(version: &str) -> &str {
    let mut dots = version.match_indices('.').map(|(at, _)| at + 1);
    let (major, minor) = (dots.next(), dots.next());
    let end = if version.starts_with("0.") { minor } else { major };
    end.map_or("", |end| &version[..end])
}
