//! Wrong clocks: they are reported with their cure, and nothing that they have spoilt is stored.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use common::{
    machine::process::unix_now,
    transport::{
        frame,
        tls::{self, Admit},
    },
};
use data_encoding::BASE64;
use proto::{
    invitation::{Invitation, Secret},
    knock::SharedKey,
    wire::{EnrollAnswer, EnrollRequest, Enrolled},
};
use server::{Ca, DeviceKey, ServerCertificate, State};
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    credentials::{self, Authority},
    raw::{self, ROOT},
    state_files::{device_names, identity_file, store, stored},
    world::{Device, World},
};
use time::OffsetDateTime;

use crate::PROGRAM;

/// A server that enrolls every device, and whose clock is off by this much; with a code for it.
async fn server_with_clock(
    dir: &Path,
    certificate_off: time::Duration,
    devices_off: time::Duration,
) -> (quinn::Endpoint, String, Arc<ServerCertificate>) {
    let authority = Authority::new(dir);
    let now = OffsetDateTime::now_utc();
    let identity =
        authority.ca.server_identity(&authority.dir, now + certificate_off).expect("an identity");
    let certificate = ServerCertificate::new(identity);
    let crypto = tls::server(Admit::Anybody, certificate.clone()).expect("TLS");
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0)))
        .expect("an endpoint");
    let address = endpoint.local_addr().expect("an address").to_string();
    let invitation = Invitation {
        sign_in: false,
        addresses: vec![address.clone()],
        ca: authority.ca.key_hash(),
        expires: unix_now() + 600,
        secret: Secret::generate(),
    };
    let server = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let Ok((mut send, mut recv)) = connection.accept_bi().await else {
                continue;
            };
            let request: EnrollRequest = frame::read(&mut recv).await.expect("a request");
            let csr = BASE64.decode(request.csr.as_bytes()).expect("base64");
            let key = DeviceKey::from_csr(&csr).expect("a key");
            let device_id = proto::identity::DeviceId::generate();
            let issued = authority
                .ca
                .issue_device(device_id, &key, now + devices_off, credentials::LIFE)
                .expect("a certificate");
            let enrolled = Enrolled {
                device: "laptop".parse().expect("a name"),
                device_id,
                certificate: BASE64.encode(&issued.certificate),
                ca: BASE64.encode(authority.ca.certificate()),
                knock_key: SharedKey::generate().into(),
                addresses: vec![address.clone()],
                services: Vec::new(),
                relay_port: None,
            };
            frame::write(&mut send, &EnrollAnswer::Enrolled(Box::new(enrolled)))
                .await
                .expect("sent");
            send.finish().expect("finished");
            connection.closed().await;
        }
    });
    (endpoint, invitation.code().to_string(), certificate)
}

#[tokio::test]
async fn enrolling_with_clocks_a_year_apart_fails_with_both_times_and_stores_nothing() {
    let world = World::start(PROGRAM).await;
    let year = time::Duration::days(365);
    let none = time::Duration::ZERO;
    let unmade = |device: &Device| assert!(!identity_file(device).exists());

    let (_server, code, _) = server_with_clock(&world.scratch("ahead"), year, year).await;
    let device = world.stranger("ahead");
    let told = device.enroll(&code, &[]).await;
    assert_told(
        &told,
        FAILED,
        &[
            "error: cannot enroll\n  Caused by: this computer's clock or the server's is wrong: this computer's shows 20",
            "Z, the server's showed 20",
            "timedatectl",
        ],
    );
    unmade(&device);

    for (name, off, whose) in
        [("behind", -year, "the server's"), ("half-ahead", year, "this computer's")]
    {
        let (_server, code, _) = server_with_clock(&world.scratch(name), none, off).await;
        let device = world.stranger(name);
        let told = device.enroll(&code, &[]).await;
        assert_told(
            &told,
            FAILED,
            &[
                &format!(
                    "error: the new certificate is not valid at this computer's time\n  Caused by: {whose} clock"
                ),
                "Z, the server's 20",
                "timedatectl",
            ],
        );
        unmade(&device);
    }

    // With correct clocks, the output says nothing about clocks.
    let (_server, code, _) = server_with_clock(&world.scratch("right"), none, none).await;
    assert_ok(&world.stranger("right").enroll(&code, &[]).await);
}

