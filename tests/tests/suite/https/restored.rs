//! A backup that is older than a revocation brings no key and no user back.

use serde_json::Value;
use tests::{cli_assert::assert_ok, ollama::Options, state_files::text};

use super::{Https, address};

/// What a key gets.
async fn status(https: &Https, key: &str) -> u16 {
    https.with_key(key, "/api/tags", &[]).await.status
}

async fn restart(https: &mut Https) {
    https.world.restart_server().await;
    https.address = address(&https.world).await;
}

#[tokio::test]
async fn keys_and_users_that_were_revoked_after_a_backup_stay_revoked_when_it_is_restored() {
    let mut https = Https::start(Options::default(), "").await;
    let kept = https.key("kept", &["--user", "alice"]).await;
    let stolen = https.key("stolen", &["--user", "alice"]).await;
    let bobs = https.key("bobs", &["--user", "bob"]).await;
    let old = https.key("rotated", &[]).await;
    let backup = https.world.scratch("backup");
    assert_ok(&https.world.aditd(&["backup", text(&backup)]).await);
    assert_ok(&https.world.aditd(&["key", "revoke", "stolen"]).await);
    assert_ok(&https.world.aditd(&["user", "revoke", "bob"]).await);
    let rotated = https.world.aditd(&["key", "rotate", "rotated", "--overlap", "0s"]).await;
    assert_ok(&rotated);
    https.world.aditd.stop().await;
    assert_ok(&https.world.aditd(&["restore", text(&backup), "--replace"]).await);
    restart(&mut https).await;
    assert_eq!(status(&https, &kept).await, 200);
    for ended in [&stolen, &bobs, &old, rotated.stdout.trim()] {
        assert_eq!(status(&https, ended).await, 401);
    }
    let another = https.world.aditd(&["key", "create", "more", "--user", "bob"]).await;
    assert!(another.code != Some(0) && another.stderr.contains("revoked"), "{another:?}");
    // Until the owner says so.
    assert_ok(&https.world.aditd(&["user", "restore", "bob"]).await);
    assert_eq!(status(&https, &bobs).await, 200);
    assert_eq!(status(&https, &stolen).await, 401);
}

#[tokio::test]
async fn without_a_register_that_knows_better_no_key_of_a_backup_works() {
    let mut https = Https::start(Options::default(), "").await;
    let keys = [https.key("one", &["--user", "alice"]).await, https.key("other", &[]).await];
    let backup = https.world.scratch("backup");
    assert_ok(&https.world.aditd(&["user", "revoke", "alice"]).await);
    assert_ok(&https.world.aditd(&["backup", text(&backup)]).await);
    assert_ok(&https.world.aditd(&["key", "revoke", "other"]).await);
    https.world.aditd.stop().await;
    std::fs::remove_file(https.world.state().join("register.sqlite")).expect("lost");
    assert_ok(&https.world.aditd(&["restore", text(&backup), "--replace"]).await);
    restart(&mut https).await;
    for key in &keys {
        assert_eq!(status(&https, key).await, 401);
    }
    let listed = https.world.aditd(&["key", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let all = listed["keys"].as_array().expect("keys");
    assert!(all.iter().all(|key| key["revoked"].is_i64()), "{listed}");
    // The name is free for a new one, of a user who is not revoked.
    let new = https.key("one", &["--user", "bob"]).await;
    assert_eq!(status(&https, &new).await, 200);
    let of_alice = https.world.aditd(&["key", "create", "x", "--user", "alice"]).await;
    assert!(of_alice.code != Some(0) && of_alice.stderr.contains("revoked"), "{of_alice:?}");
}

#[tokio::test]
async fn a_register_that_is_put_back_by_hand_brings_no_secret_of_before_a_rotation_back() {
    let mut https = Https::start(Options::default(), "").await;
    let leaked = https.key("ci", &[]).await;
    https.world.aditd.stop().await;
    let file = https.world.state().join("register.sqlite");
    let before = std::fs::read(&file).expect("read");
    restart(&mut https).await;
    assert_ok(&https.world.aditd(&["key", "rotate", "ci", "--overlap", "0s"]).await);
    https.world.aditd.stop().await;
    common::machine::files::replace(&file, &before).expect("put back");
    for side in ["register.sqlite-wal", "register.sqlite-shm"] {
        let _ = std::fs::remove_file(https.world.state().join(side));
    }
    restart(&mut https).await;
    assert_eq!(status(&https, &leaked).await, 401);
}
