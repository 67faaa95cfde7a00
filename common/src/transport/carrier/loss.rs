//! How much a path loses, measured by the sender, and what follows for redundancy. It names no
//! clock and no socket: it takes times and counts.

use std::time::{Duration, Instant};

use super::interactive::Protection;

/// A copy follows after a tenth of a round trip, within these bounds. Losses come in bursts: a copy
/// that follows at once is often lost together with the first datagram. After an eighth of a round
/// trip, QUIC declares the first datagram lost (RFC 9002 section 6.1.2).
const AFTER_ROUND_TRIP: u32 = 10;
const SOONEST: Duration = Duration::from_millis(1);
const LATEST: Duration = Duration::from_millis(8);
/// The bandwidth that copies may always use, in bytes per second: 64 kbit/s.
const LEAST_BUDGET: u64 = 8_000;
/// The bandwidth that copies never exceed: 16 Mbit/s.
const MOST_BUDGET: u64 = 2_000_000;
/// Copies may always use half of what the congestion controller allows, up to this, in bytes per second.
/// The window of a connection that has little to send, or has just begun, says little about the link.
const USUAL_BUDGET: u64 = 100_000;
/// On a faster link that is full, copies may use one part in so many of its bandwidth.
const SHARE: u64 = 10;

/// The shortest time between two looks at the counts.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After this time, a packet counts half in the estimate.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// The loss is estimated from about so many of the last packets.
const REMEMBERED: f64 = 4_000.0;
/// At most so many losses count for whether the link is lossy: the many losses of an outage do not
/// mean a lossy link.
const COUNTED_LOSSES: f64 = 40.0;
/// Redundancy begins when several packets were lost, and ends when hardly any packet is lost any
/// more. `lost` is a number of packets, `rate` the part of the packets that is lost.
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
    /// Those of the sent packets that were declared lost.
    pub lost: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// The congestion window, in bytes.
    pub window: u64,
    /// The round-trip time.
    pub round_trip: Duration,
}

/// The sender's estimate of how many packets a path loses.
#[derive(Debug, Clone, Default)]
pub struct LossEstimate {
    seen: Option<Seen>,
    /// Packets that were sent once, and packets that were sent twice. The loss of the latter shows
    /// only if both copies are lost.
    alone: f64,
    twice: f64,
    lost: f64,
    /// The losses that count for whether the link is lossy.
    counted: f64,
    protection: Option<Protection>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    counts: PathCounts,
    hidden: u64,
}

impl LossEstimate {
    /// Takes the current counts, and how many datagrams on this path so far have been sent twice so
    /// that the loss of one copy is not noticed. Returns how small datagrams are protected from now
    /// on, if they are.
    pub fn note(&mut self, now: Instant, counts: PathCounts, hidden: u64) -> Option<Protection> {
        let seen = Seen { at: now, counts, hidden };
        let Some(before) = self.seen else {
            self.seen = Some(seen);
            return None;
        };
        let time = now.saturating_duration_since(before.at);
        if counts.sent < before.counts.sent || counts.lost < before.counts.lost {
            // The counts are smaller than before: they began anew, on a new path.
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
            round_trip: counts.round_trip,
            budget: budget(&counts, counts.bytes.saturating_sub(before.counts.bytes), time),
            loss: loss(self.alone, self.twice, self.lost),
        });
        self.protection
    }

    /// Takes the counts like [`LossEstimate::note`], but what has been lost since the last ones says
    /// nothing about the link, because the path was down.
    pub fn pass_over(
        &mut self,
        now: Instant,
        counts: PathCounts,
        hidden: u64,
    ) -> Option<Protection> {
        if self.seen.is_some() {
            self.seen = Some(Seen { at: now, counts, hidden });
        }
        self.protection
    }

    fn add(&mut self, time: Duration, before: Seen, now: Seen) {
        let sent = now.counts.sent - before.counts.sent;
        let lost = now.counts.lost - before.counts.lost;
        // After a change of path, the counts have fewer packets than were sent twice.
        let twice = now.hidden.saturating_sub(before.hidden).min(sent);
        let fresh = 0.5_f64.powf(time.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.alone = self.alone * fresh + (sent - twice) as f64;
        self.twice = self.twice * fresh + twice as f64;
        self.lost = self.lost * fresh + lost as f64;
        self.counted = self.counted * fresh + lost as f64;
        let kept = (REMEMBERED / self.alone).min(1.0);
        for count in [&mut self.alone, &mut self.twice, &mut self.lost, &mut self.counted] {
            *count *= kept;
        }
        self.counted = self.counted.min(COUNTED_LOSSES);
    }

    fn is_lossy(&self) -> bool {
        let bounds = if self.protection.is_some() { ENDS } else { BEGINS };
        self.counted >= bounds.lost && self.counted / self.alone.max(1.0) >= bounds.rate
    }
}

