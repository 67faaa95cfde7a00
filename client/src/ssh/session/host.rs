//! The host at the other end of an SSH session: the algorithms that are offered to it, its key, and
//! its messages.

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

/// How many unread bytes the host may send in a channel.
const WINDOW: u32 = 16 << 20;
/// How often a silent host is sent a keep-alive, and how many may stay unanswered.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const MISSED: usize = 3;

/// What the connection's own task has noted.
#[derive(Default)]
pub(super) struct HostEvents {
    pub(super) refused: Option<SshError>,
    pub(super) goodbye: Option<String>,
}

pub(super) struct Host {
    pub(super) known: KnownHost,
    pub(super) patience: Arc<Patience>,
    pub(super) events: Arc<Mutex<HostEvents>>,
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
        lock(&self.events).refused = checked.err().map(SshError::HostKey);
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
        lock(&self.events).goodbye = Some(goodbye);
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
    // First the ciphers that processors implement in hardware.
    let ciphers = [
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ];
    config.preferred.cipher = Cow::Owned(ciphers.to_vec());
    config.preferred.compression = Cow::Owned(vec![russh::compression::NONE]);
    // First the kinds of keys that are known for this host: with a key of another kind the host
    // would look unknown. No SHA-1.
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

pub(super) fn lock(events: &Mutex<HostEvents>) -> MutexGuard<'_, HostEvents> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}
