//! Many devices use one code: one of them is enrolled.

use proto::wire::{EnrollAnswer, EnrollRefusal};
use tokio::task::JoinSet;

use crate::{
    credentials::{new_key, parse, redeem},
    state_files::devices,
    world::World,
};

/// Lets `count` devices, each with a key of its own, redeem one code, so many at the same time.
///
/// # Panics
/// If not exactly one of them is enrolled, and all others are told that the code was used.
pub async fn all(world: &World, count: usize, at_once: usize) {
    let code = world.invite("laptop").await;
    let (mut redeemers, mut admitted, mut refused) = (JoinSet::new(), Vec::new(), 0);
    let mut left = count;
    loop {
        while left > 0 && redeemers.len() < at_once {
            let invitation = parse(&code);
            redeemers.spawn(async move { redeem(&invitation, &new_key()).await });
            left -= 1;
        }
        let Some(answer) = redeemers.join_next().await else { break };
        match answer.expect("no panic") {
            EnrollAnswer::Enrolled(enrolled) => admitted.push(enrolled.device_id),
            EnrollAnswer::Refused(EnrollRefusal::Used) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((admitted.len(), refused), (1, count - 1));
    let listed = devices(world).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["id"], admitted[0].to_string());
}