#[tokio::test]
async fn a_certificate_outside_its_validity_is_reported_with_a_cure_that_works() {
    let world = World::start(PROGRAM).await;
    let authority = Ca::open(&world.state()).expect("the authority");
    for (name, days, cure) in
        [("ahead", 365, "clock"), ("long-over", -365, "adit enroll --replace")]
    {
        let device = world.device(name).await;
        let mut identity = stored(&device);
        let key = rcgen::KeyPair::from_pem(identity["private_key"].as_str().expect("a key"))
            .expect("a key");
        let id = identity["device_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let at = OffsetDateTime::now_utc() + time::Duration::days(days);
        identity["certificate"] =
            BASE64.encode(&credentials::issued(&authority, id, &key, at)).into();
        store(&device, &identity);
        let mut up = device.start(&["--hold", "0s"]).await;
        up.adit.says(cure).await;
        let answer = raw::exchange(up.address, ROOT).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(cure), "{name}: {answer}");
    }
}

#[tokio::test]
async fn the_servers_certificate_is_checked_again_after_the_clock_was_set() {
    let world = World::start(PROGRAM).await;
    let (ahead, none) = (time::Duration::days(365), time::Duration::ZERO);
    let dir = world.scratch("ahead");
    let (_server, code, certificate) = server_with_clock(&dir, ahead, none).await;
    let device = world.stranger("laptop");
    assert_told(&device.enroll(&code, &[]).await, FAILED, &["the server's showed 20"]);
    let state = State::open_or_create(&dir).expect("the state");
    certificate.look_again(&state, OffsetDateTime::now_utc());
    assert_ok(&device.enroll(&code, &[]).await);
    // With a clock in 1970 the certificate is kept.
    certificate.look_again(&state, OffsetDateTime::UNIX_EPOCH);
    assert_ok(&device.enroll(&code, &["--replace"]).await);
}

/// Makes the CA of a server appear to be created two days from now, as a clock that is behind sees
/// it. The key is the same, so that its signatures stay valid.
fn put_clock_behind(state: &Path) {
    let key = fs::read_to_string(state.join("ca.key")).expect("a key");
    let key = rcgen::KeyPair::from_pem(&key).expect("a key");
    let now = OffsetDateTime::now_utc();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Adit CA");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_before = now + time::Duration::days(2);
    params.not_after = now + time::Duration::days(1000);
    let certificate = params.self_signed(&key).expect("signed");
    fs::write(state.join("ca.crt"), certificate.pem()).expect("written");
}

#[tokio::test]
async fn a_server_whose_clock_is_behind_keeps_its_certificate_and_reports_the_clock() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let code = world.invite("desk").await;
    world.kill_server().await;
    let certificate = world.state().join("server.crt");
    let (good, authority) = (fs::read(&certificate), fs::read(world.state().join("ca.crt")));
    let (good, authority) = (good.expect("a certificate"), authority.expect("a certificate"));
    put_clock_behind(&world.state());
    world.restart_server().await;
    assert_eq!(fs::read(&certificate).expect("a certificate"), good);

    let year = &OffsetDateTime::now_utc().year().to_string();
    let both = format!("this machine's clock is wrong: it shows {year}");
    let told = world.aditd(&["invite", "tablet"]).await;
    assert_told(&told, FAILED, &[&both, "which is before 20", "timedatectl"]);
    let whose = format!("the server's clock is wrong: this computer's shows {year}");
    let told = world.stranger("desk").enroll(&code, &[]).await;
    let both = format!("Z, the server's {year}");
    assert_told(&told, FAILED, &[&whose, &both, "set the clock on the server"]);
    assert_eq!(device_names(&world).await, ["laptop"]);
    let mut up = device.start(&["--hold", "0s"]).await;
    up.adit.says(&whose).await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(&whose), "{answer}");

    for _ in 0..5 {
        raw::exchange(up.address, ROOT).await;
    }
    assert_eq!(up.adit.log().matches(&whose).count(), 1, "each attempt finds it, and one logs it");

    // When the clock is right again, the laptop needs no restart.
    world.kill_server().await;
    fs::write(world.state().join("ca.crt"), authority).expect("written");
    world.restart_server().await;
    up.adit.ready().await.expect("it comes up by itself");
    assert_ok(&world.stranger("desk").enroll(&code, &[]).await);
}
