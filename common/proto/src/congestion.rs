//! The congestion controller: decides how many bytes may be in flight, from times and byte counts
//! alone. A time is the duration since any fixed moment.
//!
//! Its purpose: tokens arrive soon beside bulk transfers. So it keeps the queue at the bottleneck
//! short, does not mistake random loss for congestion, and still gets its share beside flows that
//! fill the queue. `docs/congestion.md` explains it, with figures.

mod dips;
mod losses;
mod path;
mod rate;
mod rivals;
#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;
mod trains;
mod windowed;

use std::time::Duration;

pub use self::state::ControllerState;
use self::{
    dips::{DIP_AFTER, DIP_LEAVES, Dip, WARY},
    losses::Losses,
    path::Path,
    rate::DeliveryRate,
    rivals::Rivals,
    trains::Trains,
};

/// The first window, in packets (RFC 9002 section 7.2).
const FIRST: f64 = 10.0;
/// The smallest window, in packets.
const LEAST: f64 = 4.0;
/// Our part of the queue grows with the square root of our rate: this, in bytes at one byte per
/// second. It is 2.3 ms at 100 Mbit/s and 7 ms at 10. Two flows with equal shares have equal rates,
/// and no other rates are in balance.
const SHARE: f64 = 8.0;
/// Our part of the queue is at least this long, in seconds: a shorter one cannot be told from
/// delays of the scheduler.
const SHARE_AT_LEAST: f64 = 0.001;
/// In one round trip the window moves by this part of the difference to its goal.
const GAIN: f64 = 0.5;
/// And at most by these parts of itself.
const FASTEST_UP: f64 = 1.0 / 3.0;
const FASTEST_DOWN: f64 = 0.25;
/// While the queue is empty, steps double each round trip, up to this.
const MOST_SPEED: f64 = 64.0;
/// The window is at most this many times what the rate and the round trip need.
const HEADROOM: f64 = 1.25;
/// From this part of what the bottleneck holds on, by its own speed, the window grows slower: news of
/// a queue comes a round trip late.
const NEARLY: f64 = 0.9;
/// Then the window grows in a round trip by what makes the queue this much longer, in seconds.
const UNSEEN: f64 = 0.012;
/// But at least by this part of itself,
const SLOWEST: f64 = 0.08;
/// and at most by this one.
const SLOWER: f64 = 0.4;
/// On a path with a shorter round trip, in seconds, slow start always doubles the window.
const SHORT: f64 = 0.03;
/// Slow start ends when the rate has not grown by a quarter for this many rounds.
const FLAT_ROUNDS: u32 = 3;
/// A loss in a round that exceeds the path's own loss by more than this is congestion.
const EXCESS: f64 = 0.02;
/// Beside flows that fill the queue, the excess has to be larger.
const EXCESS_BESIDE: f64 = 0.15;
/// What we expect of the queue is not more than for a flow with this part of the best rate: a flow
/// that others have pushed back far would expect them.
const MOST_BACK: f64 = 4.0;
/// The part of the best rate that is kept after each round that does not reach it.
const PEAK_FADES: f64 = 0.9995;
/// Delays that vary from round to round: so many times what they vary may be in flight beside our
/// share.
const VARIATIONS: f64 = 4.0;
/// After congestion the window grows no faster than this in each round,
const CAREFUL: f64 = 1.03;
/// from so many rounds after it on.
const CAREFUL_AFTER: u32 = 4;
/// The part of the window that is kept when the network has marked a packet (RFC 8511 section 3).
const MARKED: f64 = 0.85;

/// When the window becomes smaller, this part of the acknowledged bytes is not replaced by new ones,
/// until no more is in flight than the window allows (similar to RFC 6937). The rest is replaced, so
/// that tokens need not wait for a part of a round trip.
const FALLS: f64 = 0.7;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The window doubles in each round trip, and grows less when the path is nearly full.
    SlowStart,
    /// The window keeps our part of the queue short, or our share beside others.
    Steady,
    /// Less is sent for a moment, to see how far the queue falls.
    Dip(Dip),
}

