//! Invalid certificates, and certificates for another purpose: each is refused by the alert that
//! says why, and never reaches the service.

use std::sync::atomic::Ordering::SeqCst;

use common::{machine::process::unix_now, transport::frame};
use data_encoding::BASE64;
use proto::{
    identity::{Certificate, DeviceId},
    wire::{ALPN_TUNNEL, Code, RenewAnswer, StreamHead},
};
use quinn::ConnectionError;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tests::{
    credentials::{self, Authority, certified, key_pair, new_key},
    state_files::profile,
    stranger::{Gate, Outcome, ask, attempt},
    world::SOON,
};
use time::OffsetDateTime;

use crate::PROGRAM;

// The alerts of RFC 8446 section 6, as QUIC carries them (RFC 9001 section 4.8).
const UNSUPPORTED_CERTIFICATE: u64 = 0x100 + 43;
const CERTIFICATE_REVOKED: u64 = 0x100 + 44;
const OUT_OF_TIME: u64 = Code::OutOfTime as u64;
const UNKNOWN_CA: u64 = 0x100 + 48;
const DECRYPT_ERROR: u64 = 0x100 + 51;

#[tokio::test]
async fn a_certificate_of_another_ca_with_the_same_names_is_refused() {
    let gate = Gate::start(PROGRAM).await;
    // The CAs of the same product have the same names.
    let other = Authority::new(&gate.world.scratch("other")).ca;
    let key = key_pair(&gate.device);
    let foreign = credentials::issued(&other, gate.id(), &key, OffsetDateTime::now_utc());
    let chain = vec![foreign.clone(), other.certificate().clone()];
    for chain in [vec![foreign], chain] {
        let code = gate.attempt(Some(certified(chain, &key))).await.code();
        assert!(matches!(code, UNKNOWN_CA | DECRYPT_ERROR), "{code}");
    }

    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(gate.id().to_uri().try_into().expect("a URI"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let by_itself = params.self_signed(&key).expect("a certificate").der().clone();
    assert_eq!(gate.attempt(Some(certified(vec![by_itself], &key))).await.code(), UNKNOWN_CA);
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_device_cannot_make_certificates_for_others() {
    let gate = Gate::start(PROGRAM).await;
    let victim = gate.world.device("victim").await;
    let key = new_key();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names =
        vec![SanType::URI(profile(&victim).enrolled.device_id.to_uri().try_into().expect("a URI"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let own = CertificateDer::from(
        BASE64.decode(gate.profile.enrolled.certificate.as_bytes()).expect("base64"),
    );
    let as_issuer = Issuer::from_ca_cert_der(&own, key_pair(&gate.device)).expect("an issuer");
    let forged = params.signed_by(&key, &as_issuer).expect("a certificate").der().clone();
    let code = gate.attempt(Some(certified(vec![forged, own], &key))).await.code();
    assert!(matches!(code, UNKNOWN_CA | UNSUPPORTED_CERTIFICATE | 0x12a | 0x12e), "{code:#x}");
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_certificate_that_expired_long_ago_or_is_not_yet_valid_is_refused() {
    let gate = Gate::start(PROGRAM).await;
    let key = key_pair(&gate.device);
    let now = OffsetDateTime::now_utc();
    for days in [-(30 + 91), -365, -3650, 2, 365] {
        let identity = gate.issued(gate.id(), &key, now + time::Duration::days(days));
        assert_eq!(
            gate.attempt(Some(identity)).await.code(),
            OUT_OF_TIME,
            "issued {days} days from now"
        );
    }
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_certificate_that_has_just_expired_can_only_renew_itself() {
    let gate = Gate::start(PROGRAM).await;
    let key = key_pair(&gate.device);
    let ended = gate.issued(gate.id(), &key, OffsetDateTime::now_utc() - time::Duration::days(31));
    let outcome = gate.attempt(Some(ended)).await;
    let Outcome::In(connection) = outcome else { panic!("{outcome:?}") };
    assert_eq!(
        ask(&connection, &StreamHead::Forward("ollama".parse().expect("a name")).encode()).await,
        Err(Code::Expired)
    );
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&StreamHead::Renew.encode()).await.expect("sent");
    send.finish().expect("finished");
    let renewed: RenewAnswer = tokio::time::timeout(SOON, frame::read(&mut recv))
        .await
        .expect("in time")
        .expect("an answer");
    let renewed = BASE64.decode(renewed.certificate.as_bytes()).expect("base64");
    let read = Certificate::from_der(&renewed).expect("a certificate");
    assert_eq!(read.device, Some(gate.id()));
    assert!(read.not_after > unix_now());
    // The renewed certificate works on streams of a new connection.
    drop(connection);
    assert!(matches!(
        gate.attempt(Some(certified(vec![renewed.into()], &key))).await,
        Outcome::In(_)
    ));
}

#[tokio::test]
async fn the_servers_own_certificate_is_refused_from_a_device() {
    let gate = Gate::start(PROGRAM).await;
    let read = |name: &str| std::fs::read(gate.world.state().join(name)).expect(name);
    let key =
        KeyPair::from_pem(&String::from_utf8(read("server.key")).expect("text")).expect("a key");
    let certificate = CertificateDer::from_pem_slice(&read("server.crt")).expect("a certificate");
    let code = gate.attempt(Some(certified(vec![certificate], &key))).await.code();
    assert_eq!(code, UNSUPPORTED_CERTIFICATE);
    // The CA's certificate is refused too, although it is self-signed.
    let key = KeyPair::from_pem(&String::from_utf8(read("ca.key")).expect("text")).expect("a key");
    let certificate = CertificateDer::from_pem_slice(&read("ca.crt")).expect("a certificate");
    let outcome = gate.attempt(Some(certified(vec![certificate], &key))).await;
    assert!(matches!(outcome, Outcome::Out(ConnectionError::ConnectionClosed(_))), "{outcome:?}");
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_revoked_forgotten_or_never_enrolled_device_is_refused() {
    let gate = Gate::start(PROGRAM).await;
    let now = OffsetDateTime::now_utc();
    for (name, commands) in [("revoked", &["revoke"][..]), ("forgotten", &["revoke", "forget"])] {
        let device = gate.world.device(name).await;
        let own = profile(&device);
        let identity = own.certified_key().expect("an identity");
        let knock = &own.enrolled.knock_key;
        let before =
            attempt(gate.address, &own, Some(identity.clone()), &[ALPN_TUNNEL], knock).await;
        assert!(matches!(before, Outcome::In(_)), "{name} was let in before");
        for command in commands {
            assert_eq!(gate.world.aditd(&["device", command, name]).await.code, Some(0));
        }
        // The device's own knock is not answered any more, so this uses the knock of an enrolled
        // device.
        assert_eq!(gate.attempt(Some(identity)).await.code(), CERTIFICATE_REVOKED, "{name}");
        let renewed = gate.issued(profile(&device).enrolled.device_id, &key_pair(&device), now);
        assert_eq!(
            gate.attempt(Some(renewed)).await.code(),
            CERTIFICATE_REVOKED,
            "{name}, with a newer certificate"
        );
    }
    let reached = gate.service.reached.swap(0, SeqCst);
    assert_eq!(reached, 2, "each reached the service once, while it was allowed");

    let key = new_key();
    let unknown = gate.issued(DeviceId::generate(), &key, now);
    assert_eq!(
        gate.attempt(Some(unknown)).await.code(),
        CERTIFICATE_REVOKED,
        "an id that is in no register"
    );
    let stolen_name = gate.issued(gate.id(), &key, now);
    assert_eq!(
        gate.attempt(Some(stolen_name)).await.code(),
        CERTIFICATE_REVOKED,
        "an enrolled id with another key"
    );
    let not_a_device = {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let ca_key = std::fs::read_to_string(gate.world.state().join("ca.key")).expect("a key");
        let issuer = Issuer::from_ca_cert_der(
            gate.ca().certificate(),
            KeyPair::from_pem(&ca_key).expect("a key"),
        )
        .expect("an issuer");
        params.signed_by(&key, &issuer).expect("a certificate").der().clone()
    };
    assert_eq!(
        gate.attempt(Some(certified(vec![not_a_device], &key))).await.code(),
        CERTIFICATE_REVOKED,
        "no id at all"
    );
    gate.assert_shut_and_still_working().await;
}
