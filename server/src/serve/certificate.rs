//! The server's certificate while the server runs: checked each hour, and after the clock was set.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use common::machine::process::unix_now;
use proto::{
    clock::{StepWatch, shown},
    identity::Certificate,
};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use tracing::{error, info, warn};

use crate::state::State;

/// How often the wall clock is compared with the monotonic clock.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// How often the certificate is checked even if the clock was not set.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// The certificate that new connections get.
#[derive(Debug)]
pub struct ServerCertificate(RwLock<Arc<CertifiedKey>>);

impl ServerCertificate {
    /// Holds this certificate until a newer one is loaded.
    pub fn new(certificate: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(certificate)))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When it expires, in Unix time.
    pub fn end(&self) -> Option<i64> {
        let current = self.current();
        let own = Certificate::from_der(current.cert.first()?).ok()?;
        Some(own.not_after)
    }

    /// Loads or renews the certificate that is valid at `now`. A failure is logged, and nothing
    /// changes. Blocks.
    pub fn look_again(&self, state: &State, now: OffsetDateTime) {
        match state.ca.server_identity(&state.dir, now) {
            Ok(certificate) => {
                let changed = self.current().cert != certificate.cert;
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
                if changed {
                    info!("the server's certificate was renewed");
                }
            }
            Err(e) => error!("cannot check the server's certificate: {e}"),
        }
    }

    /// Checks again for as long as it is polled.
    pub async fn follow(&self, state: &State) {
        let begun = Instant::now();
        let wall = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut watch = StepWatch::new(wall(), begun.elapsed());
        let mut looked = begun;
        warn_of_clock(state);
        loop {
            tokio::time::sleep(COMPARE_EVERY).await;
            let stepped = watch.stepped(wall(), begun.elapsed());
            if stepped {
                info!("the clock was set, or this machine slept: it is {} now", shown(unix_now()));
                warn_of_clock(state);
            }
            if stepped || looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                // Two small files, at most once a second.
                self.look_again(state, OffsetDateTime::now_utc());
            }
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn warn_of_clock(state: &State) {
    if let Err(wrong) = state.ca.check_clock(unix_now()) {
        warn!("{wrong}: devices are let in when it is set (`timedatectl`)");
    }
}
