//! Keys, certificates and enrollments that a test makes itself, with its own CA or with a server's.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use client::dial::{self, DialError};
use common::{
    machine::process::unix_now,
    transport::{frame, tls},
};
use data_encoding::BASE64;
use proto::{
    device_key::KeyStorage,
    identity::DeviceId,
    invitation::Invitation,
    wire::{Code, EnrollAnswer, EnrollRequest},
};
use quinn::{Connection, ConnectionError};
use quinn_proto::TransportErrorCode;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use server::{Ca, DeviceKey};
use time::OffsetDateTime;

use crate::{
    state_files::{chmod, private_key},
    world::{Device, SOON},
};

/// The lifetime of certificates that a test makes.
pub const LIFE: Duration = Duration::from_secs(30 * 86_400);

/// A CA that belongs to the test, with a clock that the test chooses.
pub struct Authority {
    pub dir: PathBuf,
    pub ca: Ca,
}

impl Authority {
    /// Creates the CA in a new directory.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir(dir).expect("a directory");
        chmod(dir, 0o700);
        Self { dir: dir.to_owned(), ca: Ca::open(dir).expect("an authority") }
    }
}

/// A certificate for this device and key, issued at this time, even if a server would refuse to
/// issue it.
pub fn issued(ca: &Ca, id: DeviceId, key: &KeyPair, at: OffsetDateTime) -> CertificateDer<'static> {
    let key = DeviceKey::from_spki(&key.subject_public_key_info()).expect("a key");
    ca.issue_device(id, &key, at, LIFE).expect("a certificate").certificate
}

/// A key of the kind that devices have.
pub fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

/// The key that the device made when it enrolled.
pub fn key_pair(device: &Device) -> KeyPair {
    KeyPair::from_pem(&private_key(device)).expect("a key")
}

/// A chain and its key, in the form that rustls needs.
pub fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Arc::new(
        CertifiedKey::from_der(chain, key, &tls::provider()).expect("a certificate and its key"),
    )
}

/// A signing request without any extension.
pub fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).expect("a CSR").der().to_vec()
}

/// Parses an invitation's code.
///
/// # Panics
/// If it is not a code.
pub fn parse(code: &str) -> Invitation {
    code.parse().unwrap_or_else(|e| panic!("{e}: {code}"))
}

/// A connection to the enrollment side of the server.
///
/// # Panics
/// If the server does not answer.
pub async fn at_enrollment(invitation: &Invitation) -> Connection {
    try_at_enrollment(invitation).await.expect("the enrollment door")
}

async fn try_at_enrollment(invitation: &Invitation) -> Result<Connection, DialError> {
    let config = dial::config(
        tls::enroll_client(invitation.ca).expect("TLS"),
        &invitation.secret.knock_key().into(),
        proto::wire::IDLE_TIMEOUT,
    );
    dial::dial(&config, &invitation.addresses, None).await.map(|dialed| dialed.connection)
}

/// How often to come again when the server needs the place of a handshake for somebody else.
const DISPLACED: usize = 100;

/// Sends an enrollment request, as `adit enroll` does; stores nothing.
pub async fn enroll(invitation: &Invitation, token: &[u8], csr: Vec<u8>) -> EnrollAnswer {
    let request = EnrollRequest {
        token: BASE64.encode(token).into(),
        csr: BASE64.encode(&csr),
        own_knock: true,
        sign_in: None,
        key_storage: KeyStorage::File,
    };
    for _ in 0..DISPLACED {
        // Without a free place it gives no answer.
        let connection = match try_at_enrollment(invitation).await {
            Err(DialError::NoAnswer(_)) => continue,
            connection => connection.expect("the enrollment door"),
        };
        let asked = async {
            let (mut send, mut recv) = connection.open_bi().await.ok()?;
            frame::write(&mut send, &request).await.ok()?;
            frame::read(&mut recv).await.ok()
        };
        if let Some(answer) = tokio::time::timeout(SOON, asked).await.expect("in time") {
            return answer;
        }
        // The server ends the oldest attempt when all places are taken, before it reads a request.
        let done = u64::from(Code::Done as u32);
        match connection.closed().await {
            ConnectionError::ApplicationClosed(end) if end.error_code.into_inner() == done => {}
            // The same, before the handshake was confirmed (RFC 9000 section 10.2.3).
            ConnectionError::ConnectionClosed(end)
                if end.error_code == TransportErrorCode::APPLICATION_ERROR => {}
            other => panic!("no answer: {other}"),
        }
    }
    panic!("displaced {DISPLACED} times")
}

/// Redeems an invitation, as `adit enroll` does; stores nothing.
pub async fn redeem(invitation: &Invitation, key: &KeyPair) -> EnrollAnswer {
    enroll(invitation, &*invitation.secret.token(), csr(key)).await
}

/// Waits until an invitation has expired.
///
/// # Panics
/// If the clock does not advance.
pub async fn has_ended(invitation: &Invitation) {
    let give_up = Instant::now() + SOON;
    while unix_now() < invitation.expires {
        assert!(Instant::now() < give_up, "the clock does not advance");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
