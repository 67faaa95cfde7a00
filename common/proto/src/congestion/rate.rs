//! How fast the path delivers (draft-ietf-ccwg-bbr section 4.5.2), and round trips.

use std::{collections::VecDeque, time::Duration};

use super::windowed::Best;

/// The most batches that are remembered: more than a fast path has in flight.
const RECORDS: usize = 4096;
/// The highest rate of this many round trips counts.
const ROUNDS: u64 = 10;
/// This many packets are acknowledged together on every path.
const TOGETHER: f64 = 10.0;

/// What was known when a batch of packets was sent.
#[derive(Debug, Clone, Copy)]
struct Record {
    at: Duration,
    /// Bytes, and when the last of them were acknowledged.
    delivered: u64,
    delivered_at: Duration,
    /// When the newest of them had been sent.
    newest: Duration,
}

/// The delivery rate of a path.
#[derive(Debug, Clone, Default)]
pub(super) struct DeliveryRate {
    records: VecDeque<Record>,
    delivered: u64,
    delivered_at: Duration,
    newest: Duration,
    in_flight: u64,
    best: Best<u64, f64>,
    round: u64,
    round_from: Duration,
    /// Packets that were sent before so much was delivered had too little company to show the
    /// rate.
    limited_until: u64,
    together: Best<u64, f64>,
    /// Since when, and from which byte on, more has come than the rate explains.
    burst: Option<(Duration, u64)>,
}

impl DeliveryRate {
    pub(super) fn on_sent(&mut self, now: Duration, bytes: u64) {
        if self.in_flight == 0 {
            (self.delivered_at, self.newest) = (now, now);
        }
        self.in_flight += bytes;
        if self.records.back().is_none_or(|record| record.at < now) {
            if self.records.len() == RECORDS {
                self.records.pop_front();
            }
            self.records.push_back(Record {
                at: now,
                delivered: self.delivered,
                delivered_at: self.delivered_at,
                newest: self.newest,
            });
        }
    }

    pub(super) fn on_ack(&mut self, now: Duration, sent: Duration, bytes: u64, limited: bool) {
        (self.delivered, self.delivered_at) = (self.delivered + bytes, now);
        self.newest = self.newest.max(sent);
        if limited {
            self.limited_until = self.delivered + self.in_flight;
        }
        while self.records.front().is_some_and(|record| record.at < sent) {
            self.records.pop_front();
        }
        let Some(record) = self.records.front().filter(|record| record.at == sent) else { return };
        // The slower of sending and acknowledging counts: acknowledgements that arrive together say
        // nothing about the rate.
        let took = (now - record.delivered_at).max(sent.saturating_sub(record.newest));
        if took.is_zero() {
            return;
        }
        let rate = (self.delivered - record.delivered) as f64 / took.as_secs_f64();
        if record.delivered >= self.limited_until || rate > self.best() {
            self.best.add(self.round, rate, self.round.saturating_sub(ROUNDS));
        }
    }

    /// All acknowledgements that arrived together have been taken.
    pub(super) fn on_acks_done(&mut self, now: Duration, in_flight: u64, mtu: f64) {
        self.in_flight = in_flight;
        if in_flight == 0 {
            // The next packet follows a pause.
            self.records.clear();
        }
        let (since, from) = *self.burst.get_or_insert((now, self.delivered));
        let expected = (now - since).as_secs_f64() * self.best();
        let came = (self.delivered - from) as f64;
        if came <= expected {
            self.burst = Some((now, self.delivered));
        }
        let more = (came - expected - TOGETHER * mtu).max(0.0);
        self.together.add(self.round, more, self.round.saturating_sub(ROUNDS));
    }

    /// The highest recent rate, in bytes per second.
    pub(super) fn best(&self) -> f64 {
        self.best.get().unwrap_or(0.0)
    }

    /// How many bytes have to be in flight beyond what the rate and the round trip need, because
    /// acknowledgements arrive together.
    pub(super) fn together(&self) -> f64 {
        self.together.get().unwrap_or(0.0)
    }

    /// Round trips so far.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// Whether a round trip is over, as a packet that was sent at `sent` has been acknowledged.
    pub(super) fn is_round_over(&mut self, now: Duration, sent: Duration) -> bool {
        let over = sent >= self.round_from;
        if over {
            (self.round, self.round_from, self.burst) = (self.round + 1, now, None);
        }
        over
    }
}
