//! What is found on the way.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// What was found on the way.
#[derive(Debug, Clone)]
pub struct WayFound {
    /// Version of this `adit`.
    pub version: String,
    /// What stands behind `adit up` so that it means this profile.
    pub argument: String,
    /// Where applications connect, for commands that people type.
    pub address: String,
    /// The names among the server's addresses, and what they stand for.
    pub names: Vec<(String, Result<Vec<IpAddr>, String>)>,
    /// What became of UDP; `None` if the device knows no address.
    pub udp: Option<Udp>,
    /// What became of SSH; `None` if the device enrolled by a code.
    pub ssh: Option<Ssh>,
    /// The device's certificate has ended, so that a tunnel does nothing but renew it.
    pub expired: bool,
    /// The tunnel; or why there is none.
    pub session: Result<SessionFound, Failure>,
    /// The running tunnel's own connection to Ollama; `None` if `adit up` does not run.
    pub request: Option<RequestFound>,
}

/// What became of UDP.
#[derive(Debug, Clone)]
pub enum Udp {
    /// The server answers.
    Answers {
        /// Where.
        remote: String,
        /// The round trip.
        rtt: Duration,
    },
    /// Nobody answers at these addresses (`host:port`).
    Silent(Vec<String>),
    /// Something else.
    Failed(Failure),
}

/// What became of SSH.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// Where, as `adit enroll` takes it.
    pub to: String,
    /// Logged in; or why not.
    pub login: Result<LoginFound, Failure>,
}

/// A login by SSH.
#[derive(Debug, Clone)]
pub struct LoginFound {
    /// By what: a key, an agent's key …
    pub by: String,
    /// Which command of aditd could be run.
    pub command: SshCommand,
    /// Whether the port of the server's relay can be reached by forwarding; `None` if no port is known
    /// or the client does not forward.
    pub forwards: Option<Result<(), String>>,
}

/// What a login may run.
#[derive(Debug, Clone)]
pub enum SshCommand {
    /// Any command of aditd.
    Any,
    /// `aditd relay`, whatever is asked for: the key has a forced command.
    Relay,
    /// aditd answered, and an older one has no `doctor`.
    Older,
    /// None.
    Nothing(Failure),
}

/// A tunnel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionFound {
    /// `udp` or `ssh`.
    pub carrier: String,
    /// Where it goes.
    pub remote: String,
    /// For how many seconds it has been up.
    pub seconds: u64,
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
    /// What was measured on it; or why nothing was.
    pub probe: Result<ProbeFound, String>,
}

/// What two seconds of small questions and answers have shown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProbeFound {
    /// Round trips in milliseconds: the shortest, the one in the middle, the longest.
    pub shortest: f64,
    /// See there.
    pub middle: f64,
    /// See there.
    pub longest: f64,
    /// Packets sent in that time.
    pub sent: u64,
    /// Those of them that were lost.
    pub lost: u64,
    /// How far the server's clock is ahead of this one, in milliseconds.
    pub ahead: i64,
    /// What this computer's clock showed, in Unix seconds.
    pub now: i64,
}

/// What a request through the running `adit up` was answered.
#[derive(Debug, Clone)]
pub enum RequestFound {
    /// Ollama's version.
    Answered(String),
    /// An error, by its status and text.
    Failed(u16, String),
    /// An answer without a body, or one that is not Ollama's.
    Unknown(Option<u16>),
    /// No answer.
    Silent(String),
}

impl WayFound {
    /// The way of a device that is not enrolled: nobody has looked.
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
