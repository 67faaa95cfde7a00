//! Decides whether the peer's silence is an outage, without a clock of its own.

use std::time::{Duration, Instant};

/// Silence of this length counts as an outage: nearly every round trip is shorter.
const OUTAGE_AFTER: Duration = Duration::from_secs(1);
/// Every path of QUIC carries packets of this length (RFC 9000 section 14), in bytes.
const CARRIED_EVERYWHERE: u64 = 1200;

/// Since when nothing has been acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Silence {
    acknowledged: Instant,
    /// When the first long packet was sent that may still be acknowledged.
    long: Option<Instant>,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { acknowledged: now, long: None }
    }

    /// How long the outage has lasted beyond its first second; `None` if there is none.
    ///
    /// A sender that was idle is not in an outage when it begins to send, although its last
    /// acknowledgement is old. For a while it sends no more than usual, so that the probe time-out
    /// fires and short packets leave, in case the path has stopped to carry long ones.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        now.saturating_duration_since(self.began()).checked_sub(OUTAGE_AFTER)
    }

    fn began(&self) -> Instant {
        self.long.map_or(self.acknowledged, |long| long.max(self.acknowledged))
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        if bytes > CARRIED_EVERYWHERE {
            self.long.get_or_insert(now);
        }
    }

    /// A packet that was sent at `sent` has been acknowledged.
    ///
    /// After an outage the first acknowledgements are of packets that had arrived before it: they do
    /// not show that ours arrive again, and the window is still full of those that were lost.
    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant) {
        let during_outage = sent.saturating_duration_since(self.began()) >= OUTAGE_AFTER;
        let in_time = now.saturating_duration_since(sent) < OUTAGE_AFTER;
        if self.stalled(now).is_none() || during_outage || in_time {
            (self.acknowledged, self.long) = (now, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Event {
        /// So many bytes are sent at this time, in ms.
        Sent(u64, u64),
        /// At the first time the packet is acknowledged that was sent at the second one.
        Acked(u64, u64),
        /// At this time the outage has lasted so long, in ms.
        Stalled(u64, Option<u64>),
    }
    use Event::*;

    fn check(what: &str, events: &[Event]) {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut silence = Silence::new(began);
        for event in events {
            match *event {
                Sent(now, bytes) => silence.on_sent(at(now), bytes),
                Acked(now, sent) => silence.on_ack(at(now), at(sent)),
                Stalled(now, stalled) => {
                    let found = silence.stalled(at(now));
                    assert_eq!(found, stalled.map(Duration::from_millis), "{what}, at {now} ms");
                }
            }
        }
    }

    #[test]
    fn an_outage_lasts_until_something_is_acknowledged_that_was_sent_during_it_or_just_now() {
        check(
            "what arrived before an outage does not end it",
            &[
                Acked(900, 800),
                Stalled(1_899, None),
                Stalled(62_900, Some(61_000)),
                Acked(62_900, 880),
                Acked(62_900, 1_500),
                Stalled(62_900, Some(61_000)),
                Acked(62_950, 62_900),
                Stalled(62_950, None),
                Stalled(64_000, Some(50)),
            ],
        );
        check(
            "on a path whose round trip is long, what was sent during the outage ends it",
            &[Stalled(5_000, Some(4_000)), Acked(5_000, 1_000), Stalled(5_000, None)],
        );
        check(
            "an acknowledgement in time ends it, although the silence before was long",
            &[Stalled(1_050, Some(50)), Acked(1_050, 950), Stalled(1_050, None)],
        );
    }

    #[test]
    fn who_was_idle_and_begins_to_send_is_not_in_an_outage() {
        check(
            "an upload after half a minute",
            &[
                Sent(10_000, 40),
                Stalled(30_000, Some(29_000)),
                Sent(30_000, 1_452),
                Stalled(30_999, None),
                Sent(30_500, 1_452),
                Stalled(31_500, Some(500)),
                Sent(31_600, 1_452),
                Stalled(31_600, Some(600)),
            ],
        );
        check(
            "packets that every path carries are probes, and never wait",
            &[Sent(30_000, 1_200), Stalled(30_000, Some(29_000))],
        );
        check(
            "each acknowledgement begins anew",
            &[Sent(500, 1_452), Acked(600, 500), Sent(700, 1_452), Stalled(1_700, Some(0))],
        );
    }
}
