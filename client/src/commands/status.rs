//! `adit status`: shows the state of the running `adit up`.

mod history;
mod ollama;
pub(crate) mod several;
mod text;
mod watch;

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

use clap::Args;
use common::machine::{
    control,
    files::FileError,
    report::{Failure, data, style, typed},
};
use proto::{
    device_key::KeyStorage,
    identity::{DeviceId, Name},
    wire::{DEFAULT_SERVICE, QueueAnswer},
};
use serde::{Deserialize, Serialize};

pub(crate) use self::ollama::OllamaStatus;
pub(super) use self::ollama::{ask as ask_ollama, ask_version};
pub(in crate::commands) use self::text::stopping;
use crate::{
    dial::{NextAttempt, plan::DialPlan},
    profile::{DEFAULT_NAME, ProfileDir},
    tunnel::{
        Tunnel,
        events::TunnelEvent,
        state::{ServerRefusal, TunnelState, Up},
    },
};

/// How often the tunnel is asked whether it still carries, while Ollama is asked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long to wait for an adit that is ending.
const ENDED_WITHIN: Duration = Duration::from_secs(3);
const ENDS_EVERY: Duration = Duration::from_millis(20);
/// Even if no request runs, something arrives from the server at least every five seconds.
const QUIET: u64 = 6;

/// A request to the running `adit up`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlRequest {
    /// Asks for its status.
    Status,
    /// Asks for a close look at the tunnel.
    Doctor,
    /// Asks for a port for the asking process alone, as long as that process runs.
    Lease,
    /// Asks that the tunnel ends, and the process goes on with its tunnels to other servers. The
    /// answer is its status.
    End {
        /// Whether running answers are aborted.
        now: bool,
    },
    /// The same for a service besides Ollama.
    LeaseOf(Name),
}

/// A running `adit up`. Times are Unix seconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Version of this document.
    pub(crate) schema: u32,
    /// Version of adit.
    pub(crate) version: String,
    /// Its process id.
    pub(crate) pid: u32,
    /// The server's name on this device.
    pub(crate) server: Name,
    /// What the server calls this device.
    pub(crate) device: Name,
    pub(crate) device_id: DeviceId,
    /// How this device keeps its private key.
    #[serde(default)]
    pub(crate) key_storage: KeyStorage,
    /// Where that is, if it is in hardware.
    #[serde(default)]
    pub(crate) key: Option<String>,
    /// The last second of the certificate's validity.
    pub(crate) certificate_until: i64,
    /// The addresses on which it listens for applications.
    pub(crate) listening: Vec<String>,
    /// The Unix sockets at which it listens, as `unix:/PATH`.
    #[serde(default)]
    pub(crate) sockets: Vec<String>,
    /// The services besides Ollama: those that the server offers, and those that are served here.
    #[serde(default)]
    pub(crate) services: Vec<ServiceStatus>,
    pub(crate) tunnel: TunnelStatus,
    /// Connections that are carried, or wait for the tunnel.
    pub(crate) connections: usize,
    /// Programs of `adit run` that use the tunnel.
    #[serde(default)]
    pub(crate) programs: usize,
    /// Bytes from applications into the tunnel.
    pub(crate) sent: u64,
    /// Bytes from the tunnel to applications.
    pub(crate) received: u64,
    /// Recent events, oldest first.
    pub(crate) events: Vec<TunnelEvent>,
    /// The number of tasks in the runtime, for finding leaks.
    pub(crate) tasks: usize,
    /// It is stopping: it accepts no more connections, and waits for running answers.
    #[serde(default)]
    pub(crate) stopping: bool,
    /// For how many seconds running answers may still go on, while it is stopping.
    #[serde(default)]
    pub(crate) stopping_seconds_left: Option<u64>,
    /// The requests of this device that wait in the server's queue; none if the server does not tell.
    #[serde(default)]
    pub(crate) queue: QueueAnswer,
    /// The answer of Ollama, if it was asked. The running `adit up` does not ask by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ollama: Option<OllamaStatus>,
}

/// A service besides Ollama.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceStatus {
    pub(crate) name: Name,
    /// What it speaks: `http`, `openai` or `tcp`; `None` if the server does not offer it.
    pub(crate) kind: Option<String>,
    /// Its addresses for applications; none if it was not asked for.
    pub(crate) listening: Vec<String>,
}

impl ServiceStatus {
    /// What the server offers besides Ollama, and what is `served` here.
    pub(crate) fn all(tunnel: &Tunnel, served: &[(Name, Vec<String>)]) -> Vec<Self> {
        let offered = tunnel.services();
        let mut all: Vec<_> = offered
            .iter()
            .filter(|service| service.name.as_str() != DEFAULT_SERVICE)
            .map(|service| Self {
                name: service.name.clone(),
                kind: Some(service.speaks().to_owned()),
                listening: Vec::new(),
            })
            .collect();
        for (name, listening) in served {
            match all.iter_mut().find(|service| service.name == *name) {
                Some(service) => service.listening.extend(listening.iter().cloned()),
                None => {
                    all.push(Self { name: name.clone(), kind: None, listening: listening.clone() })
                }
            }
        }
        all
    }

