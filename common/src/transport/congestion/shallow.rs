//! Runs the controller of the crate `proto` with a clock, and logs a trace of it.

use std::time::{Duration, Instant};

use proto::congestion::Shallow;
use tracing::trace;

use super::Changes;

/// The controller's times begin so long before it, so that it can tell what was sent before.
const BEFORE: Duration = Duration::from_secs(1);
/// The shortest time between two lines of the trace. Rounds of a fast path are shorter.
const TRACE_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub(super) struct ShallowController {
    shallow: Shallow,
    began: Instant,
    changes: Changes,
    /// How many changes of the path the controller has taken into account.
    told: u64,
    traced: Instant,
}

impl ShallowController {
    pub(super) fn new(now: Instant, mtu: u16) -> Self {
        Self {
            shallow: Shallow::new(BEFORE, mtu),
            began: now,
            changes: Changes::default(),
            told: 0,
            traced: now,
        }
    }

    /// The packets take another path from now on. Copies of this controller see it too.
    pub(super) fn path_changed(&self) {
        self.changes.note();
    }

    fn at(&self, time: Instant) -> Duration {
        (time + BEFORE).saturating_duration_since(self.began)
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        let changes = self.changes.count();
        if changes != self.told {
            self.told = changes;
            self.shallow.on_path_changed(self.at(now));
        }
        self.shallow.on_sent(self.at(now), bytes);
    }

    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, limited: bool) {
        self.shallow.on_ack(self.at(now), self.at(sent), bytes, limited);
    }

    pub(super) fn on_acks_done(&mut self, now: Instant, in_flight: u64, limited: bool) {
        self.shallow.on_acks_done(self.at(now), in_flight, limited);
        if now.saturating_duration_since(self.traced) >= TRACE_EVERY {
            self.traced = now;
            self.trace(now, in_flight, limited);
        }
    }

    /// Logs a line of the trace; `docs/congestion.md` says how to plot it.
    fn trace(&self, now: Instant, in_flight: u64, limited: bool) {
        let state = self.shallow.state();
        trace!(
            at_ms = self.at(now).as_millis() as u64,
            phase = state.phase,
            window = state.window,
            in_flight,
            limited,
            rate = state.rate,
            base_us = state.base.as_micros() as u64,
            queue_us = state.queue.as_micros() as u64,
            target_us = state.target.as_micros() as u64,
            loss = state.loss,
            share = state.share,
            round = state.round,
            "congestion"
        );
    }

    /// `bytes` were lost; 0 if the network has marked a packet instead (RFC 3168).
    pub(super) fn on_lost(&mut self, sent: Instant, bytes: u64, outage: bool) {
        let sent = self.at(sent);
        if bytes == 0 {
            self.shallow.on_marked(sent);
        } else {
            self.shallow.on_lost(sent, bytes, outage);
        }
    }

    pub(super) fn on_mtu(&mut self, mtu: u16) {
        self.shallow.on_mtu(mtu);
    }

    pub(super) fn window(&self) -> u64 {
        self.shallow.window()
    }

    pub(super) fn first_window(&self) -> u64 {
        self.shallow.first_window()
    }
}
