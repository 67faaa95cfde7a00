//! TCP's Cubic (RFC 9438), as a competitor: not paced, with fast convergence.

use std::time::Duration;

use super::{Control, flow::MTU};

const BETA: f64 = 0.7;
const C: f64 = 0.4;

/// A window in packets.
#[derive(Clone)]
pub(in crate::congestion) struct Cubic {
    window: f64,
    threshold: f64,
    highest: f64,
    epoch: Option<Duration>,
    reno: f64,
    recovery: Option<Duration>,
    srtt: f64,
}

impl Default for Cubic {
    fn default() -> Self {
        Self {
            window: 10.0,
            threshold: f64::MAX,
            highest: 0.0,
            epoch: None,
            reno: 0.0,
            recovery: None,
            srtt: 0.1,
        }
    }
}

impl Control for Cubic {
    fn on_sent(&mut self, _now: Duration, _bytes: u64) {}

    fn on_ack(&mut self, now: Duration, sent: Duration, bytes: u64, limited: bool) {
        self.srtt += ((now - sent).as_secs_f64() - self.srtt) / 8.0;
        if limited || self.recovery.is_some_and(|began| sent <= began) {
            return;
        }
        let packets = bytes as f64 / MTU as f64;
        if self.window < self.threshold {
            self.window += packets;
            return;
        }
        let (window, highest) = (self.window, self.highest.max(self.window));
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.reno = window;
            self.highest = highest;
            now
        });
        let k = ((self.highest - self.highest.min(self.threshold)) / C).cbrt();
        let t = (now - epoch).as_secs_f64() + self.srtt;
        let target = (C * (t - k).powi(3) + self.highest).clamp(self.window, 1.5 * self.window);
        self.reno += 3.0 * (1.0 - BETA) / (1.0 + BETA) * packets / self.window;
        self.window = (self.window + (target - self.window) * packets / self.window).max(self.reno);
    }

    fn on_acks_done(&mut self, _now: Duration, _in_flight: u64, _limited: bool) {}

    fn on_lost(&mut self, now: Duration, sent: Duration, _bytes: u64, _outage: bool) {
        if self.recovery.is_some_and(|began| sent <= began) {
            return;
        }
        self.recovery = Some(now);
        self.highest =
            if self.window < self.highest { self.window * (1.0 + BETA) / 2.0 } else { self.window };
        self.window = (self.window * BETA).max(2.0);
        self.threshold = self.window;
        self.epoch = None;
    }

    fn window(&self) -> u64 {
        (self.window * MTU as f64) as u64
    }

    fn is_paced(&self) -> bool {
        false
    }
}
