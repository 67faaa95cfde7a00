//! Whether another adit uses a server, and which: one that is ending is waited for.

use std::{net::SocketAddr, path::Path, time::Duration};

use common::machine::{
    control::{self, ClaimError},
    report::{Failure, say},
};
use proto::{human, identity::Name};
use tokio::time::Instant;

use crate::{
    commands::status::{ControlRequest, Status},
    profile::{self, DEFAULT_NAME, ProfileDir},
};

/// How long to wait for an adit that lets its running answers end.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// How long to wait for an adit that ends, or has just begun, and cannot be asked.
const DUMB_FOR: Duration = Duration::from_secs(3);
/// After this time people are told what is waited for.
const UNNOTICED: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Takes possession of a server with `take`. Waits for an adit that is stopping. `what` cannot be
/// done otherwise, for people.
///
/// # Errors
/// If another adit uses the server, with the cure.
pub(super) async fn take<T>(
    profile_dir: &ProfileDir,
    what: &str,
    take: impl Fn(&Path) -> Result<T, ClaimError>,
) -> Result<T, Failure> {
    let (began, mut told) = (Instant::now(), false);
    loop {
        let taken = match take(&profile_dir.dir) {
            Ok(taken) => return Ok(taken),
            Err(ClaimError::File(e)) => return Err(e.into()),
            Err(ClaimError::Taken { pid }) => pid,
        };
        let asked = control::ask::<_, Status>(&profile_dir.dir, &ControlRequest::Status).await;
        let status = asked.ok().flatten();
        let within = match &status {
            Some(status) if status.stopping => STOPPED_WITHIN,
            Some(_) => Duration::ZERO,
            None => DUMB_FOR,
        };
        if began.elapsed() >= within {
            return Err(in_use(profile_dir, what, taken, status.as_ref()));
        }
        if began.elapsed() > UNNOTICED && !std::mem::replace(&mut told, true) {
            say("adit: waiting for the running adit, which is stopping");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn in_use(
    profile_dir: &ProfileDir,
    what: &str,
    pid: Option<u32>,
    status: Option<&Status>,
) -> Failure {
    let argument = profile_dir.argument();
    let id = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let failure = Failure::new(what);
    let failure = match status {
        Some(status) if status.listening.is_empty() && !status.stopping => {
            let programs = human::count(status.programs as u64, "program");
            failure.source(format!("`adit run` holds the tunnel{id}, for {programs}"))
        }
        Some(status) if status.stopping => {
            failure.source(format!("`adit up` is still stopping{id}"))
        }
        _ => failure.source(format!("`adit up` is running already{id}")),
    };
    failure
        .hint(format!("to see what it does: `adit status{argument}`"))
        .hint(format!("to stop it: `adit down{argument}`"))
}

/// Another `adit up` of this user: the servers to which it holds a tunnel, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OtherAdit {
    pub(super) pid: u32,
    pub(super) servers: Vec<Name>,
    pub(super) listening: Vec<SocketAddr>,
}

impl OtherAdit {
    /// In words.
    pub(super) fn text(&self) -> String {
        let servers: Vec<_> = self.servers.iter().map(|name| format!(" {name}")).collect();
        format!("`adit up{}` (pid {})", servers.concat(), self.pid)
    }

    /// The commands that end it, and start it again for more servers. `arguments` would stand behind
    /// `adit up` for those alone.
    pub(super) fn together(&self, arguments: &str) -> String {
        let down: Vec<_> = self.servers.iter().map(|name| format!("adit down {name}")).collect();
        let servers: Vec<_> = self.servers.iter().map(|name| format!(" {name}")).collect();
        let up = match arguments {
            " --all" => arguments.to_owned(),
            "" => format!("{} {DEFAULT_NAME}", servers.concat()),
            _ => format!("{}{arguments}", servers.concat()),
        };
        format!("`{} && adit up{up}`", down.join(" && "))
    }
}

/// Each `adit up` with this state directory but that of `except`.
pub(super) async fn others(state_dir: &Path, except: &Name) -> Vec<OtherAdit> {
    let mut found: Vec<OtherAdit> = Vec::new();
    for name in profile::known(state_dir).unwrap_or_default() {
        if name == *except {
            continue;
        }
        let other = ProfileDir::new(state_dir, name.clone());
        let asked = control::ask::<_, Status>(&other.dir, &ControlRequest::Status).await;
        let Ok(Some(status)) = asked else { continue };
        let listening = status.listening.iter().filter_map(|address| address.parse().ok());
        match found.iter_mut().find(|other| other.pid == status.pid) {
            Some(same) => {
                same.servers.push(name);
                same.listening.extend(listening);
            }
            None => found.push(OtherAdit {
                pid: status.pid,
                servers: vec![name],
                listening: listening.collect(),
            }),
        }
    }
    found
}
