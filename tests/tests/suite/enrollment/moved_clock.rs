//! Years pass within seconds: certificates are renewed and end in every order, and no device is left
//! out.

use std::{fs, path::Path};

use data_encoding::BASE64;
use proto::{identity::Certificate, wire::SERVER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tests::{
    cli_assert::assert_ok,
    credentials::{LIFE, issued, key_pair},
    fake_clock::FakeClock,
    process::Process,
    raw::{self, ROOT},
    state_files::{devices, profile, store, stored},
    world::{Device, World},
};
use time::{Duration, OffsetDateTime};

use crate::PROGRAM;

const DAY: i64 = 24 * 3600;

async fn restart_at(world: &mut World, clock: &FakeClock, days: i64) {
    world.kill_server().await;
    clock.set_ahead(days * DAY);
    world.restart_server_by(clock).await;
}

/// Connects by this clock, and asserts that Ollama answers. It ends as a laptop that is shut down.
async fn works_by(device: &Device, clock: &FakeClock) {
    let mut command = device.command(&["up", "-v", "--listen", "127.0.0.1:0"]);
    clock.give(&mut command);
    let mut adit = Process::spawn(command, "adit").expect("adit starts");
    adit.ready().await.expect("adit is ready");
    let address = tests::laptop::address_in(&adit.log()).expect("an address");
    let answer = raw::exchange(address, ROOT).await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    adit.kill().await;
}

fn in_days(days: i64) -> i64 {
    common::machine::process::unix_now() + days * DAY
}

#[tokio::test]
async fn a_year_of_renewals_with_rotations_and_holidays_locks_nobody_out() {
    let mut world = World::start(PROGRAM).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    let own_id = profile(&laptop).enrolled.device_id;
    let (mut day, mut ends) = (0, Vec::new());
    // The desk is away in between, for less than the 90 days of recovery.
    let mut desk_until = 0;
    for step in 0.. {
        if day > 365 {
            break;
        }
        // Three times within a certificate's life, and then past its end.
        day += [12, 12, 12, 45][step % 4];
        restart_at(&mut world, &clock, day).await;
        if step % 5 == 4 {
            assert_ok(&world.aditd(&["ca", "rotate"]).await);
        }
        works_by(&laptop, &clock).await;
        if day >= desk_until {
            works_by(&desk, &clock).await;
            desk_until = day + 80;
        }
        let now = profile(&laptop).certificate().expect("a certificate");
        assert!((now.not_before..=now.not_after).contains(&in_days(day)), "day {day}: {now:?}");
        ends.push(now.not_after);
    }
    let came = ends.len();
    ends.dedup();
    // In its last third, and when it has ended.
    assert!(came >= 18 && ends.len() >= came / 2, "of {came}: {ends:?}");
    assert_eq!(profile(&laptop).enrolled.device_id, own_id, "and never enrolled again");
    let all = devices(&world).await;
    assert_eq!(all.len(), 2, "{all:?}");
}

/// A key of the server's state.
fn key(state: &Path, name: &str) -> KeyPair {
    KeyPair::from_pem(&fs::read_to_string(state.join(name)).expect("a key")).expect("a key")
}

/// Makes the certificates of the CA, of the server and of the device end after so many days.
fn end_after(world: &World, device: &Device, [ca, server, own]: [i64; 3]) {
    let (state, now) = (world.state(), OffsetDateTime::now_utc());
    let mut authority = CertificateParams::default();
    authority.distinguished_name = DistinguishedName::new();
    authority.distinguished_name.push(DnType::CommonName, "Adit CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority.not_before = now - Duration::days(7300);
    authority.not_after = now + Duration::days(ca);
    let signed = authority.self_signed(&key(&state, "ca.key")).expect("signed");
    fs::write(state.join("ca.crt"), signed.pem()).expect("written");
    let mut served = CertificateParams::new(vec![SERVER_NAME.to_owned()]).expect("a name");
    served.distinguished_name = DistinguishedName::new();
    served.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // As long ago as its last third does not begin before its end is near.
    served.not_before = now - Duration::days(1);
    served.not_after = now + Duration::days(server);
    let issuer = Issuer::new(authority, key(&state, "ca.key"));
    let made = served.signed_by(&key(&state, "server.key"), &issuer).expect("signed");
    fs::write(state.join("server.crt"), made.pem()).expect("written");
    let mut identity = stored(device);
    let id = profile(device).enrolled.device_id;
    let at = now + Duration::days(own) - LIFE;
    let certificate = issued(&server::Ca::open(&state).expect("a CA"), id, &key_pair(device), at);
    identity["certificate"] = BASE64.encode(&certificate).into();
    identity["ca"] = BASE64.encode(signed.der()).into();
    store(device, &identity);
}

/// Whether the server's certificate is valid in so many days.
fn server_is_valid_in(world: &World, days: i64) -> bool {
    let pem = fs::read(world.state().join("server.crt")).expect("a certificate");
    let der = CertificateDer::from_pem_slice(&pem).expect("PEM");
    let read = Certificate::from_der(&der).expect("a certificate");
    (read.not_before..=read.not_after).contains(&in_days(days))
}

#[tokio::test]
async fn the_certificates_of_ca_server_and_device_end_in_every_order_and_the_device_gets_in() {
    // The days after which they end: CA, server, device.
    const ORDERS: [[i64; 3]; 6] =
        [[10, 20, 29], [10, 29, 20], [20, 10, 29], [20, 29, 10], [29, 10, 20], [29, 20, 10]];
    let mut world = World::start(PROGRAM).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let device = world.device("laptop").await;
    for ends in ORDERS {
        world.kill_server().await;
        end_after(&world, &device, ends);
        // None has ended, one, two, and all of them.
        for days in [5, 15, 25, 35] {
            restart_at(&mut world, &clock, days).await;
            works_by(&device, &clock).await;
            assert!(server_is_valid_in(&world, days), "{ends:?}, day {days}");
            let own = profile(&device).certificate().expect("a certificate");
            let is_valid = (own.not_before..=own.not_after).contains(&in_days(days));
            assert!(is_valid, "{ends:?}, day {days}: {own:?}");
        }
    }
    // With an end of the CA that has passed, a new one takes its place as always.
    assert_ok(&world.aditd(&["ca", "rotate"]).await);
    works_by(&device, &clock).await;
}