    /// Its first address, with the scheme that its kind has.
    pub(crate) fn url(&self) -> Option<String> {
        let address = self.listening.first()?;
        let scheme = match self.kind.as_deref() {
            _ if address.starts_with("unix:") => "",
            Some("tcp") => "tcp://",
            _ => "http://",
        };
        Some(format!("{scheme}{address}"))
    }
}

/// The state of the tunnel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum TunnelStatus {
    /// The server answers.
    Up(UpStatus),
    /// There is a session, but the server is silent.
    Silent(UpStatus),
    /// There is no session.
    Down {
        /// Since how many seconds.
        seconds: u64,
        why: String,
        /// How to cure it, if that is known.
        hint: Option<String>,
    },
    /// The server has refused this device.
    Refused {
        why: String,
        /// How to cure it, if the reason does not say so itself.
        hint: Option<String>,
    },
}

/// A tunnel with a session.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UpStatus {
    /// Since when.
    pub(crate) since: i64,
    /// The carrier of its packets.
    pub(crate) carrier: String,
    /// Since when.
    pub(crate) carrier_since: i64,
    /// The server's address.
    pub(crate) remote: String,
    /// Why the other carrier is not in use.
    pub(crate) why_not_other: String,
    /// The idle time-out of the session, in seconds.
    pub(crate) idle_timeout: u64,
    /// Whose time-out applies: `device` or `server`.
    pub(crate) idle_timeout_by: String,
    /// The sizes of the UDP socket's receive and send buffers, in bytes; none over SSH.
    pub(crate) socket_buffers: Option<(usize, usize)>,
    /// Whether packets carry ECN marks (RFC 3168).
    pub(crate) ecn_marks: bool,
    /// Whether packets carry no ECN marks because packets with marks were not answered on this
    /// network.
    pub(crate) drops_ecn_marks: bool,
    /// For how many seconds nothing has arrived from the server.
    #[serde(default)]
    pub(crate) quiet_seconds: u64,
    /// Round-trip time in milliseconds.
    pub(crate) rtt_ms: f64,
    pub(crate) sent_packets: u64,
    pub(crate) lost_packets: u64,
    /// Packets sent in the last minute.
    #[serde(default)]
    pub(crate) recently_sent_packets: u64,
    /// Packets lost in the last minute.
    #[serde(default)]
    pub(crate) recently_lost_packets: u64,
    /// The part of the packets that this link loses, from 0 to 1, if small ones are sent twice for
    /// that reason now.
    #[serde(default)]
    pub(crate) redundancy_for_loss: Option<f64>,
    /// Small packets that were sent a second time in this session.
    #[serde(default)]
    pub(crate) repeated_packets: u64,
    /// Their bytes.
    #[serde(default)]
    pub(crate) repeated_bytes: u64,
    /// How far the server's clock was ahead of this computer's when the session began, in
    /// milliseconds; null if the server does not say.
    #[serde(default)]
    pub(crate) server_clock_ahead_ms: Option<i64>,
    /// Version of aditd.
    pub(crate) server_version: String,
}

/// Flags of `status`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Show the tunnel to the server with this name [default: each that runs]
    pub(crate) name: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ask Ollama too, as without `--json`; this sends one more request through the tunnel
    #[arg(long, requires = "json", conflicts_with = "watch")]
    ollama: bool,
    /// Show it again each second until Ctrl-C, with the last minute; Ollama is not asked
    #[arg(long, short)]
    watch: bool,
}

/// Asks the running adit of a profile for its status. One whose end is only a moment away is waited
/// for: it serves nobody any more.
///
/// # Errors
/// If one runs and does not answer.
pub(super) async fn ask(profile_dir: &ProfileDir) -> Result<Option<Status>, FileError> {
    let began = tokio::time::Instant::now();
    loop {
        let status: Option<Status> =
            control::ask(&profile_dir.dir, &ControlRequest::Status).await?;
        let is_ending = status.as_ref().is_some_and(Status::is_ending);
        if !is_ending || began.elapsed() > ENDED_WITHIN {
            return Ok(status);
        }
        tokio::time::sleep(ENDS_EVERY).await;
    }
}

/// Asks the running `adit up` of a profile for its status and prints it. With `--json`, Ollama is
/// asked only with `--ollama`: programs ask often, and each request to Ollama counts against this
/// device's limits and is written to the audit log.
///
/// # Errors
/// If none runs.
pub(crate) async fn run(profile_dir: &ProfileDir, show: Show) -> Result<(), Failure> {
    let Show { json, ollama, watch, .. } = show;
    if watch {
        return watch::run(profile_dir, json).await;
    }
    let Some(mut status) = ask(profile_dir).await? else {
        // If the device is not enrolled or its profile is damaged, that is the better error.
        profile_dir.read()?;
        return Err(Failure::new("adit is not running")
            .hint(format!("start it with `adit up{}`", profile_dir.argument())));
    };
    if ollama || !json {
        status = with_ollama(profile_dir, status).await;
    }
    if json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|e| Failure::new("cannot write JSON").source(e))?;
        return data(text);
    }
    data(status.to_text(style().width))
}

