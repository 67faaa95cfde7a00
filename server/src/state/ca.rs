//! The certificate authority of one server. Its private key is read only here.

pub(crate) mod files;
mod key;

use std::{path::Path, sync::Arc};

use common::machine::{
    files::{self as stored, FileError},
    report::Failure,
};
use proto::{
    clock::{self, shown},
    crypto::{fill_random, sha256},
    identity::{CLOCK_SLACK, DeviceId, KeyHash},
    rotation::{CaNumber, FIRST_CA},
    wire::SERVER_NAME,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::{
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{
        CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
        ServerName, UnixTime,
    },
    sign::{CertifiedKey, SigningKey},
};
use time::{Duration, OffsetDateTime};

pub(crate) use self::files::CaFiles;
use self::key::CaKey;

const SERVER_LIFE: Duration = Duration::days(3650);
const CA_LIFE: Duration = Duration::days(7300);

/// The certificate authority: it decides what is in a device's or the server's certificate,
/// whatever a request asks for.
pub struct Ca {
    files: CaFiles,
    issuer: Issuer<'static, CaKey>,
    certificate: CertificateDer<'static>,
    /// The earliest plausible time, in Unix time.
    earliest: i64,
}

/// A certificate and its expiry.
pub struct Issued {
    pub certificate: CertificateDer<'static>,
    /// Its last valid second, in Unix time.
    pub not_after: i64,
}

/// The clock of this machine shows an impossible time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this machine's clock is wrong: it shows {}, which is before {}",
    shown(*.now), shown(*.earliest)
)]
pub struct ClockError {
    /// The time that the clock shows, in Unix seconds.
    pub now: i64,
    /// The earliest plausible time, in Unix seconds.
    pub earliest: i64,
}

impl From<ClockError> for Failure {
    fn from(error: ClockError) -> Self {
        Self::from_error(error).hint("set it: `sudo timedatectl set-ntp true`")
    }
}

/// Why a signing request was refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// It is not PKCS #10, or has a wrong signature: the sender does not hold the key.
    #[error("the signing request can't be read or its signature is wrong")]
    Invalid(#[source] rcgen::Error),
    /// The key is not ECDSA P-256.
    #[error("the signing request is not for an ECDSA P-256 key")]
    KeyType,
}

/// The public key of a device that has proved to hold its private key.
pub struct DeviceKey {
    spki: SubjectPublicKeyInfo,
    /// The hash of the key.
    pub hash: KeyHash,
}

impl DeviceKey {
    /// Takes only the public key from a signing request; names, extensions and constraints in it
    /// are ignored.
    pub fn from_csr(der: &[u8]) -> Result<Self, CsrError> {
        let csr =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(CsrError::Invalid)?;
        Self::from_spki(&csr.public_key.subject_public_key_info())
    }

    /// The key in a certificate that TLS has verified, in DER.
    pub fn from_spki(der: &[u8]) -> Result<Self, CsrError> {
        let spki = SubjectPublicKeyInfo::from_der(der).map_err(CsrError::Invalid)?;
        if spki.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::KeyType);
        }
        Ok(Self { hash: KeyHash(sha256(&spki.subject_public_key_info())), spki })
    }
}

/// Whether a clock that shows `now` can be right, if it has been `earliest` already; both in Unix
/// seconds.
///
/// # Errors
/// When it can't.
pub(crate) fn check_clock(earliest: i64, now: i64) -> Result<(), ClockError> {
    if now < earliest { Err(ClockError { now, earliest }) } else { Ok(()) }
}

