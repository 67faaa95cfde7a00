//! What the two processes of a tunnel hold: memory, descriptors and tasks.

use std::time::Duration;

use serde::Serialize;

use crate::{
    process::Process,
    world::{Device, SOON, Up, World},
};

/// How much more memory a process may have after its work than before, in KiB.
const MAY_GROW: u64 = 10_000;
/// Sockets are closed a moment after their last byte. An SSH connection that was given up in an outage
/// is closed when TCP sends again: after several outages its pauses are long.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);

/// What one process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// Resident memory.
    pub rss_kib: u64,
    /// Open file descriptors.
    pub fds: usize,
    /// Tasks of its runtime.
    pub tasks: u64,
}

/// What both hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    pub server: Holds,
    pub client: Holds,
}

fn holds(process: &Process, status: &serde_json::Value) -> Holds {
    let tasks = status["tasks"].as_u64().expect("a number");
    Holds { rss_kib: process.rss(), fds: process.fds(), tasks }
}

/// Waits until no connection and no stream is open, and returns what both hold then.
///
/// # Panics
/// If connections stay open, with `when`.
pub async fn quiet(world: &World, device: &Device, up: &Up, when: &str) -> Held {
    let settled = async {
        loop {
            let (server, client) = (world.status().await, device.status().await);
            let sessions = server["sessions"].as_array().expect("a list");
            let is_idle = sessions.iter().all(|session| session["streams"] == 0);
            if client["connections"] == 0 && is_idle {
                let (server, client) = (holds(&world.aditd, &server), holds(&up.adit, &client));
                return Held { server, client };
            }
        }
    };
    tokio::time::timeout(SOON, settled)
        .await
        .unwrap_or_else(|_| panic!("{when}: connections stay open"))
}

/// Like [`quiet`]; waits a while for descriptors and tasks of which there were fewer `before`.
pub async fn quiet_after(world: &World, device: &Device, up: &Up, before: &Held) -> Held {
    let deadline = tokio::time::Instant::now() + CLOSED_WITHIN;
    loop {
        let now = quiet(world, device, up, "after").await;
        let more = |now: Holds, before: Holds| now.fds > before.fds || now.tasks > before.tasks;
        let is_more = more(now.server, before.server) || more(now.client, before.client);
        if !is_more || tokio::time::Instant::now() > deadline {
            return now;
        }
    }
}

impl Held {
    /// What a process holds more of than it did `before`.
    pub fn is_more_than(&self, before: &Self) -> Option<String> {
        let all = [("aditd", self.server, before.server), ("adit", self.client, before.client)];
        let more = all.into_iter().find(|(_, now, before)| {
            now.fds > before.fds
                || now.tasks > before.tasks
                || now.rss_kib >= before.rss_kib + MAY_GROW
        });
        more.map(|(name, now, before)| format!("{name} holds more: {before:?}, then {now:?}"))
    }
}
