//! Devices that are not connected while the CA is rotated.

use tests::{
    cli_assert::{FAILED, USAGE, assert_ok, assert_told},
    world::World,
};

use super::{all_have_it, behind, gets_it, rotate, states, status, trusted};
use crate::PROGRAM;

#[tokio::test]
async fn a_device_that_sleeps_gets_the_new_ca_in_the_overlap_and_then_the_old_one_can_end() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    laptop.up(&[]).await.works().await;
    let before = trusted(&laptop);
    assert_told(&world.aditd(&["ca", "retire"]).await, USAGE, &["no old", "aditd ca rotate"]);
    rotate(&world).await;
    assert_eq!(behind(&world).await, ["desk", "laptop"]);
    assert_eq!(states(&world).await, ["old", "current"]);
    let shown = world.aditd(&["ca", "status"]).await;
    assert!(shown.stdout.contains("old, valid"), "{}", shown.stdout);
    assert!(shown.stderr.contains("0 of 2 devices") && shown.stderr.contains("never"), "{shown:?}");
    let refused = world.aditd(&["ca", "retire"]).await;
    let parts = ["2 devices do not have", "`desk`, `laptop`", "aditd ca retire --force"];
    assert_told(&refused, FAILED, &parts);
    // The server was not told by the command alone.
    world.kill_server().await;
    world.restart_server().await;
    for device in [&laptop, &desk] {
        let up = device.up(&[]).await;
        super::until("it is stored", || async { trusted(device) != before }).await;
        up.works().await;
    }
    all_have_it(&world).await;
    assert_ok(&world.aditd(&["ca", "retire"]).await);
    assert_eq!(states(&world).await, ["retired", "current"]);
    assert!(!world.state().join("ca.key").exists(), "nobody can sign with it any more");
    laptop.up(&[]).await.works().await;
    world.kill_server().await;
    world.restart_server().await;
    desk.up(&[]).await.works().await;
    for event in ["ca_rotate", "ca_retire"] {
        world.audit_has(1, |line| line["event"] == event).await;
    }
}

#[tokio::test]
async fn devices_that_missed_one_or_two_rotations_recover_by_proof_of_their_keys() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    rotate(&world).await;
    assert_ok(&world.aditd(&["ca", "retire", "--force"]).await);
    let up = laptop.up(&[]).await;
    all_have_but(&world, &["desk"]).await;
    up.works().await;

    rotate(&world).await;
    let retired = world.aditd(&["ca", "retire", "--force"]).await;
    assert_ok(&retired);
    assert!(retired.stdout.contains("desk") && retired.stderr.contains("90 days"), "{retired:?}");
    assert_eq!(states(&world).await, ["retired", "retired", "current"]);
    // One is two behind, the other one.
    world.kill_server().await;
    world.restart_server().await;
    desk.up(&[]).await.works().await;
    laptop.up(&[]).await.works().await;
    all_have_it(&world).await;
    assert_eq!(trusted(&desk), trusted(&laptop));
    assert_eq!(status(&world).await["cas"][2]["devices"], 2);
}

async fn all_have_but(world: &World, names: &[&str]) {
    super::until("the others have it", || async { behind(world).await == names }).await;
}

#[tokio::test]
async fn a_device_that_missed_two_rotations_comes_while_all_cas_are_valid() {
    let world = World::start(PROGRAM).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    rotate(&world).await;
    gets_it(&world, &laptop, "laptop").await;
    rotate(&world).await;
    let (one, other) = (laptop.up(&[]).await, desk.up(&[]).await);
    all_have_it(&world).await;
    assert_eq!(trusted(&desk), trusted(&laptop));
    one.works().await;
    other.works().await;
}

#[tokio::test]
async fn a_revoked_device_gets_no_new_ca_and_keeps_no_old_one_valid() {
    let mut world = World::start(PROGRAM).await;
    let (laptop, lost) = (world.device("laptop").await, world.device("lost").await);
    let before = trusted(&lost);
    rotate(&world).await;
    assert_ok(&world.aditd(&["device", "revoke", "lost"]).await);
    gets_it(&world, &laptop, "laptop").await;
    assert!(behind(&world).await.is_empty(), "it does not count");
    for ended in [false, true] {
        if ended {
            assert_ok(&world.aditd(&["ca", "retire"]).await);
            world.kill_server().await;
            world.restart_server().await;
        }
        let mut up = lost.start(&[]).await;
        up.adit.says("no tunnel: no answer from").await;
        up.adit.kill().await;
        assert_eq!(trusted(&lost), before);
    }
    // Let in again, it has not lost anything: it recovers.
    assert_ok(&world.aditd(&["device", "restore", "lost"]).await);
    lost.up(&[]).await.works().await;
    assert_eq!(trusted(&lost), trusted(&laptop));
}
