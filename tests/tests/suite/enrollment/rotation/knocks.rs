//! The knock keys that go with a CA.

use std::fs;

use proto::wire::ALPN_TUNNEL;
use tests::{
    cli_assert::assert_ok,
    state_files::{devices, profile},
    stranger::{Gate, Outcome, Stranger, attempt, crypto, first_flight},
    world::World,
};

use super::{all_have_it, gets_it, rotate};
use crate::PROGRAM;

/// Whether the device's old profile is let in. A connection of the device's own that comes late
/// supersedes an attempt, so it is tried again.
async fn is_let_in(gate: &Gate) -> bool {
    for _ in 0..10 {
        let own = gate.profile.certified_key().expect("a certificate");
        if matches!(gate.attempt(Some(own)).await, Outcome::In(_)) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn the_old_knock_keys_are_a_strangers_when_their_ca_has_ended() {
    let gate = Gate::start(PROGRAM).await;
    rotate(&gate.world).await;
    let up = gate.device.up(&[]).await;
    all_have_it(&gate.world).await;
    up.end().await;
    let own = || Some(gate.profile.certified_key().expect("a certificate"));
    // In the overlap the old profile is good: a laptop may have been put back from a backup.
    assert!(is_let_in(&gate).await);
    let up = gate.device.up(&[]).await;
    all_have_it(&gate.world).await;
    up.end().await;
    // The knock of one CA leads to no certificate of another.
    let new = profile(&gate.device);
    let mixed = attempt(gate.address, &new, own(), &[ALPN_TUNNEL], &new.enrolled.knock_key);
    assert!(matches!(mixed.await, Outcome::Out(_)));
    assert_ok(&gate.world.aditd(&["ca", "retire"]).await);
    let stranger = Stranger::facing(gate.address).await;
    let knock = gate.knock_key().knock();
    for datagram in first_flight(crypto(&gate.profile, own(), &[ALPN_TUNNEL]), &knock).await {
        stranger.send(&datagram).await;
    }
    let up = gate.device.up(&[]).await;
    stranger.assert_heard_nothing("a knock with a key of the old CA").await;
    up.end().await;
}

#[tokio::test]
async fn after_the_end_of_the_first_ca_the_last_secret_can_be_made_anew() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    rotate(&world).await;
    gets_it(&world, &device, "laptop").await;
    assert_ok(&world.aditd(&["ca", "retire"]).await);
    world.kill_server().await;
    let file = world.state().join("endpoint.json");
    let before = fs::read(&file).expect("secrets");
    fs::remove_file(&file).expect("removed");
    world.restart_server().await;
    assert_ne!(fs::read(&file).expect("secrets"), before);
    // It remembers an epoch that nobody can read any more, and then the one of now.
    device.up(&[]).await.works().await;
    assert_ok(&world.aditd(&["device", "role", "laptop", "infer"]).await);
    device.up(&[]).await.works().await;
    let held = &devices(&world).await[0]["to_confirm"];
    assert!(held.is_null(), "{held}");
}
