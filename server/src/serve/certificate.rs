//! The server's certificate for those who know one CA, while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use proto::{
    identity::Certificate,
    rotation::{CaNumber, FIRST_CA},
};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use tracing::{error, info};

use crate::state::State;

/// The certificate that new connections get.
#[derive(Debug)]
pub struct ServerCertificate {
    ca: CaNumber,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Holds this certificate of the first CA until a newer one is loaded.
    pub fn new(certificate: Arc<CertifiedKey>) -> Arc<Self> {
        Self::of(FIRST_CA, certificate)
    }

    /// The same for another CA.
    pub(crate) fn of(ca: CaNumber, certificate: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self { ca, current: RwLock::new(certificate) })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        let authorities = state.authorities.get();
        let Some(authority) = authorities.get(self.ca) else { return };
        match authority.server_identity(&state.dir, now) {
            Ok(certificate) => {
                let changed = self.current().cert != certificate.cert;
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = certificate;
                if changed {
                    info!("the server's certificate was renewed");
                }
            }
            Err(e) => error!("cannot check the server's certificate: {e}"),
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}
