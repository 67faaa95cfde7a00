//! What is examined on the box.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Sandbox,
    device::DeviceFound,
    https::HttpsFound,
    ollama::Ollama,
    providers::{ProviderFound, SignInFound},
    services::ServiceFound,
};
use crate::{doctor::laptop::Buffers, failure::Failure};

/// What was found on the box. What was not examined is `None` and has no line. Times are Unix
/// seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BoxFound {
    /// Version of this `aditd`.
    pub version: String,
    /// Flags that an `aditd` command needs to mean this server; empty or with a leading space.
    pub argument: String,
    /// The command that starts the server again as it was started last.
    #[serde(default)]
    pub start: String,
    /// Whether it runs.
    pub server: ServerFound,
    /// The path of the configuration file, if there is one; or what is wrong with it.
    pub config: Option<Result<Option<String>, Failure>>,
    /// The state directory, and what is wrong with its files.
    pub state: Option<(String, Vec<Failure>)>,
    /// The time; or why the clock can't be right.
    pub clock: Option<Result<i64, Failure>>,
    /// The last second of the server's certificate, and the present time.
    pub certificate: Option<(i64, i64)>,
    /// The unit of `aditd`; `None` where there is no systemd.
    pub unit: Option<Unit>,
    pub ollama: Ollama,
    /// The services besides Ollama, and Ollama if it is not on this machine.
    #[serde(default)]
    pub services: Vec<ServiceFound>,
    /// Requests that are forwarded at once.
    pub max_in_flight: Option<InFlight>,
    /// File systems that must have free space.
    pub disks: Vec<Disk>,
    /// The owner's own service (`authorize`), if one is set.
    pub authorize: Option<Authorize>,
    /// The provider at which people sign in, if one is set.
    #[serde(default)]
    pub sign_in: Option<SignInFound>,
    /// The provider whose tokens count, if one is set.
    #[serde(default)]
    pub tokens: Option<ProviderFound>,
    pub audit: Option<AuditLog>,
    pub devices: Option<Devices>,
    /// The HTTPS listener, if it is on.
    #[serde(default)]
    pub https: Option<HttpsFound>,
    /// The device that asks; `None` for `aditd doctor`.
    pub device: Option<DeviceFound>,
    /// What the running server can still do on its machine.
    #[serde(default)]
    pub sandbox: Option<Sandbox>,
    /// How large the kernel lets socket buffers be.
    pub buffers: Option<Buffers>,
}

/// Whether `aditd` runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ServerFound {
    /// No.
    NotRunning {
        /// The state directory.
        state_dir: String,
    },
    /// Yes.
    Running {
        pid: u32,
        version: String,
        /// UDP addresses that it listens on.
        listening: Vec<std::net::SocketAddr>,
        /// The addresses to which devices are told to connect.
        addresses: Vec<String>,
        /// The networks that may reach it (`allow_from`).
        networks: Vec<String>,
        /// Batches of datagrams that a network card refused.
        batches_refused: u64,
        /// Where to the last one was.
        #[serde(default)]
        refused_to: Option<std::net::IpAddr>,
    },
    /// A server runs here, on the state of another user.
    OfAnother,
    /// It could not be asked.
    Unasked(Failure),
}

/// What systemd reports about `aditd`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unit {
    /// Its unit, if there is one.
    pub state: Option<UnitState>,
    /// The user who runs this command.
    pub user: String,
    /// Whether that user's services run without a login.
    pub lingers: bool,
}

/// A unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnitState {
    /// It is a unit of that user, not of the system.
    pub is_users: bool,
    /// It starts at boot.
    pub enabled: bool,
    /// `active`, `failed` …
    pub active: String,
}

/// How many requests are forwarded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InFlight {
    /// No limit.
    All,
    /// At most so many; the others wait in the queue.
    Most(u64),
}

/// The file system of a directory that needs free space.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Disk {
    /// What is in the directory: `state`, `audit log` or `models`.
    pub what: String,
    pub path: String,
    /// Free space in bytes.
    pub free: u64,
    /// The free space that it needs, in bytes.
    pub enough: u64,
}

/// The owner's own service (`authorize`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Authorize {
    /// Its address.
    pub address: String,
    /// A command that asks it by hand.
    pub by_hand: String,
    /// How long the answer took; or why there was none.
    pub answered: Result<Duration, String>,
}

/// The audit log of the running server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditLog {
    pub dir: String,
    /// Requests get 503 while the log can't be written (`audit_required`).
    pub required: bool,
    /// Why it can't be written now; `None` if it can.
    pub failing: Option<String>,
    /// What cures that, if it is known.
    #[serde(default)]
    pub cure: Option<String>,
    /// Lines that were lost since the start.
    pub lost: u64,
}

/// The devices of this server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Devices {
    /// How many are enrolled.
    pub enrolled: u64,
    /// How many of them are connected.
    pub connected: u64,
    /// Devices with a role that the configuration does not have.
    pub without_role: Vec<String>,
}
