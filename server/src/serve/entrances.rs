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
    /// `None`: it could not be made. It is tried again when everything is looked at again, and not
    /// for each packet of its devices.
    all: RwLock<BTreeMap<CaNumber, Option<Entrance>>>,
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
        entrances.write().insert(current.number, Some(made));
        entrances.look_again(state, OffsetDateTime::now_utc());
        Ok(Arc::new(entrances))
    }

    /// The handshakes of those who know the current CA.
    pub(super) fn current(&self, state: &State) -> Option<Entrance> {
        self.of(state, state.authorities.get().current().number)
    }

    /// The handshakes of those who know this CA; made now if it is a new one. `None` if that failed.
    pub(super) fn of(&self, state: &State, number: CaNumber) -> Option<Entrance> {
        let known = self.read().get(&number).cloned();
        if let Some(known) = known {
            return known;
        }
        // A few small files, once for each rotation.
        self.look_again(state, OffsetDateTime::now_utc());
        self.read().get(&number).cloned().flatten()
    }

    /// When the server's certificate of the current CA expires, in Unix time.
    pub(super) fn end(&self) -> Option<i64> {
        self.read().values().next_back()?.as_ref()?.certificate.end()
    }

    /// Loads or renews the certificates that are valid at `now`, makes what is missing, and forgets
    /// what is not known any more. A failure is logged. Blocks.
    fn look_again(&self, state: &State, now: OffsetDateTime) {
        let authorities = state.authorities.get();
        self.write().retain(|number, _| authorities.get(*number).is_some());
        for authority in authorities.all() {
            let known = self.read().get(&authority.number).cloned().flatten();
            match known {
                Some(entrance) => entrance.certificate.look_again(state, now),
                None => {
                    let made = self.make(state, authority, now).inspect_err(|e| {
                        error!("devices that have CA {} are not let in: {e}", authority.number)
                    });
                    self.write().insert(authority.number, made.ok());
                }
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

    /// Checks again for as long as it is polled: each hour, after the clock was set, and when the CAs
    /// have changed. Ends CAs that no device needs any more.
    pub(super) async fn follow(&self, server: Arc<Server>) {
        let state = &server.state;
        let begun = Instant::now();
        let wall = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut watch = StepWatch::new(wall(), begun.elapsed());
        let mut looked = begun;
        let mut changes = state.authorities.changes();
        warn_of_clock(state);
        server.retire_unneeded().await;
        loop {
            tokio::time::sleep(COMPARE_EVERY).await;
            let stepped = watch.stepped(wall(), begun.elapsed());
            if stepped {
                info!("the clock was set, or this machine slept: it is {} now", shown(unix_now()));
                warn_of_clock(state);
            }
            // An error would mean that the server is gone.
            let changed = changes.has_changed().unwrap_or(false);
            if changed {
                changes.mark_unchanged();
            }
            if stepped || changed || looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                // A few small files, at most once a second.
                self.look_again(state, OffsetDateTime::now_utc());
                server.retire_unneeded().await;
            }
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<CaNumber, Option<Entrance>>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<CaNumber, Option<Entrance>>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn warn_of_clock(state: &State) {
    if let Err(wrong) = state.authorities.get().check_clock(unix_now()) {
        warn!("{wrong}: devices are let in when it is set (`timedatectl`)");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::policy::services::Services;

    #[test]
    fn an_entrance_that_failed_is_not_made_for_each_packet() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path().join("state");
        let (state, now) =
            (State::open_or_create(&dir).expect("a state"), OffsetDateTime::now_utc());
        assert_eq!(state.rotate_ca(now).ok(), Some(2));
        assert!(state.retire_cas(false, unix_now()).is_ok());
        let certificate = fs::read(dir.join("server.crt")).expect("read");
        fs::write(dir.join("server.crt"), "garbage").expect("written");
        let policy = Policy::new(Default::default(), Arc::default(), Services::default());
        let idle = Duration::from_secs(1);
        let entrances = Entrances::open(&state, Arc::new(policy), idle).expect("opened");
        assert!(entrances.of(&state, 1).is_none());
        assert!(entrances.current(&state).is_some());
        fs::write(dir.join("server.crt"), certificate).expect("written");
        assert!(entrances.of(&state, 1).is_none(), "a packet tries nothing");
        entrances.look_again(&state, now);
        assert!(entrances.of(&state, 1).is_some());
        // A new one is made when its first device comes.
        assert_eq!(state.rotate_ca(now).ok(), Some(3));
        assert!(entrances.of(&state, 3).is_some());
        assert!(entrances.end().is_some());
    }
}
