//! A congestion controller that cannot be stalled by an outage.
//!
//! While nothing is acknowledged, quinn may send only what its window has room for, keep-alives and
//! the probes of a new path included, and its probe time-out (RFC 9002 section 6.2) doubles without
//! a useful bound: after a long outage a running answer would come back minutes late. So the window
//! grows a little while it is silent, until the first acknowledgement.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, CubicConfig},
};

/// Longer than nearly any round trip.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Then the window has room for one more packet each time: so that a client's probes leave, however
/// full it is of an upload that was lost. With packets of an ordinary size that is 120 kbit/s, so a
/// path which only seems dead is not flooded.
const PACKET_EVERY: Duration = Duration::from_millis(100);

/// Builds [`StallProof`] controllers round Cubic (RFC 9438).
#[derive(Debug, Default)]
pub struct StallProofCubic(Arc<CubicConfig>);

impl ControllerFactory for StallProofCubic {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(StallProof {
            inner: self.0.clone().build(now, mtu),
            acknowledged: now,
            mtu: mtu.into(),
        })
    }
}

/// Any controller, with a window that grows while nothing is acknowledged.
pub struct StallProof {
    inner: Box<dyn Controller>,
    acknowledged: Instant,
    mtu: u64,
}

impl StallProof {
    fn window_at(&self, now: Instant) -> u64 {
        let silent = now.saturating_duration_since(self.acknowledged);
        let extra = match silent.checked_sub(STALLED_AFTER) {
            Some(stalled) => (stalled.as_millis() / PACKET_EVERY.as_millis() + 1) as u64 * self.mtu,
            None => 0,
        };
        self.inner.window() + extra
    }
}

impl Controller for StallProof {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acknowledged = now;
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.acknowledged = now;
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.window_at(Instant::now())
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            acknowledged: self.acknowledged,
            mtu: self.mtu,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_while_nothing_is_acknowledged_and_no_longer() {
        let began = Instant::now();
        let mut proof = StallProof {
            inner: Arc::new(CubicConfig::default()).build(began, 1200),
            acknowledged: began,
            mtu: 1200,
        };
        let normal = proof.inner.window();
        assert_eq!(proof.window_at(began + Duration::from_millis(999)), normal);
        assert_eq!(proof.window_at(began + Duration::from_secs(1)), normal + 1200);
        assert_eq!(proof.window_at(began + Duration::from_secs(61)), normal + 601 * 1200);
        let later = began + Duration::from_secs(63);
        proof.on_end_acks(later, 0, false, None);
        assert_eq!(proof.window_at(later), proof.inner.window());
    }
}
