//! Backups of before and after a rotation.

use std::fs;

use tests::{
    cli_assert::assert_ok,
    state_files::{chmod, text},
    world::World,
};

use super::{gets_it, rotate, states, trusted};
use crate::PROGRAM;

#[tokio::test]
async fn a_backup_of_before_a_rotation_brings_the_register_back_and_not_the_old_ca() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    let file = world.scratch("").join("backup");
    assert_ok(&world.aditd(&["backup", text(&file)]).await);
    rotate(&world).await;
    gets_it(&world, &laptop, "laptop").await;
    let ended = world.aditd(&["ca", "retire", "--force"]).await;
    assert_ok(&ended);
    // Over the register that knows, and where it is lost.
    for is_lost in [false, true] {
        world.kill_server().await;
        if is_lost {
            for name in ["register.sqlite", "register.sqlite-wal", "register.sqlite-shm", "epoch"] {
                let _ = fs::remove_file(world.state().join(name));
            }
        }
        assert_ok(&world.aditd(&["restore", text(&file), "--replace"]).await);
        world.restart_server().await;
        assert_eq!(states(&world).await, ["retired", "current"], "{is_lost}");
        assert!(!world.state().join("ca.key").exists());
        if is_lost {
            assert_ok(&world.aditd(&["device", "confirm", "--all"]).await);
        }
        laptop.up(&[]).await.works().await;
    }
    // It slept through all of that.
    desk.up(&[]).await.works().await;
    assert_eq!(trusted(&desk), trusted(&laptop));
}

#[tokio::test]
async fn a_backup_with_the_keys_of_two_cas_brings_both_back() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    let (before, after) = (world.scratch("before"), world.scratch("after"));
    let passphrase = world.scratch("passphrase");
    fs::write(&passphrase, "correct horse\n").expect("written");
    chmod(&passphrase, 0o600);
    let with = ["--passphrase-file", text(&passphrase)];
    let back_up = |file| [&["backup", file, "--with-ca-key"], &with[..]].concat();
    let restore = |file| [&["restore", file, "--replace"], &with[..]].concat();
    assert_ok(&world.aditd(&back_up(text(&before))).await);
    rotate(&world).await;
    gets_it(&world, &laptop, "laptop").await;
    assert_ok(&world.aditd(&back_up(text(&after))).await);
    world.kill_server().await;
    fs::remove_dir_all(world.state()).expect("removed");
    assert_ok(&world.aditd(&restore(text(&after))).await);
    world.restart_server().await;
    assert_ok(&world.aditd(&["device", "confirm", "--all"]).await);
    assert_eq!(states(&world).await, ["old", "current"]);
    gets_it(&world, &laptop, "laptop").await;
    gets_it(&world, &desk, "desk").await;
    assert_ok(&world.aditd(&["ca", "retire"]).await);

    // The keys of before come over those that are there: what has ended does not come back.
    world.kill_server().await;
    assert_ok(&world.aditd(&restore(text(&before))).await);
    assert!(!world.state().join("ca.key").exists());
    world.restart_server().await;
    // That backup is of before the first restore, so nobody knows what was revoked since.
    assert_ok(&world.aditd(&["device", "confirm", "--all"]).await);
    assert_eq!(states(&world).await, ["retired", "current"]);
    for device in [&laptop, &desk] {
        device.up(&[]).await.works().await;
    }
}
