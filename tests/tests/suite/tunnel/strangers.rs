//! What strangers get: no answer without a knock, a refusal without a certificate, and never the
//! service.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use proto::{
    invitation::Invitation,
    knock::SharedKey,
    wire::{ALPN_ENROLL, ALPN_TUNNEL, EnrollAnswer, SERVER_NAME},
};
use quinn::{ConnectionError, Endpoint};
use tests::{
    credentials::{has_ended, new_key, redeem},
    stranger::{
        Gate, Outcome, Stranger, assert_served, attempt, crypto, first_flight, random, sealed,
    },
    world::{SOON, Up},
};

use crate::PROGRAM;

// The alerts of RFC 8446 section 6, as QUIC carries them (RFC 9001 section 4.8).
const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Sends these packets, then proves by the honest device that the server has handled them, and
/// waits for an answer that must not come.
async fn assert_no_answer(what: &str, gate: &Gate, up: &Up, datagrams: &[Vec<u8>]) {
    let stranger = Stranger::facing(gate.address).await;
    for datagram in datagrams {
        stranger.send(datagram).await;
    }
    assert_served(up).await;
    stranger.assert_heard_nothing(what).await;
}

#[tokio::test]
async fn no_datagram_of_a_stranger_is_answered() {
    let gate = Gate::start(PROGRAM).await;
    let up = gate.device.up(&[]).await;
    let noise = random(1, 4096);

    let garbage: Vec<_> = (0..400).map(|i| random(i, 1 + (i as usize * 37) % 1472)).collect();
    assert_no_answer("garbage", &gate, &up, &garbage).await;
    assert_no_answer("empty datagrams", &gate, &up, &vec![Vec::new(); 20]).await;

    let short: Vec<_> = (0..256u64)
        .map(|i| {
            let mut packet = random(1000 + i, 30 + i as usize * 5);
            packet[0] = 0x40 | packet[0] & 0x3f;
            packet
        })
        .collect();
    assert_no_answer("packets of connections that never were", &gate, &up, &short).await;

    let stranger = || crypto(&gate.profile, None, &[ALPN_TUNNEL]);
    let genuine = first_flight(stranger(), &random(7, 20)).await;
    assert!(
        genuine.iter().all(|datagram| datagram.len() >= 1200),
        "{:?}",
        genuine.iter().map(Vec::len).collect::<Vec<_>>()
    );
    let mut versions = Vec::new();
    for version in
        [0, 2, 0x0a0a_0a0a, 0x0a1a_2a3a, 0x6b33_43cf, 0xff00_001d, 0xbaba_baba, 0xffff_ffffu32]
    {
        for cid in [8, 20] {
            versions.push(sealed(0xc0, version, &random(9, cid), &[], &noise));
        }
        let mut other = genuine[0].clone();
        other[1..5].copy_from_slice(&version.to_be_bytes());
        versions.push(other);
    }
    assert_no_answer("versions that the server doesn't speak", &gate, &up, &versions).await;

    let mut lengths = Vec::new();
    for cid in [0, 1, 7, 8, 9, 19, 20] {
        lengths.extend(first_flight(stranger(), &random(11, cid)).await);
    }
    for cid in [0, 4, 7, 8, 20, 21, 64, 255] {
        // The encrypted part looks different to the server each time, so that all four values of
        // the reserved bits occur.
        lengths.extend(
            (0..16).map(|i| sealed(0xc0 | i, 1, &random(13, cid), &[], &noise[usize::from(i)..])),
        );
    }
    assert_no_answer("first packets with connection IDs of all lengths", &gate, &up, &lengths)
        .await;

    let mut tokens = Vec::new();
    for len in [1, 16, 60, 100, 300] {
        for cid in [0, 8, 20] {
            tokens.extend((0..16).map(|i| {
                sealed(0xc0 | i, 1, &random(15, cid), &random(17, len), &noise[usize::from(i)..])
            }));
        }
    }
    assert_no_answer("first packets with tokens that the server didn't give", &gate, &up, &tokens)
        .await;

    let kinds: Vec<_> = [0xd0, 0xe0, 0xf0, 0x80, 0x90, 0xff]
        .into_iter()
        .flat_map(|first| [8, 20].map(|cid| sealed(first, 1, &random(19, cid), &[], &noise)))
        .collect();
    assert_no_answer("long packets of every other kind", &gate, &up, &kinds).await;

    let other_server = SharedKey::generate();
    let knocks = first_flight(stranger(), &other_server.knock()).await;
    assert_no_answer("a knock with another server's key", &gate, &up, &knocks).await;
    let mut almost = gate.knock_key().knock();
    almost[19] ^= 1;
    assert_no_answer(
        "a knock that is wrong by one bit",
        &gate,
        &up,
        &first_flight(stranger(), &almost).await,
    )
    .await;

    // The test works: with the right knock there is an answer.
    let knock = Stranger::facing(gate.address).await;
    for datagram in first_flight(stranger(), &gate.knock_key().knock()).await {
        knock.send(&datagram).await;
    }
    let answered = tokio::time::timeout(SOON, knock.socket.recv(&mut [0; 2048])).await;
    assert!(answered.expect("an answer").expect("received") > 0);
    assert!(!gate.world.aditd.log().contains("defect"), "{}", gate.world.aditd.log());
}

