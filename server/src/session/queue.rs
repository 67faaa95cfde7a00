//! Tells a device which of its requests wait in the queue.

use common::transport::{frame, splice::Sending};
use proto::wire::{Code, QueueAnswer, QueuePlace};

use super::Session;

impl Session {
    /// Answers where this device's requests are in the queue. Nothing is said of other devices,
    /// except how many requests have their turns before.
    pub(super) async fn answer_queue(&self, send: &mut Sending) -> Result<(), Code> {
        if self.is_expired() {
            return Err(Code::Expired);
        }
        let device = self.server.policy.admit(&self.peer)?;
        let order = self.server.accounting.queue.in_order();
        let mine = order.iter().zip(1..).filter(|(queued, _)| queued.device == device.id);
        let place = |(queued, position): (&crate::accounting::queue::Queued, u64)| QueuePlace {
            position,
            waited_ms: u64::try_from(queued.waited.as_millis()).unwrap_or(u64::MAX),
        };
        let waiting = mine.clone().count() as u64;
        let places = mine.map(place).take(QueueAnswer::MOST_PLACES).collect();
        let mut framed = Vec::new();
        let answer = QueueAnswer { waiting, places };
        frame::write(&mut framed, &answer).await.map_err(|_| Code::Busy)?;
        send.write_all(&framed).await.map_err(|_| Code::Cut)?;
        send.finish();
        Ok(())
    }
}
