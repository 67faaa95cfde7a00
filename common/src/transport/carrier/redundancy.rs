//! Redundancy: decides which small datagrams are sent a second time on a link that loses packets,
//! and when. It names no clock and no socket: it takes times and counts.
//!
//! A lost packet costs a round trip or more. A token is small, so a second copy costs little, and
//! the receiver drops it by its packet number (RFC 9000 section 12.3).

use std::time::{Duration, Instant};

/// Datagrams that may be sent twice, in bytes of UDP payload. What is shorter is most likely an
/// acknowledgement, which the next one makes up for; what is longer is no longer small.
const SMALLEST: usize = 56;
const LARGEST: usize = 1000;
/// One datagram of this many is not sent again, so that the loss of the link can still be measured.
const LEFT_ALONE: u64 = 8;
/// The headers of IP and UDP, in bytes.
const HEADERS: usize = 28;
/// When a copy follows: an eighth of a round trip later, within these bounds. Losses come in
/// bursts, and a copy right behind its first would be lost with it.
const AFTER_ROUND_TRIP: u32 = 8;
const SOONEST: Duration = Duration::from_millis(1);
const LATEST: Duration = Duration::from_millis(8);
/// The bandwidth that copies may always use, in bytes per second: 64 kbit/s.
const LEAST_BUDGET: u64 = 8_000;
/// The bandwidth that copies never exceed: 16 Mbit/s.
const MOST_BUDGET: u64 = 2_000_000;
/// The part of a full link that copies may use: one of so many.
const SHARE: u64 = 10;
/// The budget that can be saved up is that of so long a time, and never less than some copies.
const SAVED: Duration = Duration::from_millis(250);
const LEAST_SAVED: u64 = 2_000;

/// How often counts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After this time a packet counts half.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// The loss is estimated from about this many last packets.
const REMEMBERED: f64 = 4_000.0;
/// Losses that are remembered at the most: an outage is no lossy link.
const REMEMBERED_LOSSES: f64 = 40.0;
/// Redundancy begins when several packets were lost, and ends when hardly any are lost any more.
const BEGINS: Threshold = Threshold { lost: 1.5, rate: 0.003 };
const ENDS: Threshold = Threshold { lost: 0.5, rate: 0.001 };

struct Threshold {
    lost: f64,
    rate: f64,
}

/// What a connection has counted since it began, and the state of its path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// Packets sent.
    pub sent: u64,
    /// Of those, found lost.
    pub lost: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Bytes that may be under way now.
    pub window: u64,
    /// The round-trip time.
    pub round_trip: Duration,
}

/// Small datagrams on a path are sent twice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Protection {
    /// How long after the first the copy is sent.
    pub after: Duration,
    /// The bandwidth that copies may use, in bytes per second, headers included.
    pub budget: u64,
    /// The part of the packets that the link loses, from 0 to 1.
    pub loss: f64,
}

/// How much a path loses, measured by the sender.
#[derive(Debug, Clone, Default)]
pub struct LossEstimate {
    seen: Option<Seen>,
    sent: f64,
    lost: f64,
    protection: Option<Protection>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    counts: PathCounts,
    repeated: u64,
}

impl LossEstimate {
    /// Takes the current counts, and how many datagrams have been sent twice on this path so far.
    /// Returns how small datagrams are protected from now on, if they are.
    pub fn note(&mut self, now: Instant, counts: PathCounts, repeated: u64) -> Option<Protection> {
        let seen = Seen { at: now, counts, repeated };
        let Some(before) = self.seen else {
            self.seen = Some(seen);
            return None;
        };
        let time = now.saturating_duration_since(before.at);
        if counts.sent < before.counts.sent || counts.lost < before.counts.lost {
            // The counts have started again, on a new path.
            *self = Self { seen: Some(seen), ..Self::default() };
            return None;
        }
        if time < LOOK_EVERY {
            return self.protection;
        }
        self.seen = Some(seen);
        self.add(time, before, seen);
        self.protection = self.is_lossy().then(|| Protection {
            after: (counts.round_trip / AFTER_ROUND_TRIP).clamp(SOONEST, LATEST),
            budget: budget(&counts, counts.bytes.saturating_sub(before.counts.bytes), time),
            loss: self.rate(),
        });
        self.protection
    }

