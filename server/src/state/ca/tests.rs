use super::*;
use proto::identity::Certificate;
use rcgen::KeyPair;
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
    let issued = ca.issue_device(id, &device_key, OffsetDateTime::now_utc(), LIFE).expect("issued");
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
    let chain = |ca: &Ca, at| ca.server_identity(tmp.path(), at).expect("identity").cert.clone();
    assert_eq!(chain(&first, now), chain(&second, now));
    assert_ne!(
        chain(&first, now),
        chain(&first, now + SERVER_LIFE),
        "an old certificate is replaced"
    );
}

#[test]
fn an_implausible_clock_changes_nothing_and_issues_nothing() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let (now, boot) = (OffsetDateTime::now_utc(), OffsetDateTime::UNIX_EPOCH);
    let ca = Ca::open(tmp.path()).expect("ca");
    let chain = |at| ca.server_identity(tmp.path(), at).expect("identity").cert.clone();
    let good = chain(now);
    assert_eq!(chain(boot), good, "the existing certificate is kept");
    assert_eq!(chain(now), good);
    // A certificate that an earlier version made in 1970 is not kept.
    let spki = SubjectPublicKeyInfo::from_der(&spki_of(&good[0])).expect("a key");
    let mut params = leaf_params(boot, SERVER_LIFE);
    params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into().expect("a name"))];
    let old = params.signed_by(&spki, &ca.issuer).expect("signed");
    for at in [boot, now] {
        stored::replace(&tmp.path().join("server.crt"), old.pem().as_bytes()).expect("written");
        assert_ne!(chain(at)[0], *old.der());
        let made = Certificate::from_der(&chain(at)[0]).expect("a certificate");
        assert!(made.not_before <= now.unix_timestamp() && made.not_after > now.unix_timestamp());
    }
}

#[test]
fn certificates_of_a_first_start_in_1970_are_valid_when_the_clock_is_set() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let (now, boot) = (OffsetDateTime::now_utc(), OffsetDateTime::UNIX_EPOCH);
    let ca = Ca::open_number(tmp.path(), FIRST_CA, boot).expect("ca");
    let first = ca.server_identity(tmp.path(), boot).expect("identity");
    let later = ca.server_identity(tmp.path(), now).expect("identity");
    assert_eq!(first.cert, later.cert);
    for der in &first.cert {
        let made = Certificate::from_der(der).expect("a certificate");
        assert!((made.not_before..made.not_after).contains(&now.unix_timestamp()));
    }
    assert!(ca.check_clock(0).is_err() && ca.check_clock(now.unix_timestamp()).is_ok());
}

fn spki_of(der: &CertificateDer<'_>) -> Vec<u8> {
    let parsed = rustls::server::ParsedCertificate::try_from(der).expect("parsed");
    parsed.subject_public_key_info().to_vec()
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
        X509Certificate::from_der(&issued.certificate).expect("certificate").1.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn a_damaged_key_is_named_and_never_replaced() {
    let tmp = tempfile::tempdir().expect("tempdir");
    drop(Ca::open(tmp.path()).expect("ca"));
    stored::replace(&tmp.path().join("ca.key"), b"garbage").expect("written");
    let Err(error) = Ca::open(tmp.path()) else { panic!("opened") };
    assert!(error.to_string().contains("ca.key"), "{error}");
    assert_eq!(*stored::read(&tmp.path().join("ca.key")).expect("read"), b"garbage");
}

#[test]
fn over_thirty_years_the_servers_certificate_is_always_valid_and_vouched_for_even_past_its_cas_end()
{
    let dir = tempfile::tempdir().expect("a directory");
    let begun = OffsetDateTime::now_utc();
    let ca = Ca::open_number(dir.path(), FIRST_CA, begun).expect("an authority");
    let mut certificates = std::collections::HashSet::new();
    for month in 0..360 {
        let now = begun + Duration::days(30 * month);
        let identity = ca.server_identity(dir.path(), now).expect("a certificate");
        let own = proto::identity::Certificate::from_der(&identity.cert[0]).expect("a certificate");
        let at = now.unix_timestamp();
        assert!(own.not_before <= at && at < own.not_after, "month {month}");
        // A device trusts the authority's key, whose certificate has no end for a trust anchor
        // (RFC 5280 section 6.1.1).
        assert!(ca.vouches_for(&identity.cert[0], at), "month {month}");
        certificates.insert(identity.cert[0].to_vec());
    }
    assert!((4..=6).contains(&certificates.len()), "{} certificates", certificates.len());
}