/// A congestion controller that keeps the bottleneck's queue shallow.
#[derive(Debug, Clone)]
pub struct Shallow {
    mtu: f64,
    /// The window that the rules have computed, in bytes.
    window: f64,
    /// Bytes that may be in flight now: they fall slowly to what is wanted.
    permitted: f64,
    phase: Phase,
    path: Path,
    rate: DeliveryRate,
    trains: Trains,
    losses: Losses,
    rivals: Option<Rivals>,
    /// What was sent before belongs to another path.
    since: Duration,
    /// Of the acknowledgements that came together: the newest packet, and the bytes.
    newest: Option<Duration>,
    acked: f64,
    /// Slow start: the rate that is to be beaten, and for how many rounds it was not.
    best: f64,
    flat: u32,
    speed: f64,
    /// The window at which too much was lost, and the rounds since.
    ceiling: f64,
    calm: u32,
    /// Rounds with a queue that is much longer than it should be.
    tall: u32,
    /// Rounds with next to no queue, beside rivals.
    short: u32,
    /// The largest window of the last rounds.
    recent: f64,
    /// The best rate that the path has shown, in bytes per second.
    peak: f64,
    /// When acknowledgements came last, and when the window was cut last: what was sent before is
    /// no news of the window now.
    seen: Duration,
    cut_at: Duration,
    /// Until then, others are expected to come back.
    wary_until: Duration,
    dipped_at: Duration,
    deep_at: Duration,
    /// The round trip of the last dip.
    dip_low: Duration,
}

impl Shallow {
    /// A controller that begins at `now`, for an unknown path and packets of `mtu` bytes.
    pub fn new(now: Duration, mtu: u16) -> Self {
        let mtu = f64::from(mtu);
        Self {
            mtu,
            window: FIRST * mtu,
            permitted: FIRST * mtu,
            phase: Phase::SlowStart,
            path: Path::default(),
            rate: DeliveryRate::default(),
            trains: Trains::default(),
            losses: Losses::default(),
            rivals: None,
            since: now,
            newest: None,
            acked: 0.0,
            best: 0.0,
            flat: 0,
            speed: 1.0,
            ceiling: f64::MAX,
            calm: 0,
            tall: 0,
            short: 0,
            recent: 0.0,
            peak: 0.0,
            seen: now,
            cut_at: Duration::ZERO,
            wary_until: Duration::ZERO,
            dipped_at: now,
            deep_at: Duration::ZERO,
            dip_low: Duration::ZERO,
        }
    }

    /// The first window of an unknown path, in bytes.
    pub fn first_window(&self) -> u64 {
        (FIRST * self.mtu) as u64
    }

    /// Bytes that may be in flight.
    pub fn window(&self) -> u64 {
        self.permitted.max(self.least()) as u64
    }

    /// How many bytes should be in flight, in a dip too.
    fn wanted(&self) -> f64 {
        let part = if let Phase::Dip(dip) = self.phase { dip.part } else { 1.0 };
        (self.window * part).max(self.least())
    }

    /// The size of packets has changed.
    pub fn on_mtu(&mut self, mtu: u16) {
        self.mtu = f64::from(mtu);
    }

    /// Packets take another path from `now` on, so nothing that was learned applies.
    pub fn on_path_changed(&mut self, now: Duration) {
        *self = Self::new(now, self.mtu as u16);
    }

    /// Packets of `bytes` bytes in total have been sent at once.
    pub fn on_sent(&mut self, now: Duration, bytes: u64) {
        self.rate.on_sent(now, bytes);
    }

    /// A packet that was sent at `sent` has been acknowledged. `limited`: the application had
    /// nothing more to send.
    pub fn on_ack(&mut self, now: Duration, sent: Duration, bytes: u64, limited: bool) {
        if sent < self.since {
            return;
        }
        self.acked += bytes as f64;
        self.losses.on_ack(bytes);
        self.newest = self.newest.max(Some(sent));
        self.rate.on_ack(now, sent, bytes, limited);
        self.trains.on_ack(now, sent, bytes, self.mtu);
    }

    /// Packets were lost, the newest of which was sent at `sent`. `outage`: all were lost, for a
    /// long time.
    pub fn on_lost(&mut self, sent: Duration, bytes: u64, outage: bool) {
        if outage {
            // An outage says nothing about the capacity of the network.
            self.losses.forget();
        } else if sent >= self.since && sent > self.cut_at {
            self.losses.on_lost(bytes);
        }
    }

