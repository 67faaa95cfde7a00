//! What a device meets after its first packet was admitted: a handshake with the certificate that the
//! CA has signed which the device knows. Its knock has told which one that is.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use common::{
    machine::{process::unix_now, report::Failure},
    transport::{
        self, LONGEST_DATAGRAM,
        tls::{self, Admit},
    },
};
use proto::{
    clock::{StepWatch, shown},
    rotation::CaNumber,
};
use quinn::ServerConfig;
use time::OffsetDateTime;
use tracing::{error, info, warn};

use crate::{
    ingress::verifier::DeviceVerifier,
    policy::Policy,
    running::Server,
    serve::certificate::ServerCertificate,
    state::{State, authorities::Authority},
};

/// How many attempts may wait to be judged.
const INCOMING: usize = 256;
const INCOMING_BUFFER: u64 = 64 << 10;
const INCOMING_BUFFERS: u64 = 4 << 20;
/// How often the wall clock is compared with the monotonic clock.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// How often the certificates are checked even if the clock was not set.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// The handshakes of those who know one CA.
#[derive(Clone)]
pub(super) struct Entrance {
    /// Only certificates of this CA pass.
    pub(super) tunnel: Arc<ServerConfig>,
    pub(super) enrollment: Arc<ServerConfig>,
    certificate: Arc<ServerCertificate>,
}

/// The handshakes for each CA that the server knows.
pub(crate) struct Entrances {
    policy: Arc<Policy>,
    idle: Duration,
    all: RwLock<BTreeMap<CaNumber, Entrance>>,
}

impl Entrances {
    /// Makes those for the CAs of this state; `idle` is the idle time-out of a session.
    ///
    /// # Errors
    /// The server has no certificate of the current CA. What is wrong with an older one is logged.
    pub(super) fn open(
        state: &State,
        policy: Arc<Policy>,
        idle: Duration,
    ) -> Result<Arc<Self>, Failure> {
        let entrances = Self { policy, idle, all: RwLock::default() };
        let authorities = state.authorities.get();
        let current = authorities.current();
        let made = entrances.make(state, current, OffsetDateTime::now_utc())?;
        entrances.write().insert(current.number, made);
        entrances.look_again(state, OffsetDateTime::now_utc());
        Ok(Arc::new(entrances))
    }

    /// The handshakes of those who know the current CA.
    pub(super) fn current(&self, state: &State) -> Option<Entrance> {
        self.of(state, state.authorities.get().current().number)
    }

    /// The handshakes of those who know this CA; made now if it is a new one.
    pub(super) fn of(&self, state: &State, number: CaNumber) -> Option<Entrance> {
        let known = self.read().get(&number).cloned();
        if known.is_some() {
            return known;
        }
        // A few small files, once for each rotation.
        self.look_again(state, OffsetDateTime::now_utc());
        self.read().get(&number).cloned()
    }

    /// When the server's certificate of the current CA expires, in Unix time.
    pub(super) fn end(&self) -> Option<i64> {
        self.read().values().next_back()?.certificate.end()
    }

    /// Loads or renews the certificates that are valid at `now`, makes what is missing, and forgets
    /// what is not known any more. A failure is logged. Blocks.
    fn look_again(&self, state: &State, now: OffsetDateTime) {
        let authorities = state.authorities.get();
        self.write().retain(|number, _| authorities.get(*number).is_some());
        for authority in authorities.all() {
            let known = self.read().get(&authority.number).cloned();
            match known {
                Some(entrance) => entrance.certificate.look_again(state, now),
                None => match self.make(state, authority, now) {
                    Ok(made) => drop(self.write().insert(authority.number, made)),
                    Err(e) => {
                        error!("devices that have CA {} are not let in: {e}", authority.number)
                    }
                },
            }
        }
    }

    fn make(
        &self,
        state: &State,
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<Entrance, Failure> {
        let wrong =
            |e: rustls::Error| Failure::new("cannot use the server's certificate").source(e);
        let identity = authority.server_identity(&state.dir, now)?;
        let certificate = ServerCertificate::of(authority.number, identity);
        let verifier = DeviceVerifier::new([authority.certificate()], self.policy.clone());
        let verifier = Arc::new(verifier.map_err(wrong)?);
        let build = |admit, streams| -> Result<Arc<ServerConfig>, Failure> {
            let crypto = tls::server(admit, certificate.clone()).map_err(wrong)?;
            let mut config = ServerConfig::with_crypto(Arc::new(crypto));
            config
                .transport_config(transport::settings(streams, self.idle, LONGEST_DATAGRAM))
                .max_incoming(INCOMING)
                .incoming_buffer_size(INCOMING_BUFFER)
                .incoming_buffer_size_total(INCOMING_BUFFERS);
            // No address tokens for later connections; a client proves its address each time.
            config.validation_token.sent(0);
            Ok(Arc::new(config))
        };
        Ok(Entrance {
            tunnel: build(Admit::Certified(verifier), transport::grant(transport::FIRST_STREAMS))?,
            enrollment: build(Admit::Anybody, 1)?,
            certificate,
        })
    }

    /// Checks again for as long as it is polled: each hour, and after the clock was set. Ends CAs that
    /// no device needs any more.
    pub(super) async fn follow(&self, server: Arc<Server>) {
        let state = &server.state;
        let begun = Instant::now();
        let wall = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut watch = StepWatch::new(wall(), begun.elapsed());
        let mut looked = begun;
        warn_of_clock(state);
        server.retire_unneeded().await;
        loop {
            tokio::time::sleep(COMPARE_EVERY).await;
            let stepped = watch.stepped(wall(), begun.elapsed());
            if stepped {
                info!("the clock was set, or this machine slept: it is {} now", shown(unix_now()));
                warn_of_clock(state);
            }
            if stepped || looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                // A few small files, at most once a second.
                self.look_again(state, OffsetDateTime::now_utc());
                server.retire_unneeded().await;
            }
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<CaNumber, Entrance>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<CaNumber, Entrance>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn warn_of_clock(state: &State) {
    if let Err(wrong) = state.authorities.get().check_clock(unix_now()) {
        warn!("{wrong}: devices are let in when it is set (`timedatectl`)");
    }
}
