//! The running server, as its parts and the other commands see it.

mod changes;
pub(crate) mod replacement;
mod rotation;
pub(crate) mod sessions;
mod status;
mod users;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use common::{machine::report::Failure, transport::carrier::SystemSocket};
use proto::{
    device_key::KeyStorage,
    doctor::gpu_box::BoxFound,
    identity::{DeviceId, Name},
    repeats::Repeats,
    wire::Enrolled,
};
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

pub(crate) use self::{
    status::{QueueStatus, ServerStatus, TokensToday},
    users::{UserRequest, UserStatus},
};
use crate::{
    accounting::Accounting,
    audit::{AuditSettings, Event},
    config::{self, Settings},
    gate::Gate,
    https::Https,
    oidc::{MAX_LIFE, SignIns},
    policy::Policy,
    running::{
        replacement::{Replacement, Replacements},
        sessions::Sessions,
    },
    state::{
        State,
        register::{Register, RegisterError, epoch::Proof},
    },
};

/// How often the register is checked for changes by other processes.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A command asks for its change this soon after it has written it.
const JUST_NOW: Duration = Duration::from_secs(5);
/// How often this machine's addresses are looked up without a request for them.
const ADDRESSES_EVERY: Duration = Duration::from_secs(5);
/// How often it is noted which keys were used.
const KEYS_EVERY: Duration = Duration::from_secs(5);
/// How long the same failure of the register is not logged again.
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// Logged if no device can reach the server.
pub(crate) const NOWHERE: &str =
    "this machine has no address, besides loopback, that fits --listen";

pub(crate) struct Server {
    pub(crate) state: State,
    pub(crate) policy: Arc<Policy>,
    /// The gate that every request to an `http` service passes.
    pub(crate) gate: Gate,
    pub(crate) live: Arc<Sessions>,
    /// The server's addresses and ports.
    pub(crate) open: Open,
    /// How long a device's certificate is valid.
    pub(crate) device_life: Duration,
    /// The provider at which people sign in.
    pub(crate) sign_ins: SignIns,
    /// The questions to it that are under way.
    pub(crate) asking: TaskTracker,
    /// How long a silent device keeps its session.
    pub(crate) idle_timeout: Duration,
    /// Limits, queue, audit log and metrics.
    pub(crate) accounting: Accounting,
    /// Cancelled when the server accepts no more streams.
    pub(crate) draining: CancellationToken,
    /// Cancelled when another process has replaced this one: it has the sockets, and devices begin
    /// their sessions there.
    pub(crate) replaced: CancellationToken,
    /// Orders to replace this process, and the older processes that it has replaced itself.
    pub(crate) replacements: Replacements,
    /// The settings that the server was started with.
    pub(crate) settings: Settings,
    /// The register's version when it was last put in force.
    version: AtomicI64,
    /// When sessions were last cut, and how many, until a command is told.
    cut_lately: Mutex<Option<(Instant, usize)>>,
    refreshing: tokio::sync::Mutex<()>,
    /// Held from before the configuration is read until it is in force.
    pub(crate) reloading: tokio::sync::Mutex<()>,
    begun: Instant,
    failures: Mutex<Repeats>,
    /// What `doctor` found last, and when.
    pub(crate) looked: tokio::sync::Mutex<Option<(Instant, BoxFound)>>,
}

/// Requests of other commands to the running server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Asks for the server's status.
    Status,
    /// Asks how many of the day's tokens a device has used.
    Tokens {
        /// The device's id.
        device: DeviceId,
    },
    /// Asks what is wrong.
    Doctor,
    /// Asks for the settings in force.
    InForce,
    /// The register was changed: apply it now.
    Refresh,
    /// A user with write access to the state enrolls a device.
    Enroll {
        /// The name that the user has chosen.
        name: Name,
        /// A PKCS #10 request (RFC 2986) in DER.
        csr: Vec<u8>,
        /// How the device keeps its key, as it says.
        #[serde(default)]
        key_storage: KeyStorage,
        /// The user.
        uid: u32,
    },
    /// Starts this program, which replaces the running process.
    Replace {
        /// Its path.
        program: PathBuf,
    },
    /// Asks how that stands.
    Replacement,
    /// A process that this one has replaced has charged tokens.
    Charged {
        /// By how many tokens the usage of each device has changed.
        tokens: HashMap<DeviceId, i64>,
    },
    /// The configuration was changed: read it again.
    Reload {
        /// The changed file, if the command names one.
        named: Option<PathBuf>,
    },
}

