//! Asks the server which requests of this device wait in its queue.

use std::time::Duration;

use common::transport::{
    frame,
    splice::{Receiving, Sending},
};
use proto::wire::{QueueAnswer, StreamHead};

use super::state::Up;

/// How long the answer is waited for at least and at most, and in between so many round trips:
/// `adit status` waits for it.
const WITHIN: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(1));
const ROUND_TRIPS: u32 = 3;

/// Where this device's requests are in the queue. `None` if the server does not answer soon; a
/// server of an earlier version has no answer.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn ask(up: &Up) -> Option<QueueAnswer> {
    let asked = async {
        let (send, recv) = up.connection.open_bi().await.ok()?;
        let mut send = Sending::within(send, &up.credit);
        send.write_all(&StreamHead::Queue.encode()).await.ok()?;
        send.finish();
        let mut answer: QueueAnswer =
            frame::receive(&mut Receiving::new(recv, &up.credit)).await.ok()?;
        answer.places.truncate(QueueAnswer::MOST_PLACES);
        Some(answer)
    };
    let within = (up.connection.rtt() * ROUND_TRIPS).clamp(WITHIN.0, WITHIN.1);
    tokio::time::timeout(within, asked).await.ok()?
}
