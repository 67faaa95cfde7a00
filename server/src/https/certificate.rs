//! The certificate of the HTTPS listener: from files, which are read again when they change; from a
//! certificate authority, by ACME; or from our own CA, for this machine's names and addresses.

mod files;
mod names;

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use common::machine::{process::unix_now, report::Failure};
use proto::rotation::CaNumber;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub(crate) use self::names::CertificateName;
use self::{files::Files, names::names};
use super::{
    CertificateSource, HttpsSettings,
    acme::{Acme, AcmeCure, AcmeStatus, Challenges},
};
use crate::state::{
    authorities::{Authorities, SharedAuthorities},
    ca::Ca,
};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a certificate of our own CA is valid. Apple's systems accept 825 days at the most.
const LIFE: Duration = Duration::from_secs(90 * 86_400);
/// It is made anew when less than this is left.
const RENEWED_WITHIN: i64 = 30 * 86_400;
/// How often this machine's names and addresses are looked up, in looks.
const NAMES_EVERY: u32 = 30;

/// The certificate of the listener.
pub(crate) struct HttpsCertificate {
    source: Source,
    current: RwLock<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    /// The names of a certificate of our own CA, and the number of that.
    names: Vec<String>,
    ca: CaNumber,
    /// Why the newest files are not in use.
    failing: Option<String>,
}

enum Source {
    Files(Files),
    /// Until the authority has issued one, it is of our own CA.
    Acme(Box<Acme>),
    Own,
}

/// The certificate, as `aditd status` prints it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The file that the settings name; `null` for a certificate by ACME, or of our own CA.
    pub file: Option<String>,
    /// For which names and addresses it was issued; none for one of files.
    pub names: Vec<String>,
    /// Its last valid second, in Unix time.
    pub until: Option<i64>,
    /// Why the newest files are not in use, if they are not.
    #[serde(default)]
    pub failing: Option<String>,
    /// The authority that issues it, if there is one.
    #[serde(default)]
    pub acme: Option<AcmeStatus>,
}

impl CertificateStatus {
    /// Whether it is of our own CA: also while the authority of ACME has issued none.
    pub(crate) fn is_of_own_ca(&self) -> bool {
        self.file.is_none() && self.acme.as_ref().is_none_or(|acme| !acme.issued)
    }
}

impl std::fmt::Debug for HttpsCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpsCertificate")
    }
}

