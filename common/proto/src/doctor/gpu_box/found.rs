//! What is found on the box.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{device::DeviceFound, ollama::Ollama};
use crate::{doctor::laptop::Buffers, failure::Failure};

/// What was found on the box. What nobody looked for is `None`, and has no line. Times are Unix
/// seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BoxFound {
    /// Version of this `aditd`.
    pub version: String,
    /// What stands behind an `aditd` command so that it means this server.
    pub argument: String,
    /// Whether it runs.
    pub server: ServerFound,
    /// The configuration's path, if there is one; or what is wrong with it.
    pub config: Option<Result<Option<String>, Failure>>,
    /// Where the state is, and what is wrong with it.
    pub state: Option<(String, Vec<Failure>)>,
    /// The clock; or why it can't be right.
    pub clock: Option<Result<i64, Failure>>,
    /// The last second of the server's certificate, and the clock.
    pub certificate: Option<(i64, i64)>,
    /// What systemd knows of it, where there is systemd.
    pub unit: Option<Unit>,
    /// Ollama.
    pub ollama: Ollama,
    /// Requests that are forwarded at once.
    pub max_in_flight: Option<InFlight>,
    /// File systems that must not be full.
    pub disks: Vec<Disk>,
    /// The owner's own rules, if there are any.
    pub authorize: Option<Authorize>,
    /// The audit log.
    pub audit: Option<AuditLog>,
    /// Who is enrolled.
    pub devices: Option<Devices>,
    /// The device that asks.
    pub device: Option<DeviceFound>,
    /// How large the kernel lets socket buffers be.
    pub buffers: Option<Buffers>,
}

/// Whether `aditd` runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ServerFound {
    /// No.
    NotRunning {
        /// The state that nobody serves.
        state_dir: String,
    },
    /// Yes.
    Running {
        /// Its process id.
        pid: u32,
        /// Its version.
        version: String,
        /// UDP addresses that it listens on.
        listening: Vec<std::net::SocketAddr>,
        /// What devices are told.
        addresses: Vec<String>,
        /// Networks that may speak to it.
        networks: Vec<String>,
        /// Batches of datagrams that a network card refused.
        batches_refused: u64,
    },
    /// One runs here, on the state of another user.
    OfAnother,
    /// It could not be asked.
    Unasked(Failure),
}

/// What systemd knows of `aditd`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unit {
    /// Its unit, if there is one.
    pub state: Option<UnitState>,
    /// The user who runs this.
    pub user: String,
    /// Whether that user's services run without a login.
    pub lingers: bool,
}

/// A unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnitState {
    /// It is that user's own.
    pub is_users: bool,
    /// It starts at boot.
    pub enabled: bool,
    /// `active`, `failed` …
    pub active: String,
}

/// How many requests are forwarded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InFlight {
    /// As many as come.
    All,
    /// So many; the others wait.
    Most(u64),
}

/// A file system that something of ours is on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Disk {
    /// What is there: `state`, `models`.
    pub what: String,
    /// Where.
    pub path: String,
    /// Bytes that may still be written.
    pub free: u64,
    /// With less it will be full soon, in bytes.
    pub enough: u64,
}

/// The owner's own rules.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Authorize {
    /// Where they are asked.
    pub address: String,
    /// A command that asks there by hand.
    pub by_hand: String,
    /// How long the answer took; or why there was none.
    pub answered: Result<Duration, String>,
}

/// The audit log of the running server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditLog {
    /// Where it is.
    pub dir: String,
    /// Requests are refused while it can't be written.
    pub required: bool,
    /// Why it can't be written.
    pub failing: Option<String>,
    /// Lines that were lost since the start.
    pub lost: u64,
}

/// Who is enrolled.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Devices {
    /// How many, and how many of them are connected.
    pub enrolled: u64,
    /// See there.
    pub connected: u64,
    /// Devices with a role that the configuration does not have.
    pub without_role: Vec<String>,
}