/// Answers to these requests.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The answer to [`Request::Status`].
    Status(Box<ServerStatus>),
    /// The answer to [`Request::Tokens`].
    Tokens(Option<TokensToday>),
    /// The answer to [`Request::Refresh`].
    Refreshed {
        /// How many sessions were cut.
        cut: usize,
    },
    /// The answer to [`Request::Doctor`].
    Doctor(Box<BoxFound>),
    /// The answer to [`Request::InForce`].
    InForce(InForce),
    /// The answer to [`Request::Enroll`].
    Enrolled(Box<Enrolled>),
    /// The answer to [`Request::Reload`].
    Reloaded {
        /// The file that was read.
        file: PathBuf,
        /// Changed settings that need a restart.
        later: Vec<String>,
        /// Settings that are probably mistakes.
        remarks: Vec<String>,
    },
    /// The answer to [`Request::Replace`] and [`Request::Replacement`].
    Replacement(Replacement),
    /// The answer to [`Request::Charged`].
    Charged,
    /// The request failed: why, and how to correct it.
    Failed(Failure),
}

/// The settings of the running server that other commands need.
#[derive(Debug, Serialize, Deserialize)]
pub struct InForce {
    /// The names of all roles.
    pub roles: Vec<Name>,
    pub audit: AuditSettings,
    /// The addresses of the HTTPS listener.
    #[serde(default)]
    pub https: Vec<String>,
    /// Whether tokens of a provider count.
    #[serde(default)]
    pub tokens: bool,
    /// Whether people can sign in at a provider.
    #[serde(default)]
    pub sign_in: bool,
    /// The addresses at which devices are told to find the server.
    pub addresses: Vec<String>,
}

/// The error when the running server gives an unknown answer.
pub(crate) fn of_another_version() -> Failure {
    Failure::new("the running aditd gave an unexpected answer")
        .hint("restart aditd: the running one may be another version")
}

/// The addresses and ports of a running server.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    /// The UDP addresses that it listens on.
    pub(crate) listening: Vec<SocketAddr>,
    /// The buffers that the system granted the first of these sockets for receiving and sending, in
    /// bytes.
    pub(crate) socket_buffers: Option<(usize, usize)>,
    pub(crate) relay: Option<u16>,
    /// The HTTPS listener, if it is on.
    pub(crate) https: Option<Arc<Https>>,
    /// The UDP sockets.
    pub(crate) sockets: Vec<Arc<SystemSocket>>,
}