    fn add(&mut self, time: Duration, before: Seen, now: Seen) {
        let sent = now.counts.sent - before.counts.sent;
        let lost = now.counts.lost - before.counts.lost;
        // A datagram that was sent twice is lost only if both copies are, so it says nothing about
        // the loss of a single one.
        let alone = sent
            .saturating_sub(now.repeated.saturating_sub(before.repeated))
            .max(sent / LEFT_ALONE);
        let fresh = 0.5_f64.powf(time.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.sent = self.sent * fresh + alone as f64;
        self.lost = self.lost * fresh + lost as f64;
        let kept = (REMEMBERED / self.sent).min(1.0);
        self.sent *= kept;
        self.lost = (self.lost * kept).min(REMEMBERED_LOSSES);
    }

    fn is_lossy(&self) -> bool {
        let bounds = if self.protection.is_some() { ENDS } else { BEGINS };
        self.lost >= bounds.lost && self.rate() >= bounds.rate
    }

    fn rate(&self) -> f64 {
        (self.lost / self.sent.max(1.0)).min(1.0)
    }
}

/// The bandwidth that the congestion controller allows and nothing uses, and a part of the rest: on
/// a full link copies take only little from others.
fn budget(counts: &PathCounts, bytes: u64, time: Duration) -> u64 {
    let per_second = |bytes: u64, time: Duration| {
        (bytes as f64 / time.as_secs_f64().max(0.000_1)).min(u32::MAX.into()) as u64
    };
    let carried = per_second(counts.window, counts.round_trip);
    let unused = carried.saturating_sub(per_second(bytes, time));
    unused.max(carried / SHARE).clamp(LEAST_BUDGET, MOST_BUDGET)
}

/// The datagrams of one protected path.
#[derive(Debug)]
pub(super) struct PathRepeats {
    protection: Protection,
    /// Bytes that copies may take now, and since when.
    saved: u64,
    at: Instant,
    /// Small datagrams so far.
    small: u64,
    /// Copies so far.
    pub(super) repeated: u64,
}

impl PathRepeats {
    pub(super) fn new(now: Instant, protection: Protection) -> Self {
        Self { protection, saved: most_saved(protection.budget), at: now, small: 0, repeated: 0 }
    }

    /// Protects as this says from now on.
    pub(super) fn set(&mut self, now: Instant, protection: Protection) {
        self.save(now);
        self.protection = protection;
        self.saved = self.saved.min(most_saved(protection.budget));
    }

