//! Rotations, and certificates that expire, in every order.

use tests::{
    cli_assert::assert_ok,
    fake_clock::FakeClock,
    raw::{self, ROOT},
    world::World,
};

use super::{all_have_it, gets_it, rotate, states, trusted, until};
use crate::PROGRAM;

const DAY: i64 = 24 * 3600;

async fn restart_at(world: &mut World, clock: &FakeClock, days: i64) {
    world.kill_server().await;
    clock.set_ahead(days * DAY);
    world.restart_server_by(clock).await;
}

#[tokio::test]
async fn a_certificate_that_expired_before_or_after_its_ca_ended_is_renewed_by_the_new_one() {
    let mut world = World::start(PROGRAM).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let (one, other) = (world.device("one").await, world.device("other").await);
    rotate(&world).await;
    // It expired while its CA is valid.
    restart_at(&mut world, &clock, 40).await;
    gets_it(&world, &one, "one").await;
    // It expired, and its CA has ended.
    assert_ok(&world.aditd(&["ca", "retire", "--force"]).await);
    other.up(&[]).await.works().await;
    assert_eq!(trusted(&one), trusted(&other));
    // The certificates of both CAs for the server itself come to their last third.
    restart_at(&mut world, &clock, 39).await;
    all_have_it(&world).await;
    one.up(&[]).await.works().await;
}

#[tokio::test]
async fn a_device_that_comes_too_late_is_told_to_enroll_again() {
    let mut world =
        World::start_with(PROGRAM, Default::default(), &["--device-life", "365d"]).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let device = world.device("laptop").await;
    for _ in 0..2 {
        rotate(&world).await;
        assert_ok(&world.aditd(&["ca", "retire", "--force"]).await);
    }
    restart_at(&mut world, &clock, 91).await;
    let mut up = device.start(&["--hold", "0s"]).await;
    up.adit.says("no tunnel: the server has a new certificate authority").await;
    assert!(up.adit.log().contains("adit enroll --replace"), "{}", up.adit.log());
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    for part in ["new certificate authority", "adit enroll --replace"] {
        assert!(answer.contains(part), "{answer}");
    }
    up.end().await;
    // In time it would have been let in.
    restart_at(&mut world, &clock, 89).await;
    device.up(&[]).await.works().await;
}

#[tokio::test]
async fn the_old_ca_ends_by_itself_a_day_after_every_device_has_the_new_one() {
    let mut world = World::start(PROGRAM).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    restart_at(&mut world, &clock, 0).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    rotate(&world).await;
    gets_it(&world, &laptop, "laptop").await;
    // The clock is set: the server looks again, and finds that one device does not have it.
    clock.set_ahead(2 * DAY);
    world.aditd.says("the clock was set").await;
    let up = desk.up(&[]).await;
    all_have_it(&world).await;
    assert_eq!(states(&world).await, ["old", "current"]);
    clock.set_ahead(3 * DAY);
    until("it has ended", || async { states(&world).await == ["retired", "current"] }).await;
    assert!(!world.state().join("ca.key").exists());
    up.works().await;
}