    /// The network has marked a packet instead of losing it (RFC 3168).
    pub fn on_marked(&mut self, sent: Duration) {
        if sent >= self.since && self.losses.is_first_mark() {
            self.window = (self.window * MARKED).max(self.least());
            self.end_slow_start();
        }
    }

    /// All acknowledgements that arrived together have been taken. `in_flight` bytes are still in
    /// flight.
    pub fn on_acks_done(&mut self, now: Duration, in_flight: u64, limited: bool) {
        let Some(newest) = self.newest.take() else { return };
        let acked = std::mem::take(&mut self.acked);
        self.seen = now;
        self.rate.on_acks_done(now, in_flight, self.mtu);
        self.path.on_rtt(now, now - newest, self.phase == Phase::SlowStart);
        if self.rate.is_round_over(now, newest) {
            self.end_round(now, limited);
        }
        match self.phase {
            Phase::Dip(dip) => self.dip(now, dip, in_flight, newest),
            _ if limited => {}
            Phase::SlowStart => self.start(acked),
            Phase::Steady => match &mut self.rivals {
                Some(rivals) => {
                    let grown = rivals.grow(now, now - newest, self.window, acked, self.mtu);
                    self.window = grown.max(LEAST * self.mtu);
                }
                None => self.steer(acked),
            },
        }
        // In the dips beside rivals, how far the queue falls tells our share of it.
        let falls = if self.rivals.is_some() { f64::MAX } else { FALLS * acked };
        let most = self.permitted.min(in_flight as f64 + acked);
        self.permitted = (most - falls).max(self.wanted());
    }

    fn least(&self) -> f64 {
        LEAST * self.mtu
    }

    /// Our delivery rate, in bytes per second.
    fn own_rate(&self) -> f64 {
        let rate = self.window / (self.path.base() + self.path.queue());
        if self.rate.best() > 0.0 { rate.min(self.rate.best()) } else { rate }
    }

    /// How many bytes of ours should be in the queue.
    fn share(&self) -> f64 {
        let rate = self.own_rate();
        (SHARE * rate.sqrt()).max(rate * SHARE_AT_LEAST).max(3.0 * self.mtu)
    }

    /// How long the queue may be, in seconds.
    fn target(&self) -> f64 {
        self.share() / self.own_rate()
    }

    /// How many bytes have to be in flight beyond our share, because delays vary and
    /// acknowledgements arrive together.
    fn slack(&self) -> f64 {
        self.rate.together() + VARIATIONS * self.path.jitter() * self.own_rate()
    }

    /// How long the queue may be if only flows of our kind are in it, in seconds.
    fn expected(&self) -> f64 {
        let rate = self.own_rate().max(self.peak / MOST_BACK).max(1.0);
        (SHARE * rate.sqrt()).max(rate * SHARE_AT_LEAST).max(3.0 * self.mtu) / rate
    }

    /// The same, plus what varying delays add.
    fn allowed(&self) -> f64 {
        self.expected() + self.slack() / self.own_rate()
    }

    fn start(&mut self, acked: f64) {
        self.window += self.growth() * acked;
        let most = (1.5 * self.target() + self.slack() / self.own_rate())
            .max((self.path.base() / 8.0).min(0.03));
        if self.rate.round() > 2 && self.path.queue() > most {
            self.end_slow_start();
        }
    }

    /// The part of itself by which the window may grow in a round trip of slow start.
    fn growth(&self) -> f64 {
        if self.is_nearly_full() { (UNSEEN / self.path.base()).clamp(SLOWEST, SLOWER) } else { 1.0 }
    }

    /// Whether the path holds little more than the window, by the speed of its bottleneck. On a short
    /// path the queue of a round trip is short, and delays say little about the speed.
    fn is_nearly_full(&self) -> bool {
        let base = self.path.base();
        base > SHORT && self.trains.rate().is_some_and(|rate| self.window > NEARLY * rate * base)
    }

    fn end_slow_start(&mut self) {
        if self.phase == Phase::SlowStart {
            self.cut_at = self.seen;
            if self.rate.best() > 0.0 {
                self.window = (self.rate.best() * self.path.base()).max(self.least());
            }
            self.begin_dip(DIP_LEAVES);
        }
    }

