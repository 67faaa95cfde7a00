//! The knock keys that go with a CA.

use proto::wire::ALPN_TUNNEL;
use tests::{
    cli_assert::assert_ok,
    state_files::profile,
    stranger::{Gate, Outcome, Stranger, attempt, crypto, first_flight},
};

use super::{all_have_it, rotate};
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