impl HttpsCertificate {
    /// Reads the files that the settings name or what an authority has issued before, or issues a
    /// certificate. `state`: the state directory. `restart`: how the server is started again.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub(super) fn open(
        settings: &HttpsSettings,
        authorities: &Authorities,
        state: &Path,
        restart: AcmeCure,
    ) -> Result<Arc<Self>, Failure> {
        let CertificateSource::Acme(acme) = &settings.source else {
            return Self::without_acme(settings, authorities);
        };
        let acme = Acme::open(acme.clone(), state, restart)?;
        let current = acme.current().map_or_else(|| own(settings, authorities), Ok)?;
        Ok(Self::new(Source::Acme(Box::new(acme)), current, authorities))
    }

    /// Reads the files that the settings name, or issues a certificate: also where an authority is to
    /// issue one.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub(super) fn without_acme(
        settings: &HttpsSettings,
        authorities: &Authorities,
    ) -> Result<Arc<Self>, Failure> {
        let (source, current) = match &settings.source {
            CertificateSource::Files(cert, key) => {
                let files = Files { cert: cert.clone(), key: key.clone() };
                let read = files.read()?;
                (Source::Files(files), (read, Vec::new()))
            }
            _ => (Source::Own, own(settings, authorities)?),
        };
        Ok(Self::new(source, current, authorities))
    }

    fn new(
        source: Source,
        (key, names): (Arc<CertifiedKey>, Vec<String>),
        authorities: &Authorities,
    ) -> Arc<Self> {
        let (ca, _) = authorities.of_https();
        let current = RwLock::new(Current { key, names, ca, failing: None });
        Arc::new(Self { source, current })
    }

    /// Follows the files or the authority, for as long as it is polled. Once this process is
    /// `replaced`, nothing is ordered: the other process is the one that an authority reaches.
    pub(super) async fn follow(&self, replaced: &CancellationToken) {
        match &self.source {
            Source::Files(files) => self.follow_files(files).await,
            Source::Acme(acme) => {
                let tell = |key, names| {
                    let mut current = self.write();
                    (current.key, current.names) = (key, names);
                };
                let _ = replaced.run_until_cancelled(acme.keep(tell)).await;
            }
            Source::Own => {}
        }
    }

    /// Follows this machine's names, those of the settings, and our own CA, for as long as it is polled
    /// and the certificate may be of that. What has changed before is looked at first.
    pub(super) async fn follow_names(
        &self,
        settings: &HttpsSettings,
        authorities: &SharedAuthorities,
    ) {
        if matches!(self.source, Source::Files(_)) {
            return;
        }
        let mut changes = authorities.changes();
        loop {
            if self.acme().is_none_or(|acme| acme.current().is_none()) {
                self.look_again(settings, &authorities.get());
            }
            // An error would mean that the server is gone.
            let _ = tokio::time::timeout(LOOK_EVERY * NAMES_EVERY, changes.changed()).await;
        }
    }

    fn acme(&self) -> Option<&Acme> {
        match &self.source {
            Source::Acme(acme) => Some(acme),
            Source::Files(_) | Source::Own => None,
        }
    }

    /// The challenges of the authority, if there is one.
    pub(super) fn challenges(&self) -> Option<&Arc<Challenges>> {
        self.acme().map(Acme::challenges)
    }

    /// Asks the authority again as soon as that is allowed, if its last order has failed.
    pub(super) fn hurry(&self) {
        if let Some(acme) = self.acme() {
            acme.hurry();
        }
    }

    async fn follow_files(&self, files: &Files) {
        let mut in_use = files.stamp();
        let mut before = in_use;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = files.stamp();
            // Both files are replaced one after the other: they are read when they have come to rest.
            let is_at_rest = now == before;
            before = now;
            if now == in_use || !is_at_rest {
                continue;
            }
            in_use = now;
            self.read_again(files);
        }
    }

    fn read_again(&self, files: &Files) {
        let read = files.read();
        let mut current = self.write();
        match read {
            Ok(key) => {
                (current.key, current.failing) = (key, None);
                info!("`{}` was read again and is in use", files.cert.display());
            }
            Err(failure) => {
                let why = failure.to_string().replace('\n', " ");
                error!("the certificate in use stays: {why}");
                current.failing = Some(why);
            }
        }
    }

    fn look_again(&self, settings: &HttpsSettings, authorities: &Authorities) {
        let names = names(settings);
        let (number, ca) = authorities.of_https();
        let (is_same, end) = {
            let current = self.read();
            (current.names == names && current.ca == number, end(&current.key))
        };
        if is_same && end.is_some_and(|end| end - unix_now() > RENEWED_WITHIN) {
            return;
        }
        match issue(ca, &names) {
            Ok(key) => {
                info!("the certificate for HTTPS is issued anew, for {}", names.join(", "));
                let mut current = self.write();
                (current.key, current.names, current.ca) = (key, names, number);
            }
            Err(e) => error!("cannot issue a certificate for HTTPS: {e}"),
        }
    }

    /// The certificate now.
    pub(super) fn status(&self) -> CertificateStatus {
        let current = self.read();
        CertificateStatus {
            file: match &self.source {
                Source::Files(files) => Some(files.cert.display().to_string()),
                Source::Acme(_) | Source::Own => None,
            },
            names: current.names.clone(),
            until: end(&current.key),
            failing: current.failing.clone(),
            acme: self.acme().map(Acme::status),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for HttpsCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.read().key.clone())
    }
}

/// A certificate of our own CA, and its names.
fn own(
    settings: &HttpsSettings,
    authorities: &Authorities,
) -> Result<(Arc<CertifiedKey>, Vec<String>), Failure> {
    let names = names(settings);
    Ok((issue(authorities.of_https().1, &names)?, names))
}

fn issue(ca: &Ca, names: &[String]) -> Result<Arc<CertifiedKey>, Failure> {
    ca.issue_https(names, OffsetDateTime::now_utc(), LIFE)
        .map_err(|e| Failure::new("cannot issue a certificate for HTTPS").source(e))
}

/// The last valid second of a certificate, in Unix time.
fn end(key: &CertifiedKey) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(key.cert.first()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_by_acme_is_of_our_own_ca_until_one_was_issued() {
        let by_acme = |issued| {
            let acme = Some(AcmeStatus { issued, ..AcmeStatus::default() });
            CertificateStatus { acme, ..CertificateStatus::default() }
        };
        assert!(CertificateStatus::default().is_of_own_ca());
        assert!(by_acme(false).is_of_own_ca());
        assert!(!by_acme(true).is_of_own_ca());
        let file = Some("/etc/adit/tls.crt".to_owned());
        assert!(!CertificateStatus { file, ..CertificateStatus::default() }.is_of_own_ca());
    }
}
