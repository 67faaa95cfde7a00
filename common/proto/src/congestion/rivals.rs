//! Flows that fill the queue whatever we do: measures our share of the queue, and computes a window
//! that keeps up with them.

use std::time::Duration;

/// Cubic's constants (RFC 9438 section 4): what is left of a window, and how fast it grows, in
/// packets per cubic second.
const BETA: f64 = 0.7;
const C: f64 = 0.4;
/// Below this share of the queue the window grows by a part of itself in each round trip.
const LITTLE: f64 = 0.2;
const CATCH_UP: f64 = 0.3;
/// For so many rounds: if there are many others, little is our share.
const CATCH_UP_ROUNDS: u32 = 24;
/// After so long with a queue the path itself may have become longer.
const DOUBT: Duration = Duration::from_secs(30);
/// Below this share the others have to react to losses, not we. With up to four of them this is at
/// most twice the share of each.
const FAIR: f64 = 1.0 / 3.0;
/// If two tests find a larger share than this, there are no others.
const ALL: f64 = 0.75;
/// Nor is anybody if the window has grown so much, and the rate by less than this power of it.
const GROWN: f64 = 1.3;
const POWER: f64 = 0.4;
/// After a test, so many rounds have a rate of their own.
const SETTLED: u32 = 2;
/// Losses mean a full queue only if the queue is nearly as long as it was.
const FULL: f64 = 0.75;
/// How often our share is measured.
const TEST_EVERY: Duration = Duration::from_secs(4);
const TEST_ROUNDS: u32 = 20;
const TEST_ROUNDS_SOON: u32 = 5;

/// Our share beside flows that fill the queue.
#[derive(Debug, Clone)]
pub(super) struct Rivals {
    share: f64,
    /// How many tests in a row found no others.
    alone: u32,
    /// And that found the queue empty.
    empty: u32,
    began: Duration,
    tested: Duration,
    /// Rounds since the last test.
    since_test: u32,
    rounds: u32,
    /// Where Cubic's curve is flat, in bytes; when it began, and from how many packets.
    most: f64,
    curve: Option<(Duration, f64)>,
    /// The longest recent queue, in seconds.
    longest: f64,
    /// Rounds since the window was cut.
    calm: u32,
    /// The window and the rate when catching up began, and the window a round ago.
    grown: Option<(f64, f64)>,
    before: f64,
}

impl Rivals {
    pub(super) fn new(now: Duration, share: f64) -> Self {
        Self {
            share,
            alone: 0,
            empty: 0,
            began: now,
            tested: now,
            since_test: 0,
            rounds: 0,
            most: 0.0,
            curve: None,
            longest: 0.0,
            calm: 0,
            grown: None,
            before: 0.0,
        }
    }

    pub(super) fn share(&self) -> f64 {
        self.share
    }

    /// A dip has measured our share. Whether nobody else is there.
    pub(super) fn measured(&mut self, now: Duration, share: f64) -> bool {
        (self.tested, self.since_test) = (now, 0);
        self.alone = if share > ALL { self.alone + 1 } else { 0 };
        self.share = (self.share + share) / 2.0;
        if self.is_catching_up() {
            self.curve = None;
        }
        self.alone >= 2 || now - self.began > DOUBT
    }

    /// A dip has found the queue empty, or not; `deep`: it would not have with others in it. Whether
    /// nobody else is there.
    pub(super) fn was_empty(&mut self, empty: bool, deep: bool) -> bool {
        self.empty = if empty { self.empty + 1 } else { 0 };
        deep || self.empty >= 2
    }

    fn is_catching_up(&self) -> bool {
        self.share < LITTLE && self.rounds < CATCH_UP_ROUNDS
    }

    /// Whether our share has to be measured again.
    pub(super) fn is_test_due(&self, now: Duration, rtt: Duration) -> bool {
        let soon = self.is_catching_up() || self.alone > 0;
        let pause = if soon { rtt * TEST_ROUNDS_SOON } else { TEST_EVERY.max(rtt * TEST_ROUNDS) };
        now - self.tested > pause
    }

    /// A round is over, with this rate. Returns whether the window has grown and the rate has not:
    /// then there are no others.
    pub(super) fn is_alone(&mut self, window: f64, rate: f64) -> bool {
        let before = std::mem::replace(&mut self.before, window);
        if self.since_test < SETTLED {
            self.since_test += 1;
            return false;
        }
        if !self.is_catching_up() {
            self.grown = None;
            return false;
        }
        let (then, rate_then) = *self.grown.get_or_insert((window, rate));
        before > GROWN * then && (rate / rate_then).ln() < POWER * (before / then).ln()
    }

    /// A round is over, with a queue of this length. `lost`: more was lost than the path itself
    /// loses. Returns the new window, if it has to be cut.
    pub(super) fn end_round(&mut self, window: f64, lost: bool, queue: f64) -> Option<f64> {
        self.longest = (self.longest * 0.99).max(queue);
        (self.calm, self.rounds) = (self.calm + 1, self.rounds + 1);
        if !lost || self.calm < 2 || queue < FULL * self.longest {
            return None;
        }
        (self.calm, self.curve) = (0, None);
        // Fast convergence (RFC 9438 section 4.7).
        self.most = if window < self.most { window * (1.0 + BETA) / 2.0 } else { window };
        Some(if self.share < FAIR { window } else { window * BETA })
    }

    /// The window after acknowledgements.
    pub(super) fn grow(
        &mut self,
        now: Duration,
        rtt: Duration,
        window: f64,
        acked: f64,
        mtu: f64,
    ) -> f64 {
        if self.is_catching_up() {
            return window + CATCH_UP * acked;
        }
        let packets = window / mtu;
        let (since, begun) = *self.curve.get_or_insert((now, packets));
        let most = (self.most / mtu).max(begun);
        let flat_at = ((most - begun) / C).cbrt();
        let at = (now - since + rtt).as_secs_f64() - flat_at;
        let target = (C * at.powi(3) + most).clamp(packets, 1.5 * packets);
        window + (target - packets) * acked / packets
    }
}
