//! The running server, as all its parts and the other commands see it.

pub mod sessions;

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::machine::{process::unix_now, report::Failure};
use proto::{
    identity::{DeviceId, Name},
    repeats::Repeats,
    wire::Enrolled,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    accounting::Accounting,
    audit::{AuditSettings, AuditStatus},
    config::{self, Settings},
    gate::Gate,
    limits::Asker,
    policy::Policy,
    running::sessions::{SessionStatus, Sessions},
    state::{
        State,
        register::{Register, RegisterError},
    },
};

/// How often the register is looked at for changes that nobody announced.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often this machine's addresses are looked at when nobody asks for them.
const ADDRESSES_EVERY: Duration = Duration::from_secs(5);
/// The same failure of the register is in the log once in this time.
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// Said of a server that nobody can reach.
pub const NOWHERE: &str = "this machine has no address, besides loopback, that fits --listen";

/// What all parts of a running server share.
pub struct Server {
    /// The state directory.
    pub state: State,
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// What every request to an `http` service passes.
    pub gate: Gate,
    /// Who is connected.
    pub live: Arc<Sessions>,
    /// Where it is found.
    pub open: Open,
    /// How long a device's certificate is good.
    pub device_life: Duration,
    /// How long a silent device keeps its session.
    pub idle_timeout: Duration,
    /// How much may be asked for, and what is noted of it.
    pub accounting: Accounting,
    /// Cancelled when the server takes no more streams.
    pub draining: CancellationToken,
    /// What it was started with.
    pub settings: Settings,
    /// The register's, when it was last put in force.
    version: AtomicI64,
    refreshing: tokio::sync::Mutex<()>,
    /// Held from before the configuration is read until it is in force.
    pub(crate) reloading: tokio::sync::Mutex<()>,
    begun: Instant,
    failures: Mutex<Repeats>,
}

/// What the other commands ask the running server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How are you?
    Status,
    /// What has this device used of the day's tokens?
    Tokens {
        /// Its id.
        device: DeviceId,
    },
    /// Which settings are in force?
    InForce,
    /// The register has been changed: obey it now.
    Refresh,
    /// A user who may write the state wants this device enrolled.
    Enroll {
        /// Its name.
        name: Name,
        /// A PKCS #10 request (RFC 2986), DER.
        csr: Vec<u8>,
        /// The user.
        uid: u32,
    },
    /// The configuration has been changed: read it again.
    Reload {
        /// The file that has been changed, if it was named.
        named: Option<PathBuf>,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<ServerStatus>),
    /// To [`Request::Tokens`].
    Tokens(Option<TokensToday>),
    /// To [`Request::Refresh`]: how many sessions were cut.
    Refreshed {
        /// Sessions that were cut.
        cut: usize,
    },
    /// To [`Request::InForce`].
    InForce(InForce),
    /// To [`Request::Enroll`].
    Enrolled(Box<Enrolled>),
    /// To [`Request::Reload`].
    Reloaded {
        /// The file that has been read.
        file: PathBuf,
        /// Settings that need a restart.
        later: Vec<String>,
        /// What is hardly meant.
        remarks: Vec<String>,
    },
    /// It could not be done, why, and what cures it.
    Failed(Failure),
}

/// The settings of the running server that the commands beside it need.
#[derive(Debug, Serialize, Deserialize)]
pub struct InForce {
    /// The roles there are.
    pub roles: Vec<Name>,
    /// The audit log.
    pub audit: AuditSettings,
    /// Where devices are told to find the server.
    pub addresses: Vec<String>,
}

/// The running server does not answer what it was asked.
pub(crate) fn of_another_version() -> Failure {
    Failure::new("the running aditd gave an unexpected answer")
        .hint("restart aditd: the running one may be another version")
}

/// A running server, as `aditd status` shows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// UDP addresses that it listens on.
    pub listening: Vec<String>,
    /// The port of its relay on loopback, for keys that may only forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<u16>,
    /// What devices are told.
    pub addresses: Vec<String>,
    /// The configuration file, if it has one.
    pub config: Option<PathBuf>,
    /// Where it forwards to.
    pub upstream: String,
    /// The networks that may speak to it, besides this machine.
    pub allow_from: Vec<String>,
    /// Where metrics are told, if anywhere.
    pub metrics: Option<String>,
    /// The roles there are.
    pub roles: Vec<Name>,
    /// For how many seconds of silence a session is kept; a device may ask for less.
    pub idle_timeout: u64,
    /// What the system granted the first UDP socket for receiving and sending, in bytes.
    pub socket_buffers: Option<(usize, usize)>,
    /// Sessions.
    pub sessions: Vec<SessionStatus>,
    /// The audit log.
    pub audit: AuditStatus,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Tasks of the runtime, for those who look for leaks.
    pub tasks: usize,
}

/// What a device has used of the day's tokens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct TokensToday {
    /// Read and written ones together.
    pub used: u64,
    /// How many it may use.
    pub limit: Option<u64>,
}

/// Where a server is found.
#[derive(Debug, Clone)]
pub struct Open {
    /// UDP addresses that it listens on.
    pub listening: Vec<SocketAddr>,
    /// What the system granted the first of their sockets for receiving and sending, in bytes.
    pub socket_buffers: Option<(usize, usize)>,
    /// The port of its relay on loopback.
    pub relay: Option<u16>,
}

