//! Asks the server which requests of this device wait in its queue.

use std::time::Duration;

use common::transport::{
    frame,
    splice::{Receiving, Sending},
};
use proto::wire::{QueueAnswer, StreamHead};

use super::state::Up;

/// How long the answer is waited for: `adit status` does not wait longer.
const WITHIN: Duration = Duration::from_secs(1);

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
    tokio::time::timeout(WITHIN, asked).await.ok()?
}