    /// Moves the window towards our share of the queue.
    fn steer(&mut self, acked: f64) {
        let queue = self.path.queue();
        let ours = self.window * queue / (self.path.base() + queue);
        let missing = self.share() + self.slack() - ours;
        let rounds = acked / self.window;
        if missing > 0.0 {
            let step = (GAIN * missing * self.speed).min(self.window * FASTEST_UP);
            let most = HEADROOM * (self.rate.best() * self.path.base() + self.share());
            let most = (most + FIRST * self.mtu).max(self.window);
            self.window = (self.window + step * rounds).min(most);
        } else {
            self.window += (GAIN * missing).max(-self.window * FASTEST_DOWN) * rounds;
        }
        self.window = self.window.min(self.ceiling).max(self.least());
    }

    fn end_round(&mut self, now: Duration, limited: bool) {
        let queue = self.path.end_round(now, limited, self.phase != Phase::Steady);
        let rate = self.losses.rate(now);
        let excess = self.losses.end_round(self.mtu);
        self.calm += 1;
        if self.calm > CAREFUL_AFTER {
            self.ceiling *= CAREFUL;
        }
        if limited {
            (self.tall, self.flat, self.best) = (0, 0, 0.0);
            return;
        }
        match self.phase {
            _ if self.is_longer(queue) => self.restart(now),
            Phase::SlowStart => self.end_start_round(excess),
            _ if self.rivals.is_some() => self.end_round_beside(now, rate, excess),
            _ => self.end_steady_round(now, queue, excess),
        }
        self.window = self.window.max(self.least());
        if self.phase == Phase::Steady && self.is_dip_due(now) {
            self.begin_dip(DIP_LEAVES);
        }
    }

    /// Whether all of the last rounds had the same long round trip, whatever was sent: a queue would
    /// have moved.
    fn is_longer(&self, queue: f64) -> bool {
        queue > 2.0 * self.allowed() && self.path.steady_low().is_some()
    }

    /// The path has become longer: what looked like a queue was none.
    fn restart(&mut self, now: Duration) {
        if let Some(low) = self.path.steady_low() {
            self.path.settle(now, low);
        }
        (self.phase, self.rivals, self.tall) = (Phase::SlowStart, None, 0);
        (self.best, self.flat, self.ceiling) = (0.0, 0, f64::MAX);
    }

    fn end_start_round(&mut self, excess: f64) {
        if self.rate.best() >= 1.25 * self.best {
            (self.best, self.flat) = (self.rate.best(), 0);
        } else {
            self.flat += 1;
        }
        if self.flat >= FLAT_ROUNDS || excess > EXCESS {
            self.end_slow_start();
        }
    }

    fn end_steady_round(&mut self, now: Duration, queue: f64, excess: f64) {
        if excess > EXCESS {
            self.window *= 1.0 - excess.min(0.3);
            (self.ceiling, self.calm, self.cut_at) = (self.window, 0, self.seen);
        }
        self.peak = (self.peak * PEAK_FADES).max(self.rate.best());
        let (target, allowed) = (self.target(), self.allowed());
        self.speed = if queue < target / 4.0 { (self.speed * 2.0).min(MOST_SPEED) } else { 1.0 };
        let most = self.tall_rounds(now).1 * allowed;
        self.tall = if queue > most { self.tall + 1 } else { 0 };
        self.recent = (self.recent * 0.97).max(self.window);
    }

    fn end_round_beside(&mut self, now: Duration, rate: f64, excess: f64) {
        let target = self.expected();
        let Some(rivals) = &mut self.rivals else { return };
        let queue = self.path.round_low() - self.path.floor();
        if excess > EXCESS_BESIDE {
            self.window *= 1.0 - excess / 2.0;
        }
        if self.phase != Phase::Steady {
            return;
        }
        let known = self.path.floor_age(now).as_secs_f64() > 4.0 * self.path.round_low();
        self.short = if queue < target && known { self.short + 1 } else { 0 };
        if rivals.is_alone(self.window, rate) {
            self.settle(now, self.dip_low);
        } else if self.short >= 2 {
            self.wary_until = now + WARY;
            (self.rivals, self.short) = (None, 0);
        } else if let Some(cut) = rivals.end_round(self.window, excess > 0.0, queue) {
            self.window = cut.max(LEAST * self.mtu);
            if now - self.deep_at > DIP_AFTER {
                self.deep_at = now;
                let rtt = self.path.floor() + queue;
                self.begin_dip((0.95 * self.path.floor() / rtt).clamp(0.1, DIP_LEAVES));
            }
        }
    }
}
