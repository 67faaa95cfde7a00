//! Counts the packets that were lost in the last minute. It names no clock: it takes times and
//! counts.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How far back packets are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// The shortest time between two counts that are kept.
const EVERY: Duration = Duration::from_secs(2);

/// How many packets were sent and lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Packets {
    pub(crate) sent: u64,
    /// Lost, of those sent.
    pub(crate) lost: u64,
}

/// The counts of the last minute.
#[derive(Debug, Default)]
pub(crate) struct Loss(VecDeque<(Instant, Packets)>);

impl Loss {
    /// Notes the counts since the connection began.
    pub(crate) fn note(&mut self, now: Instant, packets: Packets) {
        match self.0.back() {
            Some((at, _)) if now.duration_since(*at) < EVERY => return,
            // The counts have started again, on a new path.
            Some((_, last)) if packets.sent < last.sent => self.0.clear(),
            _ => {}
        }
        self.0.push_back((now, packets));
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// How many packets were sent and lost in the last minute. `packets` are the counts since the
    /// connection began.
    pub(crate) fn recent(&self, packets: Packets) -> Packets {
        let (_, before) = self.0.front().copied().unwrap_or((Instant::now(), Packets::default()));
        Packets {
            sent: packets.sent.saturating_sub(before.sent),
            lost: packets.lost.saturating_sub(before.lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_outage_lost_is_forgotten_a_minute_after_it() {
        let (mut loss, begin) = (Loss::default(), Instant::now());
        let mut packets = Packets::default();
        let mut after = |seconds: u32, lost: u64| {
            for _ in 0..seconds * 10 {
                packets.sent += 1;
                packets.lost += lost;
                loss.note(begin + Duration::from_millis(100) * packets.sent as u32, packets);
            }
            loss.recent(packets)
        };
        assert_eq!(after(30, 0).lost, 0);
        assert!(after(30, 1).lost >= 290, "during the outage");
        assert!(after(30, 0).lost >= 290, "half a minute after it");
        let later = after(34, 0);
        assert_eq!(later.lost, 0, "a minute after it");
        assert!((580..=640).contains(&later.sent), "{later:?}");
    }

    #[test]
    fn counts_that_begin_anew_are_no_loss() {
        let (mut loss, now) = (Loss::default(), Instant::now());
        loss.note(now, Packets { sent: 900, lost: 400 });
        loss.note(now + EVERY, Packets { sent: 3, lost: 1 });
        assert_eq!(loss.recent(Packets { sent: 10, lost: 1 }), Packets { sent: 7, lost: 0 });
    }
}