    /// When a datagram of `len` bytes that is sent now is sent again, if it is.
    pub(super) fn again_at(&mut self, now: Instant, len: usize) -> Option<Instant> {
        if !(SMALLEST..=LARGEST).contains(&len) {
            return None;
        }
        self.small += 1;
        if self.small.is_multiple_of(LEFT_ALONE) {
            return None;
        }
        self.save(now);
        self.saved = self.saved.checked_sub((len + HEADERS) as u64)?;
        self.repeated += 1;
        Some(now + self.protection.after)
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

fn most_saved(budget: u64) -> u64 {
    ((budget as f64 * SAVED.as_secs_f64()) as u64).max(LEAST_SAVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A path of 100 Mbit/s and 50 ms, of which little is used.
    fn counts(sent: u64, lost: u64) -> PathCounts {
        PathCounts {
            sent,
            lost,
            bytes: sent * 100,
            window: 625_000,
            round_trip: Duration::from_millis(50),
        }
    }

    /// So many seconds with so many packets and losses in each, of which the protected ones are
    /// sent twice but for every eighth.
    struct Path {
        now: Instant,
        estimate: LossEstimate,
        counts: PathCounts,
        repeated: u64,
        protection: Option<Protection>,
    }

    impl Path {
        fn new() -> Self {
            let (now, mut estimate) = (Instant::now(), LossEstimate::default());
            estimate.note(now, counts(0, 0), 0);
            Self { now, estimate, counts: counts(0, 0), repeated: 0, protection: None }
        }

        fn after(&mut self, seconds: u64, sent: u64, lost: impl Fn(u64, bool) -> u64) -> bool {
            for second in 0..seconds {
                self.now += SECOND;
                let lost = lost(second, self.protection.is_some());
                self.counts = counts(self.counts.sent + sent, self.counts.lost + lost);
                self.repeated += if self.protection.is_some() { sent - sent / 8 } else { 0 };
                self.protection = self.estimate.note(self.now, self.counts, self.repeated);
            }
            self.protection.is_some()
        }
    }

    #[test]
    fn it_begins_where_the_link_loses_and_nowhere_else() {
        for (sent, every, lost, begins) in [
            // packets a second, and the losses of each second that this divides
            (1000, 1, 0, false),
            (1000, 1, 1, false),
            (1000, 1, 10, true),
            (1000, 1, 30, true),
            (20, 5, 1, true),
            (20, 20, 1, true),
            // One loss is an accident.
            (20, 1000, 1, false),
            (0, 1, 0, false),
            // A burst in much that is not lost: a queue was full.
            (8600, 30, 12, false),
        ] {
            let mut path = Path::new();
            let began =
                path.after(60, sent, |second, _| if second % every == 0 { lost } else { 0 });
            assert_eq!(began, begins, "{lost} of {sent} packets, every {every} s");
        }
    }

    #[test]
    fn it_goes_on_while_the_link_loses_though_copies_hide_that() {
        let mut path = Path::new();
        // One in a hundred is lost; of those that are sent twice, one in ten thousand.
        let lost = |second: u64, protected: bool| match protected {
            false => 10,
            true => u64::from(second % 10 < 8) + u64::from(second.is_multiple_of(10)),
        };
        assert!(path.after(10, 1000, lost));
        assert!(path.after(1000, 1000, lost), "still");
        let loss = path.protection.expect("protected").loss;
        assert!((0.005..0.02).contains(&loss), "the loss of the link is known: {loss}");
        assert!(!path.after(120, 1000, |_, _| 0), "two minutes after it was mended");
    }

    #[test]
    fn an_outage_is_forgotten() {
        let mut path = Path::new();
        path.after(60, 100, |_, _| 0);
        path.after(30, 10, |_, _| 10);
        assert!(!path.after(420, 20, |_, _| 0));
    }

    #[test]
    fn counts_that_begin_anew_are_no_loss() {
        let (mut estimate, now) = (LossEstimate::default(), Instant::now());
        estimate.note(now, counts(900, 400), 0);
        assert_eq!(estimate.note(now + SECOND, counts(30, 10), 0), None);
        assert_eq!(estimate.note(now + 2 * SECOND, counts(1030, 11), 0), None);
    }

    #[test]
    fn the_budget_is_what_the_link_has_left_and_a_tenth_of_what_it_carries() {
        // window, round trip in ms, bytes in the last second, budget
        for (window, ms, bytes, expected) in [
            (625_000, 50, 0, MOST_BUDGET),
            (62_500, 50, 250_000, 1_000_000),
            (62_500, 50, 1_250_000, 125_000),
            (62_500, 50, 9_999_999, 125_000),
            (2_400, 500, 4_800, LEAST_BUDGET),
            (14_720, 0, 0, MOST_BUDGET),
        ] {
            let round_trip = Duration::from_millis(ms);
            let counts = PathCounts { window, round_trip, ..PathCounts::default() };
            assert_eq!(budget(&counts, bytes, SECOND), expected, "{window} bytes in {ms} ms");
        }
    }

    #[test]
    fn only_small_datagrams_are_sent_again_a_little_later() {
        for (ms, after) in [(0, 1), (4, 1), (40, 5), (50, 6), (120, 8), (900, 8)] {
            let mut estimate = LossEstimate::default();
            let now = Instant::now();
            let at = |sent, lost| PathCounts {
                round_trip: Duration::from_millis(ms),
                ..counts(sent, lost)
            };
            estimate.note(now, at(0, 0), 0);
            let protection = estimate.note(now + SECOND, at(100, 3), 0).expect("it is lossy");
            assert_eq!(protection.after.as_millis(), after, "{ms} ms");
        }
        let now = Instant::now();
        let protection =
            Protection { after: Duration::from_millis(5), budget: 1_000_000, loss: 0.01 };
        for (len, again) in
            [(0, false), (40, false), (72, true), (300, true), (1001, false), (1452, false)]
        {
            let mut path = PathRepeats::new(now, protection);
            let expected = again.then(|| now + protection.after);
            assert_eq!(path.again_at(now, len), expected, "{len} bytes");
        }
    }

    #[test]
    fn copies_keep_within_their_budget_and_leave_every_eighth_alone() {
        let (begin, budget) = (Instant::now(), 10_000);
        let protection = Protection { after: Duration::from_millis(5), budget, loss: 0.01 };
        let repeated = |every: Duration| {
            let mut path = PathRepeats::new(begin, protection);
            let sent = (10.0 / every.as_secs_f64()) as u32;
            let copies = (0..sent).filter(|i| path.again_at(begin + every * *i, 72).is_some());
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
