//! Redundancy: decides which small datagrams are sent a second time on a link that loses packets.
//! [`super::loss`] decides whether the link does. It names no clock and no socket: it takes times
//! and counts.
//!
//! A lost packet costs a round trip or more. A token is small, so a second copy costs little, and
//! the receiver drops it by its packet number (RFC 9000 section 12.3).

use std::time::{Duration, Instant};

/// Datagrams of this length may be sent twice, in bytes of UDP payload. A shorter one is most
/// likely an acknowledgement, and the next acknowledgement replaces a lost one.
const SMALLEST: usize = 56;
const LARGEST: usize = 1000;
/// One small datagram in so many is not sent twice, so that the loss of the link can be measured.
pub(super) const LEFT_ALONE: u64 = 8;
/// The headers of IP and UDP, in bytes.
const HEADERS: usize = 28;
/// QUIC declares a datagram lost when three later ones have arrived (RFC 9002 section 6.1.1), or
/// when one later one has arrived and 9/8 of a round trip have passed (section 6.1.2).
const LATER_DATAGRAMS: u64 = 3;
const LATER_TIME: u32 = 8;
/// Budget that is not used can be saved up for this time. At least `LEAST_SAVED` bytes can be
/// saved, so that a few copies are always possible.
const SAVED: Duration = Duration::from_millis(250);
const LEAST_SAVED: u64 = 2_000;

/// How small datagrams on a lossy path are sent twice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Protection {
    /// How long after the datagram its copy is sent.
    pub after: Duration,
    /// The round-trip time.
    pub round_trip: Duration,
    /// The bandwidth that copies may use, in bytes per second, headers included.
    pub budget: u64,
    /// The part of single packets that the link loses, from 0 to 1, as far as losses of several
    /// packets are independent.
    pub loss: f64,
}

/// Decides for each datagram of one protected path.
#[derive(Debug)]
pub(super) struct PathRepeats {
    protection: Protection,
    /// Bytes that copies may use, as of `at`.
    saved: u64,
    at: Instant,
    /// Datagrams that were sent so far, and the small ones among them.
    sent: u64,
    small: u64,
    /// Copies that were sent so soon that QUIC did not notice the loss of the first datagram.
    pub(super) hidden: u64,
}

/// A datagram that is to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) at: Instant,
    /// Its number among all datagrams on the path.
    number: u64,
}

impl PathRepeats {
    pub(super) fn new(now: Instant, protection: Protection) -> Self {
        let saved = most_saved(protection.budget);
        Self { protection, saved, at: now, sent: 0, small: 0, hidden: 0 }
    }

    /// Replaces the protection from `now` on.
    pub(super) fn set(&mut self, now: Instant, protection: Protection) {
        self.save(now);
        self.protection = protection;
        self.saved = self.saved.min(most_saved(protection.budget));
    }

    /// A datagram of `len` bytes is sent now. Returns when it is to be sent again; `None` if never.
    pub(super) fn sent(&mut self, now: Instant, len: usize) -> Option<Again> {
        self.sent += 1;
        if !is_small(len) {
            return None;
        }
        self.small += 1;
        if self.small.is_multiple_of(LEFT_ALONE) {
            return None;
        }
        self.save(now);
        self.saved = self.saved.checked_sub((len + HEADERS) as u64)?;
        Some(Again { at: now + self.protection.after, number: self.sent })
    }

    /// Counts datagrams that are sent now and are not small.
    pub(super) fn sent_long(&mut self, datagrams: u64) {
        self.sent += datagrams;
    }

    /// The copy has been sent.
    pub(super) fn sent_again(&mut self, copy: Again) {
        let Protection { after, round_trip, .. } = self.protection;
        let hides = match self.sent.saturating_sub(copy.number) {
            0 => true,
            later => later < LATER_DATAGRAMS && after < round_trip / LATER_TIME,
        };
        self.hidden += u64::from(hides);
    }

    fn save(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.at);
        let more = (self.protection.budget as f64 * time.as_secs_f64()) as u64;
        if more > 0 {
            self.at = now;
            self.saved = (self.saved + more).min(most_saved(self.protection.budget));
        }
    }
}

/// Whether a datagram of so many bytes may be sent twice.
pub(super) fn is_small(len: usize) -> bool {
    (SMALLEST..=LARGEST).contains(&len)
}

fn most_saved(budget: u64) -> u64 {
    ((budget as f64 * SAVED.as_secs_f64()) as u64).max(LEAST_SAVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_datagrams_are_sent_again() {
        let now = Instant::now();
        for (len, again) in
            [(0, false), (40, false), (72, true), (300, true), (1001, false), (1452, false)]
        {
            let mut path = PathRepeats::new(now, protection(1_000_000));
            let expected = again.then(|| Again { at: now + AFTER, number: 1 });
            assert_eq!(path.sent(now, len), expected, "{len} bytes");
        }
    }

    const AFTER: Duration = Duration::from_millis(5);

    fn protection(budget: u64) -> Protection {
        Protection { after: AFTER, round_trip: 10 * AFTER, budget, loss: 0.01 }
    }

    #[test]
    fn a_copy_hides_a_loss_unless_quic_has_noticed_it_before() {
        for (long, small, round_trip, hidden) in [
            // datagrams before the copy is sent, the round trip in copies' delays
            (0, 0, 10, 1),
            (1, 0, 10, 1),
            (1, 1, 10, 1),
            (1, 2, 10, 0),
            (44, 0, 10, 0),
            (0, 0, 1, 1),
            (0, 1, 8, 0),
            (1, 0, 1, 0),
        ] {
            let now = Instant::now();
            let protection = Protection { round_trip: round_trip * AFTER, ..protection(1_000_000) };
            let mut path = PathRepeats::new(now, protection);
            path.sent_long(7);
            let copy = path.sent(now, 100).expect("it is sent twice");
            path.sent_long(long);
            for _ in 0..small {
                path.sent(now, 100);
            }
            path.sent_again(copy);
            assert_eq!(path.hidden, hidden, "{long} long and {small} small, {round_trip}");
        }
    }

    #[test]
    fn copies_keep_within_their_budget_and_leave_every_eighth_alone() {
        let (begin, budget) = (Instant::now(), 10_000);
        let repeated = |every: Duration| {
            let mut path = PathRepeats::new(begin, protection(budget));
            let sent = (10.0 / every.as_secs_f64()) as u32;
            let copies = (0..sent).filter(|i| path.sent(begin + every * *i, 72).is_some());
            (copies.count(), sent as usize)
        };
        // 100 bytes each with their headers.
        let (copies, sent) = repeated(Duration::from_millis(50));
        assert_eq!(copies, sent - sent / 8);
        let (copies, sent) = repeated(Duration::from_millis(1));
        assert!(
            sent == 10_000 && (950..=1_030).contains(&copies),
            "{copies} copies in ten seconds"
        );
    }
}
