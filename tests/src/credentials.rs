//! Keys and certificates that a test makes itself, with an authority of its own or with that of a server.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use common::identity::DeviceId;
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use server::ca::{Ca, DeviceKey};
use time::OffsetDateTime;

use crate::kept::chmod;

/// How long certificates are good that a test has made.
pub const LIFE: Duration = Duration::from_secs(30 * 86_400);

/// An authority of the test's own, with a clock of its own.
pub struct Authority {
    /// Where it keeps its key.
    pub dir: PathBuf,
    /// The authority.
    pub ca: Ca,
}

impl Authority {
    /// Makes it in a directory that is not there yet.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir(dir).expect("a directory");
        chmod(dir, 0o700);
        Self { dir: dir.to_owned(), ca: Ca::open(dir).expect("an authority") }
    }
}

/// A certificate for this device and key, whatever an honest server would say to it, issued at this time.
pub fn issued(ca: &Ca, id: DeviceId, key: &KeyPair, at: OffsetDateTime) -> CertificateDer<'static> {
    let key = DeviceKey::from_spki(&key.subject_public_key_info()).expect("a key");
    ca.issue_device(id, &key, at, LIFE).expect("a certificate").certificate
}
