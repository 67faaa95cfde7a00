//! TCP's BBR of the first version (draft-cardwell-iccrg-bbr-congestion-control-00), as a competitor.

use std::{collections::VecDeque, time::Duration};

use super::{Control, flow::MTU, ms};

const GAINS: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Startup,
    Drain,
    Cruise(usize, Duration),
    ProbeRtt(Duration),
}

struct Sent {
    at: Duration,
    delivered: u64,
    delivered_at: Duration,
}

pub(in crate::congestion) struct Bbr {
    phase: Phase,
    sent: VecDeque<Sent>,
    delivered: u64,
    delivered_at: Duration,
    rates: VecDeque<(u64, f64)>,
    round: u64,
    round_from: Duration,
    best: f64,
    flat: u32,
    lowest: Duration,
    lowest_at: Duration,
    in_flight: u64,
    /// What the window is, in multiples of the bandwidth-delay product.
    gain: f64,
}

impl Bbr {
    /// The window is `gain` times the bandwidth-delay product; 2 in the draft.
    pub(in crate::congestion) fn new(gain: f64) -> Self {
        Self {
            phase: Phase::Startup,
            sent: VecDeque::new(),
            delivered: 0,
            delivered_at: Duration::ZERO,
            rates: VecDeque::new(),
            round: 0,
            round_from: Duration::ZERO,
            best: 0.0,
            flat: 0,
            lowest: ms(10_000),
            lowest_at: Duration::ZERO,
            in_flight: 0,
            gain,
        }
    }

    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |rate| rate.1)
    }

    fn product(&self) -> f64 {
        self.rate() * self.lowest.as_secs_f64()
    }

    fn round_over(&mut self, now: Duration) {
        (self.round, self.round_from) = (self.round + 1, now);
        if self.rate() >= 1.25 * self.best {
            (self.best, self.flat) = (self.rate(), 0);
        } else {
            self.flat += 1;
        }
        if self.phase == Phase::Startup && self.flat >= 3 {
            self.phase = Phase::Drain;
        }
    }
}

impl Control for Bbr {
    fn on_sent(&mut self, now: Duration, _bytes: u64) {
        if self.in_flight == 0 {
            self.delivered_at = now;
        }
        self.sent.push_back(Sent {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
        });
    }

    fn on_ack(&mut self, now: Duration, sent: Duration, bytes: u64, limited: bool) {
        (self.delivered, self.delivered_at) = (self.delivered + bytes, now);
        while self.sent.front().is_some_and(|record| record.at < sent) {
            self.sent.pop_front();
        }
        let Some(record) = self.sent.front().filter(|record| record.at == sent) else { return };
        let rate = (self.delivered - record.delivered) as f64
            / (now - record.delivered_at).as_secs_f64().max(1e-6);
        if !limited || rate > self.rate() {
            while self.rates.back().is_some_and(|known| known.1 <= rate) {
                self.rates.pop_back();
            }
            self.rates.push_back((self.round, rate));
            while self.rates.len() > 1 && self.round - self.rates[0].0 > 10 {
                self.rates.pop_front();
            }
        }
        let rtt = now - sent;
        if rtt <= self.lowest {
            (self.lowest, self.lowest_at) = (rtt, now);
        }
        if sent >= self.round_from {
            self.round_over(now);
        }
    }

    fn on_acks_done(&mut self, now: Duration, in_flight: u64, _limited: bool) {
        self.in_flight = in_flight;
        match self.phase {
            Phase::Drain if in_flight as f64 <= self.product() => {
                self.phase = Phase::Cruise(2, now);
            }
            Phase::Cruise(_, _) if now - self.lowest_at > ms(10_000) => {
                self.phase = Phase::ProbeRtt(now + ms(200) + self.lowest);
                self.lowest = ms(10_000);
            }
            Phase::Cruise(at, since) if now - since > self.lowest => {
                self.phase = Phase::Cruise((at + 1) % GAINS.len(), now);
            }
            Phase::ProbeRtt(until) if now >= until => {
                self.lowest_at = now;
                self.phase = Phase::Cruise(2, now);
            }
            _ => {}
        }
    }

    fn on_lost(&mut self, _now: Duration, _sent: Duration, _bytes: u64, _outage: bool) {}

    fn window(&self) -> u64 {
        let packets = |count: u64| count * MTU;
        match self.phase {
            Phase::Startup => ((2.89 * self.product()) as u64).max(packets(10)),
            Phase::ProbeRtt(_) => packets(4),
            _ => ((self.gain * self.product()) as u64).max(packets(4)),
        }
    }

    fn pacing(&self) -> Option<f64> {
        let gain = match self.phase {
            Phase::Startup => 2.89,
            Phase::Drain => 0.35,
            Phase::Cruise(at, _) => GAINS[at],
            Phase::ProbeRtt(_) => 1.0,
        };
        (self.rate() > 0.0).then(|| gain * self.rate())
    }
}
