//! Backups: what they hold, what a restore brings back, and that it brings back no revoked device.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tests::{
    cli_assert::{FAILED, USAGE, assert_ok, assert_told},
    raw::{self, ROOT},
    state_files::{chmod, devices, text},
    world::{Device, SOON, World},
};

use crate::PROGRAM;

/// Waits until the device is told that it is held back.
async fn is_held(device: &Device) {
    let mut up = device.start(&["--hold", "0s"]).await;
    let told = async {
        loop {
            let answer = raw::exchange(up.address, ROOT).await;
            assert!(!answer.ends_with("Ollama is running"), "{answer}");
            if answer.contains("not confirmed yet") && answer.contains("aditd device confirm") {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, told).await.expect("it is told");
    up.adit.kill().await;
}

/// Which devices are held back.
async fn held(world: &World) -> Vec<String> {
    let all = devices(world).await;
    let held = all.iter().filter(|device| device["to_confirm"].is_i64());
    held.map(|device| device["name"].as_str().expect("a name").to_owned()).collect()
}

fn passphrase(world: &World, said: &str) -> PathBuf {
    let file = world.scratch("").join(format!("passphrase-{said}"));
    fs::write(&file, format!("{said}\n")).expect("written");
    chmod(&file, 0o600);
    file
}

fn copy(state: &Path, name: &str) -> Vec<u8> {
    fs::read(state.join(name)).expect(name)
}

#[tokio::test]
async fn a_lost_state_is_restored_and_nobody_is_let_in_before_the_owner_confirms() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    laptop.up(&[]).await.works().await;
    let file = world.scratch("").join("backup");
    let right = passphrase(&world, "right");
    let with_keys = ["backup", text(&file), "--with-ca-key", "--passphrase-file", text(&right)];
    assert_ok(&world.aditd(&with_keys).await);
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    assert_told(&world.aditd(&with_keys).await, USAGE, &["there is a file", "replaces no file"]);
    // This revocation is lost.
    assert_ok(&world.aditd(&["device", "revoke", "desk"]).await);
    laptop.up(&[]).await.works().await;

    let running = world
        .aditd(&["restore", text(&file), "--replace", "--passphrase-file", text(&right)])
        .await;
    assert_told(&running, FAILED, &["aditd runs on the state", "stop it first"]);
    let unasked = world.aditd(&["restore", text(&file), "--replace"]).await;
    assert_told(&unasked, FAILED, &["aditd runs on the state"]);
    world.kill_server().await;
    fs::remove_dir_all(world.state()).expect("removed");
    let wrong = passphrase(&world, "wrong");
    let refused = world.aditd(&["restore", text(&file), "--passphrase-file", text(&wrong)]).await;
    assert_told_or_hint(&refused.stderr, "the passphrase does not open the backup");
    assert_told_or_hint(&refused.stderr, "it is another passphrase, or the file is damaged");
    let restored = world.aditd(&["restore", text(&file), "--passphrase-file", text(&right)]).await;
    assert_ok(&restored);
    assert!(restored.stderr.contains("2 devices are held back"), "{}", restored.stderr);

    world.restart_server().await;
    assert_eq!(held(&world).await, ["desk", "laptop"]);
    is_held(&desk).await;
    is_held(&laptop).await;
    let list = world.aditd(&["device", "list"]).await;
    assert!(list.stdout.contains("to confirm"), "{}", list.stdout);
    // The laptop remembers that revocation.
    assert!(list.stderr.contains("1 revocation since the backup is lost"), "{}", list.stderr);
    assert_eq!(world.status().await["to_confirm"], 2);

    assert_ok(&world.aditd(&["device", "confirm", "laptop"]).await);
    assert_ok(&world.aditd(&["device", "revoke", "desk"]).await);
    laptop.up(&[]).await.works().await;
    assert!(held(&world).await.is_empty());
}

fn assert_told_or_hint(stderr: &str, what: &str) {
    assert!(stderr.contains(what), "{stderr}");
}

#[tokio::test]
async fn a_restore_over_a_register_keeps_what_that_one_knows_of_revocations() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, _desk) = (world.device("laptop").await, world.device("desk").await);
    let file = world.scratch("").join("backup");
    assert_ok(&world.aditd(&["backup", text(&file)]).await);
    assert_ok(&world.aditd(&["device", "revoke", "desk", "--reason", "sold"]).await);
    world.kill_server().await;
    let there = world.aditd(&["restore", text(&file)]).await;
    assert_told(&there, USAGE, &["there is a state in", "--replace"]);
    assert_ok(&world.aditd(&["restore", text(&file), "--replace"]).await);
    world.restart_server().await;
    assert!(held(&world).await.is_empty());
    laptop.up(&[]).await.works().await;
    let shown = world.aditd(&["device", "show", "desk"]).await.stdout;
    assert!(shown.contains("revoked") && shown.contains("Reason       sold"), "{shown}");

    // Without keys it is of no use elsewhere.
    world.kill_server().await;
    fs::remove_dir_all(world.state()).expect("removed");
    let refused = world.aditd(&["restore", text(&file)]).await;
    assert_told(&refused, FAILED, &["the backup has no keys of the server", "--with-ca-key"]);
    for garbage in ["", "{}", "{\"adit_backup\": 1}", "\u{0}"] {
        fs::write(&file, garbage).expect("written");
        let refused = world.aditd(&["restore", text(&file)]).await;
        assert_told(&refused, FAILED, &["that is not a backup of aditd", "aditd backup FILE"]);
    }
}

#[tokio::test]
async fn a_register_that_is_put_back_by_hand_is_noticed_by_the_server_or_by_a_device() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    world.kill_server().await;
    // Whoever closes the register last puts all of it into its one file.
    assert_ok(&world.aditd(&["device", "list"]).await);
    let state = world.state();
    let (register, epoch) = (copy(&state, "register.sqlite"), copy(&state, "epoch"));
    world.restart_server().await;
    assert_ok(&world.aditd(&["device", "revoke", "desk"]).await);
    laptop.up(&[]).await.works().await;
    for all in [true, false] {
        world.kill_server().await;
        for side in ["register.sqlite-wal", "register.sqlite-shm"] {
            let _ = fs::remove_file(state.join(side));
        }
        fs::write(state.join("register.sqlite"), &register).expect("written");
        if all {
            fs::write(state.join("epoch"), &epoch).expect("written");
        }
        world.restart_server().await;
        if all {
            // Nothing on the box remembers, so a device has to.
            assert!(held(&world).await.is_empty());
            is_held(&laptop).await;
            world.audit_has(1, |line| line["event"] == "revocations_lost").await;
        }
        assert_eq!(held(&world).await, ["desk", "laptop"], "all: {all}");
        is_held(&desk).await;
    }
}
