//! What was stolen: a certificate without its key, and a backup with the server's keys.

use std::{fs, sync::Arc};

use common::transport::tls;
use proto::wire::ALPN_TUNNEL;
use rustls::{
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use tests::{
    cli_assert::assert_ok,
    credentials::{certified, issued, new_key},
    raw::{self, ROOT},
    state_files::{chmod, profile, store, stored, text},
    stranger::{Gate, attempt},
    world::World,
};
use time::OffsetDateTime;

use crate::PROGRAM;

/// Alerts of TLS (RFC 8446 section 6) as codes of QUIC (RFC 9001 section 4.8).
const DECRYPT_ERROR: u64 = 0x100 + 51;
const CERTIFICATE_REVOKED: u64 = 0x100 + 44;

#[tokio::test]
async fn a_stolen_certificate_without_its_key_opens_and_renews_nothing() {
    let gate = Gate::start(PROGRAM).await;
    let honest = gate.profile.certified_key().expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(new_key().serialize_der()));
    let key = tls::provider().key_provider.load_private_key(key).expect("a key");
    // The thief signs with a key of its own. It also has the knock key, which is in the same file.
    let stolen = Arc::new(CertifiedKey::new(honest.cert.clone(), key.clone()));
    assert_eq!(gate.attempt(Some(stolen)).await.code(), DECRYPT_ERROR);
    // A certificate that has just ended may renew itself, by proof of the same key.
    let ended = OffsetDateTime::now_utc() - tests::credentials::LIFE - time::Duration::days(1);
    let ended = issued(&gate.ca(), gate.id(), &tests::credentials::key_pair(&gate.device), ended);
    let stolen = Arc::new(CertifiedKey::new(vec![ended], key));
    assert_eq!(gate.attempt(Some(stolen)).await.code(), DECRYPT_ERROR);
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_stolen_backup_opens_nothing_and_after_a_rotation_nobody_believes_its_server() {
    let world = World::start(PROGRAM).await;
    let (laptop, code) = (world.device("laptop").await, world.invite("desk").await);
    let (backup, passphrase) = (world.scratch("backup"), world.scratch("passphrase"));
    fs::write(&passphrase, "known to the thief\n").expect("written");
    chmod(&passphrase, 0o600);
    let with_keys =
        ["backup", text(&backup), "--with-ca-key", "--passphrase-file", text(&passphrase)];
    assert_ok(&world.aditd(&with_keys).await);
    // The thief has a server of the same keys.
    let mut thiefs = World::start(PROGRAM).await;
    thiefs.kill_server().await;
    fs::remove_dir_all(thiefs.state()).expect("removed");
    let restore = ["restore", text(&backup), "--passphrase-file", text(&passphrase)];
    assert_ok(&thiefs.aditd(&restore).await);
    thiefs.restart_server().await;
    assert_ok(&thiefs.aditd(&["device", "confirm", "laptop"]).await);

    // A certificate that the thief makes is for a key that the register does not have.
    let (own, key) = (profile(&laptop), new_key());
    let stolen_ca = server::Ca::open(&thiefs.state()).expect("the authority");
    let made = issued(&stolen_ca, own.enrolled.device_id, &key, OffsetDateTime::now_utc());
    let made = certified(vec![made], &key);
    let (server, knock) = (world.address().await, &own.enrolled.knock_key);
    let outcome = attempt(server, &own, Some(made), &[ALPN_TUNNEL], knock).await;
    assert_eq!(outcome.code(), CERTIFICATE_REVOKED);
    // The code that was open is not in the backup.
    let list = thiefs.aditd(&["invite", "--list"]).await;
    assert!(!list.stdout.contains("desk"), "{list:?}");
    assert_ok(&world.stranger("desk").enroll(&code, &[]).await);

    // Who answers in place of the server is believed, until there is a new CA.
    let asks_the_thief = async || {
        let mut identity = stored(&laptop);
        identity["addresses"] = vec![thiefs.address().await.to_string()].into();
        store(&laptop, &identity);
    };
    let addresses = stored(&laptop)["addresses"].clone();
    asks_the_thief().await;
    laptop.up(&[]).await.works().await;
    let mut identity = stored(&laptop);
    identity["addresses"] = addresses;
    store(&laptop, &identity);
    assert_ok(&world.aditd(&["ca", "rotate"]).await);
    let up = laptop.up(&[]).await;
    let trusts_new = async {
        while stored(&laptop)["ca"] == identity["ca"] {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(tests::world::SOON, trusts_new).await.expect("it gets the new CA");
    up.works().await;
    asks_the_thief().await;
    let mut up = laptop.start(&["--hold", "0s"]).await;
    up.adit.says("no tunnel: ").await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}
