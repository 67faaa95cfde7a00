//! The round trip of the path without a queue, and how much longer a round trip takes now. Times
//! are in seconds, unless the type is a duration.

use std::{cmp::Reverse, time::Duration};

use super::windowed::Best;

/// The queue is the shortest one within half a round trip, or within this time.
const STANDING: Duration = Duration::from_millis(20);
/// The lowest round trip of so much time is the path's own. Flows on one bottleneck see the same
/// lowest one, so it ends for all of them at once, and they send less together.
const BASE: Duration = Duration::from_secs(10);
/// A round trip counts as the lowest if so many rounds had none that was longer, and rounds count
/// if they are so long: on a path whose delay varies, single packets have luck.
const ROUNDS: usize = 2;
const ROUND: Duration = Duration::from_millis(25);
/// The lowest round trips of so many rounds are remembered: if they are all the same, and long, the
/// path has become longer.
const KEPT: usize = 6;
/// They are the same if they differ by so little, or by this part.
const SAME: Duration = Duration::from_micros(300);
const SAME_PART: u32 = 100;

/// What the round trips tell about a path.
#[derive(Debug, Clone, Default)]
pub(super) struct Path {
    /// The round trip without our queue: the lowest of late, while there was enough to send.
    base: Best<Duration, Reverse<Duration>>,
    /// The round trip without anybody's queue.
    floor: Option<Duration>,
    /// When it was lowered.
    floor_at: Duration,
    standing: Best<Duration, Reverse<Duration>>,
    /// The lowest round trips, of this round and of the last ones.
    low: Option<Duration>,
    began: Duration,
    /// How much the lowest round trips differ from one round to the next.
    jitter: f64,
    step: f64,
    lows: [Option<Duration>; KEPT],
}

impl Path {
    pub(super) fn on_rtt(&mut self, now: Duration, rtt: Duration, starting: bool) {
        if starting || self.floor.is_none() {
            self.add_low(now, rtt);
        }
        let base = Duration::from_secs_f64(self.base());
        let span = if starting && base > STANDING {
            (base / 8).max(STANDING / 4)
        } else {
            (base / 2).max(STANDING)
        };
        self.standing.add(now, Reverse(rtt), now.saturating_sub(span));
        self.low = Some(self.low.map_or(rtt, |low| low.min(rtt)));
    }

    /// A round trip of this length has been seen.
    pub(super) fn add_low(&mut self, now: Duration, low: Duration) {
        self.base.add(now, Reverse(low), now.saturating_sub(BASE));
        let floor = self.floor.unwrap_or(Duration::MAX);
        if low < floor - floor / 32 {
            self.floor_at = now;
        }
        self.floor = Some(floor.min(low));
    }

    /// A round is over. Returns how long its queue was at least.
    pub(super) fn end_round(&mut self, now: Duration, limited: bool, dipping: bool) -> f64 {
        if now - self.began < ROUND {
            return (self.round_low() - self.base()).max(0.0);
        }
        self.began = now;
        self.lows.rotate_right(1);
        self.lows[0] = self.low.take();
        if let [Some(now), Some(before), ..] = self.lows
            && !limited
            && !dipping
        {
            let step = now.as_secs_f64() - before.as_secs_f64();
            let last = std::mem::replace(&mut self.step, step);
            let back = if step * last < 0.0 { step.abs().min(last.abs()) } else { 0.0 };
            self.jitter += (back - self.jitter) / 16.0;
        }
        let lows = self.lows[..ROUNDS].iter().copied().collect::<Option<Vec<_>>>();
        if !limited && let Some(low) = lows.and_then(|lows| lows.into_iter().max()) {
            self.add_low(now, low);
        }
        (self.round_low() - self.base()).max(0.0)
    }

    /// The lowest round trip of the last rounds, if it was the same in all of them.
    pub(super) fn steady_low(&self) -> Option<Duration> {
        let lows = self.lows.iter().copied().collect::<Option<Vec<_>>>()?;
        let (least, most) = (lows.iter().min()?, lows.iter().max()?);
        (*most - *least <= SAME.max(*least / SAME_PART)).then_some(*least)
    }

    /// The lowest round trip of the last round.
    pub(super) fn round_low(&self) -> f64 {
        self.lows[0].map_or(self.base(), |low| low.as_secs_f64())
    }

    pub(super) fn base(&self) -> f64 {
        self.base.get().map_or(0.0, |base| base.0.as_secs_f64()).max(1e-6)
    }

    pub(super) fn jitter(&self) -> f64 {
        self.jitter
    }

    /// How long ago the path's own round trip was seen last.
    pub(super) fn base_age(&self, now: Duration) -> Duration {
        now - self.base.at().unwrap_or(now)
    }

    pub(super) fn floor(&self) -> f64 {
        self.floor.unwrap_or_default().as_secs_f64()
    }

    /// For how long the floor stands.
    pub(super) fn floor_age(&self, now: Duration) -> Duration {
        now - self.floor_at
    }

    /// How long a packet waits in the queue.
    pub(super) fn queue(&self) -> f64 {
        let standing = self.standing.get().map_or(0.0, |low| low.0.as_secs_f64());
        (standing - self.base()).max(0.0)
    }

    /// Sets the path's own round trip, whatever was seen before.
    pub(super) fn settle(&mut self, now: Duration, low: Duration) {
        (self.base, self.floor, self.lows) = (Best::default(), None, [None; KEPT]);
        self.add_low(now, low);
    }
}
