//! What is examined on the way.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// What was found on the way.
#[derive(Debug, Clone)]
pub struct WayFound {
    /// Version of this `adit`.
    pub version: String,
    /// The argument with which `adit up` means this profile; empty or with a leading space.
    pub argument: String,
    /// The address for applications, for commands that people type.
    pub address: String,
    /// The names among the server's addresses, and the addresses to which they resolve.
    pub names: Vec<(String, Result<Vec<IpAddr>, String>)>,
    /// Whether UDP works; `None` if the device knows no address.
    pub udp: Option<Udp>,
    /// Whether SSH works; `None` if the device enrolled by a code.
    pub ssh: Option<Ssh>,
    /// The device's certificate has expired: a tunnel can only renew it.
    pub expired: bool,
    /// The tunnel; or why there is none.
    pub session: Result<SessionFound, Failure>,
    /// The answer to a request through the running tunnel; `None` if `adit up` does not run.
    pub request: Option<RequestFound>,
}

/// Whether UDP works.
#[derive(Debug, Clone)]
pub enum Udp {
    /// The server answers.
    Answers {
        /// Its address.
        remote: String,
        /// The round-trip time.
        rtt: Duration,
    },
    /// No answer from these addresses (`host:port`).
    Silent(Vec<String>),
    /// It failed for another reason.
    Failed(Failure),
}

/// Whether SSH works.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// The destination, as `adit enroll` takes it.
    pub to: String,
    /// The login; or why there is none.
    pub login: Result<LoginFound, Failure>,
}

/// A login by SSH.
#[derive(Debug, Clone)]
pub struct LoginFound {
    /// The credential in words, for example a key of the agent.
    pub by: String,
    /// Which commands of `aditd` the login may run.
    pub command: SshCommand,
    /// Whether the port of the server's relay can be reached by forwarding; `None` if no port is
    /// known or the client does not forward.
    pub forwards: Option<Result<(), String>>,
}

/// Which commands of `aditd` a login may run.
#[derive(Debug, Clone)]
pub enum SshCommand {
    /// All.
    Any,
    /// Only `aditd relay`: the key has a forced command.
    Relay,
    /// An older `aditd` answered, which has no `doctor`.
    Older,
    /// None.
    Nothing(Failure),
}

/// A tunnel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionFound {
    /// `udp` or `ssh`.
    pub carrier: String,
    /// The address of the server, or its SSH destination.
    pub remote: String,
    /// How long it has been up, in seconds.
    pub seconds: u64,
    /// For how many seconds nothing has arrived from the server.
    #[serde(default)]
    pub quiet_seconds: u64,
    /// Why the other carrier is not in use.
    pub why_not_other: String,
    /// This network drops packets with ECN marks.
    pub drops_ecn_marks: bool,
    /// Version of aditd.
    pub server_version: String,
    /// The longest datagram that is known to arrive, in bytes of UDP payload.
    pub mtu: u16,
    /// Batches of datagrams that the system refused.
    pub batches_refused: u64,
    /// The part of single packets that the link loses, from 0 to 1, if small packets are sent twice
    /// because of it. The copies hide losses from [`ProbeFound::lost`].
    #[serde(default)]
    pub redundancy_for_loss: Option<f64>,
    /// What was measured; or why nothing was.
    pub probe: Result<ProbeFound, String>,
}

/// What was measured by small questions and answers within two seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProbeFound {
    /// The shortest round trip, in milliseconds.
    pub shortest: f64,
    /// The median of the round trips, in milliseconds.
    pub middle: f64,
    /// The longest round trip, in milliseconds.
    pub longest: f64,
    /// Packets that this end sent meanwhile.
    pub sent: u64,
    /// Those of them that were lost.
    pub lost: u64,
    /// How far the server's clock is ahead of this one, in milliseconds.
    pub ahead: i64,
    /// What this computer's clock showed, in Unix seconds.
    pub now: i64,
}

/// The answer to a request through the running `adit up`.
#[derive(Debug, Clone)]
pub enum RequestFound {
    /// Ollama's version.
    Answered(String),
    /// An error: its status and text.
    Failed(u16, String),
    /// An answer without a body, or one that is not Ollama's.
    Unknown(Option<u16>),
    /// No answer.
    Silent(String),
}

impl WayFound {
    /// The findings for a device that is not enrolled: nothing was examined.
    pub fn unseen(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            argument: String::new(),
            address: String::new(),
            names: Vec::new(),
            udp: None,
            ssh: None,
            expired: false,
            session: Err(Failure::new("nobody has looked")),
            request: None,
        }
    }
}
