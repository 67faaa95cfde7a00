//! A box whose clock has no battery: the server starts in 1970, and then the clock is set.

use std::{fs, path::Path};

use common::machine::process::unix_now;
use proto::wire::SERVER_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use tests::{
    fake_clock::FakeClock,
    raw::{self, ROOT},
    world::World,
};
use time::{Duration, OffsetDateTime};

use crate::PROGRAM;

/// A key of the server's state.
fn key(state: &Path, name: &str) -> KeyPair {
    KeyPair::from_pem(&fs::read_to_string(state.join(name)).expect("a key")).expect("a key")
}

/// Makes the state that of a box which was switched off for long: the authority was made years ago,
/// and the server's certificate has ended since. The keys stay, so that devices know them.
fn grow_old(state: &Path) {
    let now = OffsetDateTime::now_utc();
    let mut authority = CertificateParams::default();
    authority.distinguished_name = DistinguishedName::new();
    authority.distinguished_name.push(DnType::CommonName, "Adit CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    authority.not_before = now - Duration::days(4000);
    authority.not_after = now + Duration::days(1000);
    let signed = authority.self_signed(&key(state, "ca.key")).expect("signed");
    fs::write(state.join("ca.crt"), signed.pem()).expect("written");
    let mut own = CertificateParams::new(vec![SERVER_NAME.to_owned()]).expect("a name");
    own.distinguished_name = DistinguishedName::new();
    own.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    own.not_before = now - Duration::days(3700);
    own.not_after = now - Duration::hours(1);
    let issuer = Issuer::new(authority, key(state, "ca.key"));
    let signed = own.signed_by(&key(state, "server.key"), &issuer).expect("signed");
    fs::write(state.join("server.crt"), signed.pem()).expect("written");
}

#[tokio::test]
async fn a_server_that_started_in_1970_renews_its_certificate_when_the_clock_is_set() {
    let mut world = World::start(PROGRAM).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let device = world.device("laptop").await;
    world.kill_server().await;
    grow_old(&world.state());
    let certificate = world.state().join("server.crt");
    let old = fs::read(&certificate).expect("a certificate");

    clock.set_ahead(10 - unix_now());
    world.restart_server_by(&clock).await;
    let mut up = device.start(&["--hold", "0s"]).await;
    up.adit.says("or the server's is wrong").await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(fs::read(&certificate).expect("a certificate"), old, "the time is not known");

    // Nobody restarts the server.
    clock.set_ahead(0);
    up.adit.ready().await.expect("it comes up by itself");
    up.works().await;
    assert_ne!(fs::read(&certificate).expect("a certificate"), old);
}
