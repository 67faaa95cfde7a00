//! The certificate authority of one server. Its private key is read here and nowhere else.

use std::path::Path;

use common::machine::files::{self, FileError};
use proto::{
    identity::{CLOCK_SLACK, DeviceId, KeyHash},
    invitation::sha256,
    knock::fill_random,
    wire::SERVER_NAME,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::{
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{
        CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, ServerName, UnixTime,
    },
};
use time::{Duration, OffsetDateTime};

const SERVER_LIFE: Duration = Duration::days(3650);
const CA_LIFE: Duration = Duration::days(7300);

/// The authority: signs device and server certificates of its own making, whatever a request may
/// ask for.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and the end of its validity.
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its last second, Unix time.
    pub not_after: i64,
}

/// The server's certificate chain (its own, then the CA's) and private key.
pub struct ServerIdentity {
    /// End entity first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first.
    pub key: PrivateKeyDer<'static>,
}

/// Why a signing request was refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Not PKCS #10, or its signature is wrong: whoever sent it does not hold the key.
    #[error("the signing request can't be read or its signature is wrong")]
    Invalid(#[source] rcgen::Error),
    /// Only P-256 keys are certified.
    #[error("the signing request is not for an ECDSA P-256 key")]
    KeyType,
}

/// The public key of a device that has proved to hold it.
pub struct DeviceKey {
    spki: SubjectPublicKeyInfo,
    /// Its hash.
    pub hash: KeyHash,
}

impl DeviceKey {
    /// Takes the public key out of a signing request, and nothing else: names, extensions and
    /// constraints in it are ignored.
    pub fn from_csr(der: &[u8]) -> Result<Self, CsrError> {
        let csr =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(CsrError::Invalid)?;
        Self::from_spki(&csr.public_key.subject_public_key_info())
    }

    /// The key of a certificate that TLS has verified, in DER.
    pub fn from_spki(der: &[u8]) -> Result<Self, CsrError> {
        let spki = SubjectPublicKeyInfo::from_der(der).map_err(CsrError::Invalid)?;
        if spki.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::KeyType);
        }
        Ok(Self { hash: KeyHash(sha256(&spki.subject_public_key_info())), spki })
    }
}