/// Adds what Ollama answers, if the tunnel carries. While it is asked the tunnel may find out that
/// its server is silent: then that is the status.
async fn with_ollama(profile_dir: &ProfileDir, mut status: Status) -> Status {
    let (true, Some(address)) = (status.tunnel.carries(), status.listening.first().cloned()) else {
        return status;
    };
    let silent = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let asked = control::ask::<_, Status>(&profile_dir.dir, &ControlRequest::Status).await;
            if let Ok(Some(status)) = asked
                && !status.tunnel.carries()
            {
                return status;
            }
        }
    };
    tokio::select! {
        answer = ask_ollama(&address) => {
            status.ollama = Some(answer);
            status
        }
        status = silent => status,
    }
}

impl Status {
    /// The status of a running tunnel.
    pub(crate) fn of(
        tunnel: &Tunnel,
        listening: &[String],
        connections: usize,
        stopping: bool,
    ) -> Self {
        let profile = tunnel.profile();
        let state = match &*tunnel.state().borrow() {
            TunnelState::Up(up) => TunnelStatus::Up(UpStatus::of(up, tunnel.plan())),
            TunnelState::Silent(up) => TunnelStatus::Silent(UpStatus::of(up, tunnel.plan())),
            TunnelState::Down(down) => TunnelStatus::Down {
                seconds: down.since.elapsed().as_secs(),
                why: down.why.to_string(),
                hint: down.why.hint(&profile, NextAttempt::Automatic).map(typed),
            },
            TunnelState::Refused(ServerRefusal { why, .. }) => TunnelStatus::Refused {
                why: why.to_string(),
                hint: why.hint(&profile, NextAttempt::Automatic).map(typed),
            },
        };
        Self {
            schema: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            key_storage: profile.key().storage(),
            key: profile.key().place(),
            certificate_until: profile.certificate().map_or(0, |c| c.not_after),
            server: profile.profile_dir.name,
            device: profile.enrolled.device,
            device_id: profile.enrolled.device_id,
            listening: listening.to_vec(),
            sockets: Vec::new(),
            services: Vec::new(),
            tunnel: state,
            connections,
            programs: 0,
            sent: tunnel.counters.sent.load(Relaxed),
            received: tunnel.counters.received.load(Relaxed),
            events: tunnel.events.latest(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            stopping,
            stopping_seconds_left: None,
            queue: QueueAnswer::default(),
            ollama: None,
        }
    }

    /// Whether it is stopping and nothing uses it any more, so that it ends in a moment.
    pub(super) fn is_ending(&self) -> bool {
        self.stopping && self.connections == 0
    }

    /// What the server is called here: its name, or its address if it has only the name that every
    /// first server gets.
    pub(in crate::commands) fn host(&self) -> &str {
        match &self.tunnel {
            TunnelStatus::Up(up) | TunnelStatus::Silent(up)
                if self.server.as_str() == DEFAULT_NAME =>
            {
                up.remote.rsplit_once(':').map_or(&*up.remote, |(host, _)| host)
            }
            _ => self.server.as_str(),
        }
    }
}

impl UpStatus {
    fn of(up: &Up, plan: &DialPlan) -> Self {
        let stats = up.connection.stats();
        let recent = up.recent_packets();
        let (protection, repeated) = up.redundancy_now();
        let carried = up.carried();
        let (ours, theirs) = (plan.idle_timeout.as_secs(), up.hello.idle_timeout);
        Self {
            since: up
                .since
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs() as i64),
            carrier: carried.route.carrier().to_owned(),
            carrier_since: carried.since,
            remote: carried.route.to_string(),
            why_not_other: carried.why_not_the_other(plan),
            idle_timeout: ours.min(theirs),
            idle_timeout_by: if ours <= theirs { "device" } else { "server" }.to_owned(),
            socket_buffers: carried.carrier.buffers(),
            ecn_marks: carried.carrier.has_marks(),
            drops_ecn_marks: carried.drops_ecn_marks(),
            quiet_seconds: up.quiet_for().as_secs(),
            rtt_ms: up.connection.rtt().as_secs_f64() * 1e3,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            recently_sent_packets: recent.sent,
            recently_lost_packets: recent.lost,
            redundancy_for_loss: protection.map(|protection| protection.loss),
            repeated_packets: repeated.datagrams,
            repeated_bytes: repeated.bytes,
            server_clock_ahead_ms: up.ahead,
            server_version: up.hello.version.clone(),
        }
    }
}

impl TunnelStatus {
    /// Whether the server answers, as far as is known.
    fn carries(&self) -> bool {
        matches!(self, Self::Up(up) if up.quiet_seconds < QUIET)
    }
}
