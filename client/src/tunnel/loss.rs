//! Counts the packets that were lost in the last minute while the path carried. It names no clock: it
//! takes times and counts.

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
pub(crate) struct Loss {
    /// The counts at the last note.
    last: Packets,
    /// What was counted while the path was down.
    down: Packets,
    /// Earlier counts, without what was counted while the path was down.
    kept: VecDeque<(Instant, Packets)>,
}

impl Loss {
    /// Notes the counts since the connection began. `is_down`: the path carries nothing, or has just
    /// come back, so that what is found lost now was lost meanwhile.
    pub(crate) fn note(&mut self, now: Instant, packets: Packets, is_down: bool) {
        if packets.sent < self.last.sent || packets.lost < self.last.lost {
            // The counts have started again, on a new path.
            *self = Self { last: packets, ..Self::default() };
        }
        if is_down {
            self.down.sent += packets.sent - self.last.sent;
            self.down.lost += packets.lost - self.last.lost;
        }
        self.last = packets;
        if self.kept.back().is_some_and(|(at, _)| now.duration_since(*at) < EVERY) {
            return;
        }
        self.kept.push_back((now, self.counted()));
        while self.kept.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.kept.pop_front();
        }
    }

    /// How many packets were sent and lost in the last minute while the path carried, at the last
    /// note.
    pub(crate) fn recent(&self) -> Packets {
        let (now, before) = (self.counted(), self.kept.front().map(|(_, counted)| *counted));
        let before = before.unwrap_or_default();
        Packets {
            sent: now.sent.saturating_sub(before.sent),
            lost: now.lost.saturating_sub(before.lost),
        }
    }

    fn counted(&self) -> Packets {
        Packets {
            sent: self.last.sent.saturating_sub(self.down.sent),
            lost: self.last.lost.saturating_sub(self.down.lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends ten packets a second for `seconds`, of which `lost` in ten are lost.
    struct Link {
        loss: Loss,
        begin: Instant,
        packets: Packets,
    }

    impl Link {
        fn new() -> Self {
            Self { loss: Loss::default(), begin: Instant::now(), packets: Packets::default() }
        }

        fn after(&mut self, seconds: u64, lost: u64, is_down: bool) -> Packets {
            for n in 0..seconds * 10 {
                self.packets.sent += 1;
                self.packets.lost += u64::from(n % 10 < lost);
                let now = self.begin + Duration::from_millis(100) * self.packets.sent as u32;
                self.loss.note(now, self.packets, is_down);
            }
            self.loss.recent()
        }
    }

    #[test]
    fn what_the_link_loses_is_counted_for_a_minute() {
        let mut link = Link::new();
        assert_eq!(link.after(30, 0, false).lost, 0);
        assert!((28..=30).contains(&link.after(30, 1, false).lost));
        assert!(link.after(30, 0, false).lost >= 28, "half a minute after it");
        let later = link.after(34, 0, false);
        assert_eq!(later.lost, 0, "a minute after it");
        assert!((580..=640).contains(&later.sent), "{later:?}");
    }

    #[test]
    fn what_was_lost_while_the_path_was_down_is_no_loss_of_the_link() {
        let mut link = Link::new();
        link.after(30, 1, false);
        let before = link.loss.recent();
        assert_eq!(link.after(20, 10, true), before, "during the outage");
        let after = link.after(5, 0, false);
        assert_eq!(after.lost, before.lost, "after it");
        assert_eq!(after.sent, before.sent + 50);
    }

    #[test]
    fn counts_that_begin_anew_are_no_loss() {
        let (mut loss, now) = (Loss::default(), Instant::now());
        loss.note(now, Packets { sent: 900, lost: 400 }, false);
        loss.note(now + EVERY, Packets { sent: 3, lost: 1 }, true);
        loss.note(now + EVERY, Packets { sent: 10, lost: 1 }, false);
        assert_eq!(loss.recent(), Packets { sent: 7, lost: 0 });
    }
}