#[tokio::test]
async fn a_flood_of_first_packets_is_not_answered_and_the_tunnel_works() {
    let gate = Gate::start(PROGRAM).await;
    let up = gate.device.up(&[]).await;
    let noise = random(1, 4096);
    let stranger = Stranger::facing(gate.address).await;
    for round in 0..8u64 {
        for i in 0..512 {
            stranger
                .send(&sealed(0xc0 | (i % 16) as u8, 1, &random(round << 16 | i, 20), &[], &noise))
                .await;
        }
        assert_served(&up).await;
    }
    stranger.assert_heard_nothing("a flood").await;
    assert_eq!(gate.service.reached.load(SeqCst), 8);
}

#[tokio::test]
async fn a_real_quic_client_without_a_knock_gets_no_answer() {
    let gate = Gate::start(PROGRAM).await;
    let invitation: Invitation = gate.world.invite("guest").await.parse().expect("a code");
    let identity = gate.profile.certified_key().expect("an identity");
    let mut attempts = tokio::task::JoinSet::new();
    for (identity, alpn) in
        [(Some(identity), ALPN_TUNNEL), (None, ALPN_TUNNEL), (None, ALPN_ENROLL), (None, b"h3")]
    {
        let mut config =
            quinn::ClientConfig::new(Arc::new(crypto(&gate.profile, identity, &[alpn])));
        let mut impatient = quinn::TransportConfig::default();
        impatient.max_idle_timeout(Some(Duration::from_secs(3).try_into().expect("a time")));
        config.transport_config(Arc::new(impatient));
        let to = gate.address;
        attempts.spawn(async move {
            let endpoint =
                Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("an endpoint");
            endpoint.connect_with(config, to, SERVER_NAME).expect("a connection begins").await
        });
    }
    // The honest device is served throughout.
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    while let Some(ended) = attempts.join_next().await {
        let ended = ended.expect("no panic");
        assert!(matches!(ended, Err(ConnectionError::TimedOut)), "{ended:?}");
    }
    // The invitation would have enrolled a device at any time.
    assert!(matches!(redeem(&invitation, &new_key()).await, EnrollAnswer::Enrolled(_)));
}

#[tokio::test]
async fn a_knock_without_a_certificate_is_refused() {
    let gate = Gate::start(PROGRAM).await;
    assert_eq!(gate.attempt(None).await.code(), CERTIFICATE_REQUIRED);
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn each_knock_key_is_valid_for_one_protocol_only() {
    let gate = Gate::start(PROGRAM).await;
    let invitation: Invitation = gate.world.invite("guest").await.parse().expect("a code");
    let (tunnel, guest) = (gate.knock_key(), invitation.secret.knock_key().into());
    let identity = || gate.profile.certified_key().ok();
    for (what, identity, alpn, knock_key) in [
        ("another protocol", identity(), &[&b"h3"[..]][..], &tunnel),
        ("a later version", identity(), &[b"adit/2"], &tunnel),
        ("no protocol", identity(), &[], &tunnel),
        ("enrollment by the tunnel's door", None, &[ALPN_ENROLL], &tunnel),
        (
            "enrollment by the tunnel's door, with a certificate",
            identity(),
            &[ALPN_ENROLL],
            &tunnel,
        ),
        ("the tunnel by an invitation's door", identity(), &[ALPN_TUNNEL], &guest),
    ] {
        let outcome = attempt(gate.address, &gate.profile, identity, alpn, knock_key).await;
        assert_eq!(outcome.code(), NO_APPLICATION_PROTOCOL, "{what}");
    }
    // If a client offers both protocols, its knock decides.
    let both =
        attempt(gate.address, &gate.profile, None, &[ALPN_ENROLL, ALPN_TUNNEL], &tunnel).await;
    assert_eq!(both.code(), CERTIFICATE_REQUIRED);
    let both =
        attempt(gate.address, &gate.profile, identity(), &[ALPN_TUNNEL, ALPN_ENROLL], &guest).await;
    assert!(matches!(both, Outcome::Out(_)), "{both:?}");
    gate.assert_shut_and_still_working().await;
    // The invitation is still unused.
    assert!(matches!(redeem(&invitation, &new_key()).await, EnrollAnswer::Enrolled(_)));
}

#[tokio::test]
async fn unfinished_handshakes_are_dropped_and_an_honest_device_connects() {
    let mut gate = Gate::start(PROGRAM).await;
    let mut strangers = Vec::new();
    for _ in 0..80 {
        // One half of a ClientHello, with the knock of a device that was enrolled.
        let half =
            first_flight(crypto(&gate.profile, None, &[ALPN_TUNNEL]), &gate.knock_key().knock())
                .await
                .remove(0);
        let stranger = Stranger::facing(gate.address).await;
        stranger.send(&half).await;
        strangers.push(stranger);
    }
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    gate.world.aditd.says("gave up a handshake that took too long").await;
    let gave_up = gate.world.aditd.log().matches("gave up a handshake that took too long").count();
    assert!(
        (1..=64).contains(&gave_up),
        "{gave_up} of the 64 that may be under way:\n{}",
        gate.world.aditd.log()
    );
    drop(strangers);
}

#[tokio::test]
async fn without_open_invitations_only_enrolled_devices_are_answered() {
    // Without an open invitation enrollment is closed: the secret of a used one is worthless once
    // it has expired.
    let gate = Gate::start(PROGRAM).await;
    let invited = gate.world.aditd(&["invite", "guest", "--ttl", "1s"]).await;
    let invitation: Invitation = invited.stdout.parse().expect("a code");
    has_ended(&invitation).await;
    let up = gate.device.up(&[]).await;
    let knocks = first_flight(
        crypto(&gate.profile, None, &[ALPN_ENROLL]),
        &invitation.secret.knock_key().knock(),
    )
    .await;
    assert_no_answer("the knock of an invitation that has ended", &gate, &up, &knocks).await;
}