/// The part of single packets that is lost, if so many losses were noticed among `alone` packets
/// that were sent once and `twice` packets that were sent twice:
/// lost = alone · loss + twice · loss².
fn loss(alone: f64, twice: f64, lost: f64) -> f64 {
    let alone = alone.max(1.0);
    // The usual formula divides by `twice`, which may be 0.
    let root = (alone * alone + 4.0 * twice * lost).sqrt();
    (2.0 * lost / (alone + root)).min(1.0)
}

/// The bandwidth for copies, in bytes per second: what the congestion controller allows and nothing
/// uses, but at least one part in `SHARE` of what it allows, or half of it up to `USUAL_BUDGET`.
fn budget(counts: &PathCounts, bytes: u64, time: Duration) -> u64 {
    let per_second = |bytes: u64, time: Duration| {
        (bytes as f64 / time.as_secs_f64().max(0.000_1)).min(u32::MAX.into()) as u64
    };
    let carried = per_second(counts.window, counts.round_trip);
    let unused = carried.saturating_sub(per_second(bytes, time));
    unused.max(carried / SHARE).max(USUAL_BUDGET.min(carried / 2)).clamp(LEAST_BUDGET, MOST_BUDGET)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The counts of a path with 100 Mbit/s and a round trip of 50 ms, hardly used.
    fn counts(sent: u64, lost: u64) -> PathCounts {
        PathCounts {
            sent,
            lost,
            bytes: sent * 100,
            window: 625_000,
            round_trip: Duration::from_millis(50),
        }
    }

    /// A path that is looked at once a second. While it is protected, seven of eight packets are
    /// sent twice.
    struct Path {
        now: Instant,
        estimate: LossEstimate,
        counts: PathCounts,
        hidden: u64,
        protection: Option<Protection>,
    }

    impl Path {
        fn new() -> Self {
            let (now, mut estimate) = (Instant::now(), LossEstimate::default());
            estimate.note(now, counts(0, 0), 0);
            Self { now, estimate, counts: counts(0, 0), hidden: 0, protection: None }
        }

        fn after(&mut self, seconds: u64, sent: u64, lost: impl Fn(u64, bool) -> u64) -> bool {
            for second in 0..seconds {
                self.now += SECOND;
                let lost = lost(second, self.protection.is_some());
                self.counts = counts(self.counts.sent + sent, self.counts.lost + lost);
                self.hidden += if self.protection.is_some() { sent - sent / 8 } else { 0 };
                self.protection = self.estimate.note(self.now, self.counts, self.hidden);
            }
            self.protection.is_some()
        }
    }

    #[test]
    fn it_begins_where_the_link_loses_and_nowhere_else() {
        for (sent, every, lost, begins) in [
            // Packets per second; every so many seconds, so many of them are lost; whether it
            // begins.
            (1000, 1, 0, false),
            (1000, 1, 1, false),
            (1000, 1, 10, true),
            (1000, 1, 30, true),
            (20, 5, 1, true),
            (20, 20, 1, true),
            // A single loss is not enough.
            (20, 1000, 1, false),
            (0, 1, 0, false),
            // A burst of losses among many packets: a queue was full.
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
        // The link loses one packet in a hundred; both copies of a packet, one in ten thousand.
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
    fn the_loss_is_that_of_single_packets_however_many_are_sent_twice() {
        // lost of a thousand; whether copies hide losses
        for (loss, hide) in
            [(10, true), (30, true), (100, true), (250, true), (30, false), (100, false)]
        {
            let mut path = Path::new();
            for second in 0..120 {
                path.now += SECOND;
                let protected = hide && path.protection.is_some();
                let lost =
                    if protected { 125 * loss + 875 * loss * loss / 1000 } else { 1000 * loss };
                // What is less than a packet is lost in another second.
                let lost = (second + 1) * lost / 1000 - second * lost / 1000;
                path.counts = counts(path.counts.sent + 1000, path.counts.lost + lost);
                path.hidden += if protected { 875 } else { 0 };
                path.protection = path.estimate.note(path.now, path.counts, path.hidden);
            }
            let found = path.protection.expect("protected").loss * 1000.0;
            let expected = loss as f64;
            assert!((found - expected).abs() < expected / 10.0, "{found} of {loss}, {hide}");
        }
    }

    #[test]
    fn the_first_losses_count_within_a_tenth_of_a_second() {
        let (mut estimate, now) = (LossEstimate::default(), Instant::now());
        estimate.note(now, counts(0, 0), 0);
        let soon = |ms| now + Duration::from_millis(ms);
        assert!(estimate.note(soon(99), counts(70, 2), 0).is_none());
        assert!(estimate.note(soon(100), counts(80, 2), 0).is_some());
    }

    #[test]
    fn an_outage_is_forgotten() {
        let mut path = Path::new();
        path.after(60, 100, |_, _| 0);
        path.after(30, 10, |_, _| 10);
        assert!(!path.after(420, 20, |_, _| 0));
    }

    #[test]
    fn what_is_lost_while_the_path_is_down_does_not_mean_a_lossy_link() {
        let mut path = Path::new();
        path.after(60, 20, |_, _| 0);
        path.now += 20 * SECOND;
        path.counts = counts(path.counts.sent + 300, path.counts.lost + 300);
        path.estimate.pass_over(path.now, path.counts, path.hidden);
        assert!(!path.after(60, 20, |_, _| 0));
    }

    #[test]
    fn counts_that_begin_anew_are_no_loss() {
        let (mut estimate, now) = (LossEstimate::default(), Instant::now());
        estimate.note(now, counts(900, 400), 0);
        assert_eq!(estimate.note(now + SECOND, counts(30, 10), 0), None);
        assert_eq!(estimate.note(now + 2 * SECOND, counts(1030, 11), 0), None);
    }

    #[test]
    fn the_budget_is_what_the_link_has_left_or_a_part_of_what_it_carries() {
        // window, round trip in ms, bytes in the last second, budget
        for (window, ms, bytes, expected) in [
            (625_000, 50, 0, MOST_BUDGET),
            (62_500, 50, 250_000, 1_000_000),
            (62_500, 50, 1_250_000, 125_000),
            (62_500, 50, 9_999_999, 125_000),
            (14_520, 120, 150_000, 60_500),
            (14_520, 60, 300_000, 100_000),
            (2_400, 500, 4_800, LEAST_BUDGET),
            (14_720, 0, 0, MOST_BUDGET),
        ] {
            let round_trip = Duration::from_millis(ms);
            let counts = PathCounts { window, round_trip, ..PathCounts::default() };
            assert_eq!(budget(&counts, bytes, SECOND), expected, "{window} bytes in {ms} ms");
        }
    }

    #[test]
    fn copies_follow_a_part_of_a_round_trip_later() {
        for (ms, after) in [(0, 1), (4, 1), (40, 4), (50, 5), (120, 8), (900, 8)] {
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
    }
}
