//! Clocks that are wrong: told with what sets them right, and nothing is kept of what they have
//! spoilt.

use std::{net::SocketAddr, path::Path, sync::Arc};

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
    knock::DoorKey,
    wire::{EnrollAnswer, EnrollRequest, Enrolled},
};
use server::state::ca::{Ca, DeviceKey};
use tests::{
    credentials::{self, Authority},
    kept::{identity_file, store, stored},
    raw::{self, ROOT},
    told::{FAILED, assert_ok, assert_told},
    world::{Device, World},
};
use time::OffsetDateTime;

use crate::PROGRAM;

/// A server that enrolls everybody, and whose clock is off by so much; with a code for it.
async fn server_with_clock(
    dir: &Path,
    certificate_off: time::Duration,
    devices_off: time::Duration,
) -> (quinn::Endpoint, String) {
    let authority = Authority::new(dir);
    let now = OffsetDateTime::now_utc();
    let identity =
        authority.ca.server_identity(&authority.dir, now + certificate_off).expect("an identity");
    let crypto = tls::server(Admit::Anybody, identity.chain, identity.key).expect("TLS");
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0)))
        .expect("an endpoint");
    let address = endpoint.local_addr().expect("an address").to_string();
    let invitation = Invitation {
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
                door_key: DoorKey::generate(),
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
    (endpoint, invitation.code())
}

#[tokio::test]
async fn clocks_that_are_a_year_apart_are_told_when_enrolling_and_nothing_is_kept() {
    let world = World::start(PROGRAM).await;
    let year = time::Duration::days(365);
    let none = time::Duration::ZERO;
    let unmade = |device: &Device| assert!(!identity_file(device).exists());

    let (_server, code) = server_with_clock(&world.scratch("ahead"), year, year).await;
    let device = world.stranger("ahead");
    let told = device.enroll(&code, &[]).await;
    assert_told(
        &told,
        FAILED,
        &[
            "error: cannot enroll\n  Caused by: the server's certificate is not valid at this computer's time, 20",
            "set this computer's clock",
        ],
    );
    unmade(&device);

    for (name, off) in [("behind", -year), ("half-ahead", year)] {
        let (_server, code) = server_with_clock(&world.scratch(name), none, off).await;
        let device = world.stranger(name);
        let told = device.enroll(&code, &[]).await;
        assert_told(
            &told,
            FAILED,
            &[
                "error: the new certificate is not valid at this computer's time\n  Caused by: the clocks",
                "timedatectl",
            ],
        );
        unmade(&device);
    }

    // And where all is well nothing of this is said.
    let (_server, code) = server_with_clock(&world.scratch("right"), none, none).await;
    assert_ok(&world.stranger("right").enroll(&code, &[]).await);
}

#[tokio::test]
async fn a_certificate_that_the_server_finds_out_of_its_time_is_told_with_a_cure_that_works() {
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