impl Ca {
    /// Opens the authority in `dir`, or makes it there. Several processes that do so at once end up
    /// with the same one.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        if !key_path.exists() && cert_path.exists() {
            // A new one would lock out every device, and stand in the way of the backup.
            return Err(FileError::damaged(key_path, "it is missing, and `ca.crt` is there"));
        }
        let key = read_key(&key_path)?;
        let pem = files::read_or_create(&cert_path, || match self_signed(&key) {
            Ok(certificate) => certificate.pem().into_bytes(),
            Err(_) => Vec::new(),
        })?;
        let certificate = read_certificate(&pem)
            .ok_or_else(|| FileError::damaged(&cert_path, "it is not a certificate in PEM"))?;
        let hash = common::transport::tls::key_hash(&certificate)
            .map_err(|e| FileError::damaged(&cert_path, e))?;
        if hash.0 != sha256(&key.subject_public_key_info()) {
            return Err(FileError::damaged(&cert_path, "it belongs to another key than `ca.key`"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| FileError::damaged(&cert_path, e))?;
        Ok(Self { issuer, certificate })
    }

    /// The CA's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What invitations pin: SHA-256 of the CA's public key.
    pub fn key_hash(&self) -> [u8; 32] {
        sha256(&self.issuer.key().subject_public_key_info())
    }

    /// Certifies a device's key for `life` from `now` on.
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

    /// The server's identity in `dir`: kept while at least a third of its life is left, else made
    /// anew.
    pub fn server_identity(
        &self,
        dir: &Path,
        now: OffsetDateTime,
    ) -> Result<ServerIdentity, FileError> {
        let key = read_key(&dir.join("server.key"))?;
        let path = dir.join("server.crt");
        let hash = sha256(&key.subject_public_key_info());
        let kept = match files::read(&path) {
            Ok(pem) => read_certificate(&pem)
                .filter(|der| is_fresh(der, hash, now) && self.vouches_for(der, now)),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        let certificate = match kept {
            Some(certificate) => certificate,
            None => {
                let made =
                    self.issue_server(&key, now).map_err(|e| FileError::damaged(&path, e))?;
                files::replace(&path, made.pem().as_bytes())?;
                made.der().clone()
            }
        };
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(ServerIdentity { chain: vec![certificate, self.certificate.clone()], key })
    }

    /// Whether this very authority has signed a server's certificate.
    fn vouches_for(&self, server: &CertificateDer<'_>, now: OffsetDateTime) -> bool {
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(now.unix_timestamp()).unwrap_or(0),
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
        key: &KeyPair,
        now: OffsetDateTime,
    ) -> Result<rcgen::Certificate, rcgen::Error> {
        let mut params = leaf_params(now, SERVER_LIFE);
        params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.signed_by(key, &self.issuer)
    }
}

fn self_signed(key: &KeyPair) -> Result<rcgen::Certificate, rcgen::Error> {
    let now = OffsetDateTime::now_utc();
    let mut params = leaf_params(now, CA_LIFE);
    params.use_authority_key_identifier_extension = false;
    params.distinguished_name.push(DnType::CommonName, "Adit CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(key)
}

fn leaf_params(now: OffsetDateTime, life: Duration) -> CertificateParams {
    // Positive, and 16 bytes long (RFC 5280 section 4.1.2.2). The library's default repeats for one
    // key.
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

fn is_fresh(der: &CertificateDer<'_>, key: [u8; 32], now: OffsetDateTime) -> bool {
    proto::identity::Certificate::from_der(der).is_ok_and(|c| {
        c.key.0 == key
            && c.not_before <= now.unix_timestamp()
            && c.not_after > now.unix_timestamp() + SERVER_LIFE.whole_seconds() / 3
    })
}

fn read_key(path: &Path) -> Result<KeyPair, FileError> {
    let pem =
        files::read_or_create(path, || match KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256) {
            Ok(key) => key.serialize_pem().into_bytes(),
            // Nothing is written for it that could be taken for a key; reading it back says so.
            Err(_) => Vec::new(),
        })?;
    let not_a_key = || FileError::damaged(path, "it is not an ECDSA P-256 private key in PEM");
    let key = std::str::from_utf8(&pem)
        .ok()
        .and_then(|pem| KeyPair::from_pem(pem).ok())
        .ok_or_else(not_a_key)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(not_a_key());
    }
    Ok(key)
}

fn read_certificate(pem: &[u8]) -> Option<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::identity::Certificate;
    use x509_parser::prelude::{FromDer, X509Certificate};

    const LIFE: std::time::Duration = std::time::Duration::from_secs(3600);

    fn hostile_csr(key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![
            SanType::URI("urn:adit:device:0000-0001".try_into().expect("uri")),
            SanType::DnsName(SERVER_NAME.try_into().expect("name")),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serialize_request(key).expect("csr").der().to_vec()
    }

    #[test]
    fn a_csr_that_asks_for_a_ca_or_for_another_name_gets_neither() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let ca = Ca::open(tmp.path()).expect("ca");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let id = DeviceId::generate();
        let device_key = DeviceKey::from_csr(&hostile_csr(&key)).expect("key");
        let issued =
            ca.issue_device(id, &device_key, OffsetDateTime::now_utc(), LIFE).expect("issued");
        let (_, parsed) = X509Certificate::from_der(&issued.certificate).expect("certificate");
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().expect("extensions").expect("usage").value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        let read = Certificate::from_der(&issued.certificate).expect("certificate");
        assert_eq!((read.device, read.key), (Some(id), device_key.hash));
        let names = parsed.subject_alternative_name().expect("extensions").expect("names");
        assert_eq!(names.value.general_names.len(), 1);
    }

    #[test]
    fn a_csr_whose_signature_is_wrong_or_whose_key_is_of_another_kind_is_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let mut csr = hostile_csr(&key);
        let last = csr.len() - 3;
        csr[last] ^= 1;
        assert!(matches!(DeviceKey::from_csr(&csr), Err(CsrError::Invalid(_))));
        assert!(matches!(DeviceKey::from_csr(b"garbage"), Err(CsrError::Invalid(_))));
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
        assert!(matches!(DeviceKey::from_csr(&hostile_csr(&ed25519)), Err(CsrError::KeyType)));
    }

    #[test]
    fn the_authority_and_the_server_keep_their_identity_over_a_restart() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let now = OffsetDateTime::now_utc();
        let first = Ca::open(tmp.path()).expect("ca");
        let second = Ca::open(tmp.path()).expect("ca");
        assert_eq!(first.key_hash(), second.key_hash());
        let chain = |ca: &Ca, at| ca.server_identity(tmp.path(), at).expect("identity").chain;
        assert_eq!(chain(&first, now), chain(&second, now));
        assert_ne!(
            chain(&first, now),
            chain(&first, now + SERVER_LIFE),
            "an old certificate is replaced"
        );
    }

    #[test]
    fn two_certificates_for_one_key_have_different_serials() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let ca = Ca::open(tmp.path()).expect("ca");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let key = DeviceKey::from_spki(&key.subject_public_key_info()).expect("key");
        let serial = || {
            let issued = ca
                .issue_device(DeviceId::generate(), &key, OffsetDateTime::now_utc(), LIFE)
                .expect("issued");
            X509Certificate::from_der(&issued.certificate)
                .expect("certificate")
                .1
                .raw_serial()
                .to_vec()
        };
        assert_ne!(serial(), serial());
    }

    #[test]
    fn a_damaged_key_is_named_and_never_replaced() {
        let tmp = tempfile::tempdir().expect("tempdir");
        drop(Ca::open(tmp.path()).expect("ca"));
        files::replace(&tmp.path().join("ca.key"), b"garbage").expect("written");
        let Err(error) = Ca::open(tmp.path()) else { panic!("opened") };
        assert!(error.to_string().contains("ca.key"), "{error}");
        assert_eq!(*files::read(&tmp.path().join("ca.key")).expect("read"), b"garbage");
    }
}
