//! The host at the other end of an SSH session: what is offered to it, and what it says unasked.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::machine::report::harmless;
use russh::{
    cipher,
    client::{self, DisconnectReason},
    keys::PublicKeyOrCertificate,
};
use ssh_key::{Algorithm, EcdsaCurve, HashAlg};

use super::is_rsa;
use crate::ssh::{SshError, bounds::Patience, hosts::KnownHost, known_hosts::Offered};

/// Bytes that the host may send in one channel before the client has read them.
const WINDOW: u32 = 16 << 20;
/// How often a silent host is asked whether it is there, and how many questions may stay
/// unanswered.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const MISSED: usize = 3;

/// What happens on the connection's own task.
#[derive(Default)]
pub(super) struct Told {
    pub(super) refused: Option<SshError>,
    pub(super) goodbye: Option<String>,
}

pub(super) struct Host {
    pub(super) known: KnownHost,
    pub(super) patience: Arc<Patience>,
    pub(super) told: Arc<Mutex<Told>>,
}

impl client::Handler for Host {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let offered = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => Offered::Key(key.key_data().clone()),
            PublicKeyOrCertificate::Certificate(certificate) => {
                Offered::Certificate(Box::new(certificate.clone()))
            }
        };
        let checked = self.patience.with_a_person(self.known.check(&offered)).await;
        let good = checked.is_ok();
        lock(&self.told).refused = checked.err().map(SshError::HostKey);
        Ok(good)
    }

    async fn auth_banner(
        &mut self,
        banner: &str,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        tracing::debug!("the host says: {}", harmless(banner.trim_end()));
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let goodbye = match reason {
            DisconnectReason::ReceivedDisconnect(info) => harmless(info.message),
            DisconnectReason::Error(e) => e.to_string(),
        };
        lock(&self.told).goodbye = Some(goodbye);
        Ok(())
    }
}

pub(super) fn settings(known: &KnownHost) -> client::Config {
    let mut config = client::Config {
        window_size: WINDOW,
        keepalive_interval: Some(KEEP_ALIVE),
        keepalive_max: MISSED,
        nodelay: true,
        ..Default::default()
    };
    // What the processor does in hardware, first.
    let ciphers = [
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ];
    config.preferred.cipher = Cow::Owned(ciphers.to_vec());
    config.preferred.compression = Cow::Owned(vec![russh::compression::NONE]);
    // The kinds that the host is known by come first: another kind of key would look like an
    // unknown host. No SHA-1.
    let (kinds, vouched) = known.kinds();
    let ecdsa = |curve| Algorithm::Ecdsa { curve };
    let rsa = |hash| Algorithm::Rsa { hash: Some(hash) };
    let mut keys = vec![
        Algorithm::Ed25519,
        ecdsa(EcdsaCurve::NistP256),
        ecdsa(EcdsaCurve::NistP384),
        ecdsa(EcdsaCurve::NistP521),
        rsa(HashAlg::Sha512),
        rsa(HashAlg::Sha256),
    ];
    keys.sort_by_key(|key| !kinds.iter().any(|kind| kind == key || (is_rsa(kind) && is_rsa(key))));
    if vouched {
        config.preferred.host_key_certificates = Cow::Owned(keys.clone());
    }
    config.preferred.key = Cow::Owned(keys);
    config
}

pub(super) fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