impl Server {
    /// Creates a server on an opened state.
    pub(crate) fn new(
        state: State,
        policy: Arc<Policy>,
        accounting: Accounting,
        version: i64,
        settings: Settings,
        open: Open,
        replacements: Replacements,
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
            sign_ins: SignIns::new(settings.config.oidc.clone()),
            asking: TaskTracker::new(),
            idle_timeout: settings.config.idle_timeout,
            draining: CancellationToken::new(),
            replaced: CancellationToken::new(),
            replacements,
            settings,
            version: AtomicI64::new(version),
            cut_lately: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            reloading: tokio::sync::Mutex::default(),
            begun: Instant::now(),
            failures: Mutex::new(Repeats::new(SAY_AGAIN)),
            looked: tokio::sync::Mutex::default(),
        })
    }

    /// How long a certificate is valid. That of a device that has signed in is short: its renewal
    /// asks the provider.
    pub(crate) fn life_of(&self, has_signed_in: bool) -> Duration {
        if !has_signed_in {
            return self.device_life;
        }
        let longest = self.sign_ins.provider().map_or(MAX_LIFE, |it| it.settings().max_life);
        self.device_life.min(longest)
    }

    /// Runs `work` on the register in a thread where it may block. A failure is logged here.
    pub(crate) async fn in_register<T: Send + 'static>(
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

    /// The addresses at which devices are told to find the server now.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let config = &self.settings.config;
        config::addresses(&config.advertise, &self.open.listening, &config.audience)
    }

    /// Stores the server's addresses in the register whenever they change, for commands that run
    /// while the server does not.
    pub(crate) async fn follow_addresses(self: Arc<Self>) {
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
            // A failure was logged; it is tried again.
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

    /// Reads the register and puts it in force; cuts the sessions that it no longer admits. Returns
    /// how many.
    pub(crate) async fn refresh(&self) -> Result<usize, RegisterError> {
        // One at a time: an older state must not replace a newer one.
        let _turn = self.refreshing.lock().await;
        let snapshot = self.in_register(Register::snapshot).await?;
        let before = self.policy.snapshot();
        self.follow_cas(snapshot.cas()).await;
        self.policy.update(snapshot);
        self.gate.judge_again();
        let snapshot = self.policy.snapshot();
        let events = self.accounting.audit.events();
        if events.are_read() {
            for change in changes::changes(&before, &snapshot) {
                events.send(SystemTime::now(), &change);
            }
        }
        self.accounting
            .know(&snapshot, |user| Some(self.policy.tokens()?.settings().holder_id(user)));
        let cut = self.live.enforce(&self.policy);
        if cut > 0 {
            *self.cut_lately() = Some((Instant::now(), cut));
        }
        Ok(cut)
    }

    /// Puts a change in force that a command has just made. Returns how many sessions it has cut, also
    /// if they were cut before the command asked.
    pub(crate) async fn refresh_for_command(&self) -> Result<usize, RegisterError> {
        self.refresh().await?;
        let lately = self.cut_lately().take().filter(|(at, _)| at.elapsed() < JUST_NOW);
        Ok(lately.map_or(0, |(_, cut)| cut))
    }

    fn cut_lately(&self) -> MutexGuard<'_, Option<(Instant, usize)>> {
        self.cut_lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes for ever which keys are used.
    pub(crate) async fn note_keys(self: Arc<Self>, https: Arc<Https>) {
        loop {
            tokio::time::sleep(KEYS_EVERY).await;
            self.note_keys_now(&https).await;
        }
    }

    /// Notes in the register which keys were used since the last time.
    pub(crate) async fn note_keys_now(&self, https: &Https) {
        let seen = https.keys_to_note();
        if !seen.is_empty() {
            // A failure was logged; a key is not refused for it.
            let _ = self.in_register(move |register| register.keys_seen(&seen)).await;
        }
    }

    /// Hears what a device remembers of the register's epoch. If it proves that the register was put
    /// back to an older state, every device is held back.
    pub(crate) async fn hear_epoch(&self, id: DeviceId, remembered: &str) {
        let Some(remembered) = self.state.keys.epochs().open(remembered, id) else { return };
        let Some(proof) = self.policy.snapshot().history().hear(remembered) else { return };
        warn!(
            "a device proves that revocations are lost ({proof:?}): see `aditd device list` for devices to confirm"
        );
        self.accounting.audit.note(Event::RevocationsLost { lost: proof.lost() });
        let done = self
            .in_register(move |register| match proof {
                Proof::PutBack { lost } => register.hold_all(lost),
                Proof::LostBefore { lost } => register.note_lost(lost),
            })
            .await;
        if done.is_ok() {
            let _ = self.refresh().await;
        }
    }

    /// Puts changes by other processes in force, also those without a request.
    pub(crate) async fn follow_register(self: Arc<Self>) {
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

    /// The settings that other commands need.
    pub(crate) fn in_force(&self) -> InForce {
        InForce {
            roles: self.policy.rules().names().cloned().collect(),
            audit: self.settings.config.accounting.audit.clone(),
            https: self
                .open
                .https
                .iter()
                .flat_map(|https| https.listening())
                .map(ToString::to_string)
                .collect(),
            tokens: self.policy.tokens().is_some(),
            sign_in: self.sign_ins.provider().is_some(),
            addresses: self.addresses(),
        }
    }
}