impl Server {
    /// Puts a server together on an opened state.
    pub fn new(
        state: State,
        policy: Arc<Policy>,
        accounting: Accounting,
        version: i64,
        settings: Settings,
        open: Open,
    ) -> Arc<Self> {
        let hooks = Arc::new(accounting.clone());
        Arc::new(Self {
            gate: Gate::new(policy.clone(), hooks.clone(), hooks),
            state,
            policy,
            live: Arc::default(),
            open,
            accounting,
            device_life: settings.config.device_life,
            idle_timeout: settings.config.idle_timeout,
            draining: CancellationToken::new(),
            settings,
            version: AtomicI64::new(version),
            refreshing: tokio::sync::Mutex::default(),
            reloading: tokio::sync::Mutex::default(),
            begun: Instant::now(),
            failures: Mutex::new(Repeats::new(SAY_AGAIN)),
        })
    }

    /// Runs `work` on the register where blocking hurts nobody. A failure is logged here.
    pub async fn in_register<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Register) -> Result<T, RegisterError> + Send + 'static,
    ) -> Result<T, RegisterError> {
        let register = self.state.register.clone();
        let result = tokio::task::spawn_blocking(move || work(&register)).await;
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        if let Err(e) = &result {
            let why = std::error::Error::source(e).map(ToString::to_string).unwrap_or_default();
            let text = format!("{e}: {why}");
            if self.failures().is_news(&text, self.begun.elapsed()) {
                error!("{text}");
            }
        }
        result
    }

    fn failures(&self) -> MutexGuard<'_, Repeats> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where devices are told to find it, now.
    pub fn addresses(&self) -> Vec<String> {
        let config = &self.settings.config;
        config::addresses(&config.advertise, &self.open.listening, &config.audience)
    }

    /// Keeps in the register where devices find the server, for commands that run while it does
    /// not.
    pub async fn follow_addresses(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(ADDRESSES_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = None;
        loop {
            ticks.tick().await;
            let now = self.addresses();
            if known.as_ref() == Some(&now) {
                continue;
            }
            let kept = now.clone();
            // A failure is in the log; it is tried again.
            if self.in_register(move |register| register.set_addresses(&kept)).await.is_err() {
                continue;
            }
            if now.is_empty() {
                warn!("{NOWHERE}: name the address for devices with --advertise HOST:PORT");
            } else {
                info!("devices are told to connect to {}", now.join(", "));
            }
            known = Some(now);
        }
    }

    /// Looks at the register and puts what it says in force; sessions that it no longer admits are
    /// cut. Returns how many.
    pub async fn refresh(&self) -> Result<usize, RegisterError> {
        // One at a time: an older look must not take the place of a newer one.
        let _turn = self.refreshing.lock().await;
        let snapshot = self.in_register(Register::snapshot).await?;
        self.policy.update(snapshot);
        self.gate.judge_again();
        let devices: HashSet<_> =
            self.policy.snapshot().devices().map(|device| device.id).collect();
        self.accounting.limiter.retain(|id| devices.contains(&id));
        Ok(self.live.enforce(&self.policy))
    }

    /// Follows changes that other processes make, announced or not.
    pub async fn follow_register(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Ok(version) = self.in_register(Register::version).await else {
                continue;
            };
            if version != self.version.load(Relaxed) && self.refresh().await.is_ok() {
                self.version.store(version, Relaxed);
                if self.failures().passed() {
                    info!("the register can be read again, and is in force");
                }
            }
        }
    }

    /// What it is doing.
    pub fn status(&self) -> ServerStatus {
        let config = &self.settings.config;
        ServerStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            listening: self.open.listening.iter().map(ToString::to_string).collect(),
            relay: self.open.relay,
            addresses: self.addresses(),
            config: config.file.clone(),
            upstream: config.upstream.to_string(),
            allow_from: config.audience.networks().iter().map(ToString::to_string).collect(),
            metrics: config.accounting.metrics.as_ref().map(ToString::to_string),
            roles: self.policy.rules().names().cloned().collect(),
            idle_timeout: self.idle_timeout.as_secs(),
            socket_buffers: self.open.socket_buffers,
            sessions: self.live.status(),
            audit: self.accounting.audit.status(),
            waiting: self.accounting.queue.waiting(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        }
    }

    /// The settings that the commands beside it need.
    pub fn in_force(&self) -> InForce {
        InForce {
            roles: self.policy.rules().names().cloned().collect(),
            audit: self.settings.config.accounting.audit.clone(),
            addresses: self.addresses(),
        }
    }

    /// What a device has used of the day's tokens, if it has used some or may use so many only.
    pub fn tokens_today(&self, id: DeviceId) -> Option<TokensToday> {
        let register = self.policy.snapshot();
        let device = register.devices().find(|device| device.id == id)?;
        let asker = Asker { id, name: &device.name, role: device.role.as_str() };
        let (used, limit) = self.accounting.limiter.tokens(asker, unix_now());
        (used > 0 || limit.is_some()).then_some(TokensToday { used, limit })
    }
}