impl Ca {
    /// Opens the first authority in `dir`, or creates it. Several processes that do so at once get the
    /// same one.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        Self::open_number(dir, FIRST_CA, OffsetDateTime::now_utc())
    }

    /// [`Ca::open`], for the authority with this number, by a clock that shows `now`.
    pub(crate) fn open_number(
        dir: &Path,
        number: CaNumber,
        now: OffsetDateTime,
    ) -> Result<Self, FileError> {
        let names = CaFiles::of(number);
        let (key_path, cert_path) = (dir.join(&names.key), dir.join(&names.certificate));
        // The certificate is looked at first: another process makes it after the key.
        // No key is made where a certificate is: it would lock out every device, and prevent that a
        // backup is restored.
        let key = match cert_path.exists() {
            true => CaKey::read(&key_path).map_err(|e| match e.is_not_found() {
                true => {
                    let why = format!("it is missing, and `{}` is there", names.certificate);
                    FileError::damaged(&key_path, why)
                }
                false => e,
            })?,
            false => CaKey::read_or_create(&key_path)?,
        };
        let pem = stored::read_or_create(&cert_path, || match self_signed(number, &key, now) {
            Ok(certificate) => certificate.pem().into_bytes(),
            Err(_) => Vec::new(),
        })?;
        let certificate = read_certificate(&pem)
            .ok_or_else(|| FileError::damaged(&cert_path, "it is not a certificate in PEM"))?;
        let hash = common::transport::tls::key_hash(&certificate)
            .map_err(|e| FileError::damaged(&cert_path, e))?;
        if hash.0 != sha256(&key.subject_public_key_info()) {
            let why = format!("it belongs to another key than `{}`", names.key);
            return Err(FileError::damaged(&cert_path, why));
        }
        let not_before = proto::identity::Certificate::from_der(&certificate)
            .map_err(|e| FileError::damaged(&cert_path, e))?
            .not_before;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| FileError::damaged(&cert_path, e))?;
        Ok(Self { files: names, issuer, certificate, earliest: not_before.max(clock::RELEASED) })
    }

    /// The earliest time, in Unix seconds, that a correct clock can show.
    pub fn earliest(&self) -> i64 {
        self.earliest
    }

    /// Whether `now`, in Unix seconds, is a plausible time.
    ///
    /// # Errors
    /// When it is before this authority was created or before this version was released.
    pub fn check_clock(&self, now: i64) -> Result<(), ClockError> {
        check_clock(self.earliest, now)
    }

    /// The CA's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The hash in invitations: SHA-256 of the CA's public key.
    pub fn key_hash(&self) -> [u8; 32] {
        sha256(&self.issuer.key().subject_public_key_info())
    }

    /// Signs a certificate for a device's key, valid for `life` from `now`. The caller must check
    /// that time first, with [`Ca::check_clock`].
    pub fn issue_device(
        &self,
        id: DeviceId,
        key: &DeviceKey,
        now: OffsetDateTime,
        life: std::time::Duration,
    ) -> Result<Issued, rcgen::Error> {
        let mut params = leaf_params(now, Duration::seconds(life.as_secs() as i64));
        params.subject_alt_names = vec![SanType::URI(id.to_uri().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let not_after = params.not_after.unix_timestamp();
        let certificate = params.signed_by(&key.spki, &self.issuer)?.der().clone();
        Ok(Issued { certificate, not_after })
    }

    /// Signs a certificate for HTTPS with these names and addresses, for a key that is made here and
    /// kept in memory alone. Its time begins when the clock is certainly right.
    pub fn issue_https(
        &self,
        names: &[String],
        now: OffsetDateTime,
        life: std::time::Duration,
    ) -> Result<Arc<CertifiedKey>, rcgen::Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let der = PrivatePkcs8KeyDer::from(pair.serialized_der());
        let key =
            any_ecdsa_type(&PrivateKeyDer::Pkcs8(der)).map_err(|_| rcgen::Error::RemoteKeyError)?;
        let now = at_least(now, self.earliest);
        let mut params = leaf_params(now, Duration::seconds(life.as_secs() as i64));
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let made = params.signed_by(&pair, &self.issuer)?;
        let chain = vec![made.der().clone(), self.certificate.clone()];
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }

    /// The server's certificate and key in `dir`: kept while at least a third of its lifetime is
    /// left, else made anew. While the clock is implausible, the existing certificate is kept.
    pub fn server_identity(
        &self,
        dir: &Path,
        now: OffsetDateTime,
    ) -> Result<Arc<CertifiedKey>, FileError> {
        let (key, spki) = server_key(&dir.join(&self.files.server_key))?;
        let path = dir.join(&self.files.server_certificate);
        let hash = sha256(&spki.subject_public_key_info());
        let kept = match stored::read(&path) {
            Ok(pem) => read_certificate(&pem).filter(|der| self.keeps(der, hash, now)),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        let certificate = match kept {
            Some(certificate) => certificate,
            None => {
                let made =
                    self.issue_server(&spki, now).map_err(|e| FileError::damaged(&path, e))?;
                stored::replace(&path, made.pem().as_bytes())?;
                made.der().clone()
            }
        };
        Ok(Arc::new(CertifiedKey::new(vec![certificate, self.certificate.clone()], key)))
    }

    /// Whether a server certificate for the key with this hash stays in use at `now`.
    fn keeps(&self, der: &CertificateDer<'_>, key: [u8; 32], now: OffsetDateTime) -> bool {
        let Ok(certificate) = proto::identity::Certificate::from_der(der) else { return false };
        let now = now.unix_timestamp();
        let stays = certificate.key.0 == key
            && match self.check_clock(now) {
                Ok(()) => is_fresh(&certificate, now),
                // The time is unknown: the existing certificate was made when it was known.
                Err(_) => certificate.not_after > self.earliest,
            };
        stays && self.vouches_for(der, now.clamp(certificate.not_before, certificate.not_after))
    }

    /// Whether this authority has signed a server certificate that is valid at `at`.
    fn vouches_for(&self, server: &CertificateDer<'_>, at: i64) -> bool {
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(at).unwrap_or(0),
        ));
        let verifier =
            common::transport::tls::roots(self.certificate.clone()).ok().and_then(|roots| {
                WebPkiServerVerifier::builder_with_provider(
                    roots,
                    common::transport::tls::provider(),
                )
                .build()
                .ok()
            });
        let (Some(verifier), Ok(name)) = (verifier, ServerName::try_from(SERVER_NAME)) else {
            return false;
        };
        verifier.verify_server_cert(server, &[], &name, &[], at).is_ok()
    }

    fn issue_server(
        &self,
        key: &SubjectPublicKeyInfo,
        now: OffsetDateTime,
    ) -> Result<rcgen::Certificate, rcgen::Error> {
        let now = at_least(now, self.earliest);
        let mut params = leaf_params(now, SERVER_LIFE);
        params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.signed_by(key, &self.issuer)
    }
}

