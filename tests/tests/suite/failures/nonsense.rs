//! Invalid data from enrolled devices: it is answered by its code, and affects nobody else.

use std::sync::atomic::Ordering::SeqCst;

use client::dial;
use common::transport::frame;
use data_encoding::BASE64;
use proto::{
    invitation::Invitation,
    wire::{ALPN_TUNNEL, Code, EnrollAnswer, EnrollRefusal, SERVER_NAME, StreamHead},
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use tests::{
    credentials::{at_enrollment, csr, enroll, new_key},
    state_files::devices,
    stranger::{Gate, Outcome, WELCOME, ask, crypto, random},
    world::SOON,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::PROGRAM;

#[tokio::test]
async fn a_signing_request_for_a_ca_and_another_name_gets_a_plain_certificate() {
    let gate = Gate::start(PROGRAM).await;
    let invitation: Invitation = gate.world.invite("hostile").await.parse().expect("a code");
    let key = new_key();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![
        SanType::URI(gate.id().to_uri().try_into().expect("a URI")),
        SanType::DnsName(SERVER_NAME.try_into().expect("a name")),
    ];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    let csr = params.serialize_request(&key).expect("a CSR").der().to_vec();
    let EnrollAnswer::Enrolled(enrolled) =
        enroll(&invitation, &*invitation.secret.token(), csr).await
    else {
        panic!("refused")
    };
    assert_ne!(enrolled.device_id, gate.id());
    assert_eq!(enrolled.device.as_str(), "hostile");
    let der = BASE64.decode(enrolled.certificate.as_bytes()).expect("base64");
    let (_, parsed) = X509Certificate::from_der(&der).expect("a certificate");
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().expect("extensions").expect("a usage").value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any, "{usage:?}");
    let usage = parsed.key_usage().expect("extensions").expect("a usage").value;
    assert!(!usage.key_cert_sign(), "{usage:?}");
    let names = parsed.subject_alternative_name().expect("extensions").expect("names");
    assert_eq!(names.value.general_names, [GeneralName::URI(&enrolled.device_id.to_uri())]);
}

#[tokio::test]
async fn an_invalid_enrollment_is_refused_and_keeps_the_invitation() {
    let gate = Gate::start(PROGRAM).await;
    let invitation: Invitation = gate.world.invite("guest").await.parse().expect("a code");
    let token = invitation.secret.token();
    let key = new_key();
    let mut tampered = csr(&key);
    let last = tampered.len() - 3;
    tampered[last] ^= 1;
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    for (what, csr) in [
        ("no request", Vec::new()),
        ("garbage", random(1, 300)),
        ("a wrong signature", tampered),
        ("another kind of key", csr(&ed25519)),
        ("another curve", csr(&p384)),
        ("a request cut short", csr(&key)[..60].to_vec()),
    ] {
        let answer = enroll(&invitation, &*token, csr).await;
        assert!(
            matches!(answer, EnrollAnswer::Refused(EnrollRefusal::BadRequest)),
            "{what}: {answer:?}"
        );
    }
    for token in [&[][..], &[0; 32], &random(3, 2000)] {
        let answer = enroll(&invitation, token, csr(&key)).await;
        assert!(matches!(answer, EnrollAnswer::Refused(EnrollRefusal::Closed)), "{answer:?}");
    }
    // Not even the form of a request: too long, not JSON, a stream head, and an immediate end.
    let service = StreamHead::Forward("ollama".parse().expect("a name")).encode();
    for first in [
        &[0xff; 64][..],
        b"\0\0\0\x04nope",
        &[&service[..], b"GET / HTTP/1.1\r\n\r\n"].concat(),
        b"",
    ] {
        let connection = at_enrollment(&invitation).await;
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        send.write_all(first).await.expect("sent");
        send.finish().expect("finished");
        let answer: EnrollAnswer = tokio::time::timeout(SOON, frame::read(&mut recv))
            .await
            .expect("in time")
            .expect("an answer");
        assert!(matches!(answer, EnrollAnswer::Refused(EnrollRefusal::BadRequest)), "{answer:?}");
        // The connection is closed afterwards: no second stream can be opened.
        tokio::time::timeout(SOON, connection.closed()).await.expect("the end");
    }
    gate.assert_shut_and_still_working().await;
    assert!(matches!(enroll(&invitation, &*token, csr(&key)).await, EnrollAnswer::Enrolled(_)));
    let listed = devices(&gate.world).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
}

#[tokio::test]
async fn invalid_data_on_a_stream_ends_only_that_stream() {
    let gate = Gate::start(PROGRAM).await;
    let outcome = gate.attempt(gate.profile.certified_key().ok()).await;
    let Outcome::In(connection) = outcome else { panic!("{outcome:?}") };
    let head = |name: &str| StreamHead::Forward(name.parse().expect("a name")).encode();
    for (what, first, code) in [
        ("an unknown kind", &b"\x09\x00"[..], Code::Protocol),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n", Code::Protocol),
        ("a length beyond the bound", b"\x01\xff", Code::Protocol),
        ("no name", b"\x01\x00", Code::Protocol),
        ("a name that is none", b"\x01\x03../", Code::Protocol),
        ("bytes that are no text", b"\x01\x02\xff\xfe", Code::Protocol),
        ("half a head and the end", b"\x01\x06oll", Code::Protocol),
        ("nothing and the end", b"", Code::Protocol),
        ("a question that is none", b"\x03\x00\0\0\0\x04nope", Code::Protocol),
        ("a question beyond every bound", b"\x03\x00\xff\xff\xff\xff", Code::Protocol),
        ("half a question and the end", b"\x03\x00\0\0\0\x08\"clo", Code::Protocol),
        ("a service that isn't there", &head("postgres"), Code::UnknownService),
        ("a service that almost is", &head("Ollama"), Code::UnknownService),
    ] {
        assert_eq!(ask(&connection, first).await, Err(code), "{what}");
    }
    let hung: Vec<_> = {
        let mut hung = Vec::new();
        for i in 0..100 {
            let (mut send, recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&head("ollama")[..1 + i % 7]).await.expect("sent");
            hung.push((send, recv));
        }
        hung
    };
    let reached = gate.service.reached.load(SeqCst);
    assert_eq!(ask(&connection, &head("ollama")).await.as_deref(), Ok(WELCOME));
    assert_eq!(gate.service.reached.load(SeqCst), reached + 1);
    assert!(connection.close_reason().is_none());
    drop(hung);
}

#[tokio::test]
async fn an_invalid_greeting_is_answered_with_a_protocol_error() {
    let gate = Gate::start(PROGRAM).await;
    for greeting in [&[0xff; 16][..], b"\0\0\0\x02{}", b"\0\0\0\x04nope", b""] {
        let identity = gate.profile.certified_key().expect("an identity");
        let config = dial::config(
            crypto(&gate.profile, Some(identity), &[ALPN_TUNNEL]),
            &gate.knock_key(),
            proto::wire::IDLE_TIMEOUT,
        );
        let dialed =
            dial::dial(&config, &[gate.address.to_string()], None).await.expect("a connection");
        let mut send = dialed.connection.open_uni().await.expect("a stream");
        send.write_all(greeting).await.expect("sent");
        send.finish().expect("finished");
        let end = tokio::time::timeout(SOON, dialed.connection.closed()).await.expect("the end");
        assert_eq!(Outcome::Out(end).code(), Code::Protocol as u64);
    }
    gate.assert_shut_and_still_working().await;
}