/// The server's certificate and key of an authority that has retired, whose own `certificate` this is:
/// it signs nothing any more, so they are only read.
pub(crate) fn retired_identity(
    dir: &Path,
    names: &CaFiles,
    certificate: CertificateDer<'static>,
) -> Result<Arc<CertifiedKey>, FileError> {
    let path = dir.join(&names.server_certificate);
    let own = read_certificate(&stored::read(&path)?)
        .ok_or_else(|| FileError::damaged(&path, "it is not a certificate in PEM"))?;
    let key_path = dir.join(&names.server_key);
    let (key, _) = parsed_server_key(&key_path, &key::read(&key_path)?)?;
    let identity = CertifiedKey::new(vec![own, certificate], key);
    identity.keys_match().map_err(|e| FileError::damaged(&path, e))?;
    Ok(Arc::new(identity))
}

/// The server's key in this file, which is created if it is missing.
fn server_key(path: &Path) -> Result<(Arc<dyn SigningKey>, SubjectPublicKeyInfo), FileError> {
    parsed_server_key(path, &key::read_or_create(path)?)
}

fn parsed_server_key(
    path: &Path,
    der: &[u8],
) -> Result<(Arc<dyn SigningKey>, SubjectPublicKeyInfo), FileError> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der));
    let key = any_ecdsa_type(&der).map_err(|e| FileError::damaged(path, e))?;
    match key.public_key().map(|spki| SubjectPublicKeyInfo::from_der(&spki)) {
        Some(Ok(spki)) => Ok((key, spki)),
        _ => Err(FileError::damaged(path, "it has no public key")),
    }
}

fn self_signed(
    number: CaNumber,
    key: &CaKey,
    now: OffsetDateTime,
) -> Result<rcgen::Certificate, rcgen::Error> {
    let now = at_least(now, clock::RELEASED);
    let mut params = leaf_params(now, CA_LIFE);
    params.use_authority_key_identifier_extension = false;
    // Programs that are to trust two of them tell them apart.
    let name = match number {
        FIRST_CA => "Adit CA".to_owned(),
        number => format!("Adit CA {number}"),
    };
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(key)
}

fn leaf_params(now: OffsetDateTime, life: Duration) -> CertificateParams {
    // Positive, and 16 bytes long (RFC 5280 section 4.1.2.2). The library's default is the same for
    // each certificate of one key.
    let mut serial = [0; 16];
    fill_random(&mut serial);
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now - Duration::seconds(CLOCK_SLACK);
    params.not_after = now + life;
    params
}

fn is_fresh(certificate: &proto::identity::Certificate, now: i64) -> bool {
    certificate.not_before <= now && certificate.not_after > now + SERVER_LIFE.whole_seconds() / 3
}

fn at_least(now: OffsetDateTime, earliest: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(earliest).map_or(now, |earliest| now.max(earliest))
}

/// The certificate in this PEM.
pub(crate) fn read_certificate(pem: &[u8]) -> Option<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem).ok()
}

#[cfg(test)]
mod tests;
