//! The congestion controller, behind quinn's trait, and what keeps an outage from stalling it.
//!
//! While nothing is acknowledged, quinn sends no more than its window allows, keep-alives and
//! probes of a new path included. And its probe time-out (RFC 9002 section 6.2) doubles without a
//! useful limit, so after a long outage a running answer would go on minutes late. Therefore the
//! window grows a little during silence, until something that was sent during it is acknowledged.

mod shallow;
mod silence;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics},
};

use self::{shallow::ShallowController, silence::Silence};

/// In an outage the window has room for one more packet each time, so that a client's probes leave, however
/// full it is of an upload that was lost, as often as they are made. With packets of an ordinary size
/// that is 230 kbit/s, so a path which only seems dead is not flooded.
const PACKET_EVERY: Duration = Duration::from_millis(50);

/// Builds the controllers of connections, for the first path and for each path that the peer moves
/// to.
#[derive(Debug, Default)]
pub struct Controllers(());

impl ControllerFactory for Controllers {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(StallProof::new(now, mtu))
    }
}

/// Tells the controller of a connection that its packets take another path from now on.
///
/// A peer that sees a new address starts a new controller by itself. On this end, quinn does not
/// see a change of carrier, so the controller would keep the round trip and the rate of the old
/// path.
pub fn path_changed(connection: &quinn::Connection) {
    if let Ok(controller) = connection.congestion_state().into_any().downcast::<StallProof>() {
        controller.inner.path_changed();
    }
}

/// Holds back what the window grows by during silence, or no longer.
///
/// Packets that leave in a silence are as long as the path once carried, and each postpones the
/// probe time-out, whose packets are short. A path that no longer carries long packets would stay
/// silent for ever. So where something else shows that short packets arrive, these have to get
/// their turn.
pub fn hold_back(connection: &quinn::Connection, held: bool) {
    if let Ok(controller) = connection.congestion_state().into_any().downcast::<StallProof>() {
        controller.held.store(held, Relaxed);
    }
}

/// A controller whose window grows while nothing is acknowledged.
#[derive(Clone)]
pub struct StallProof {
    inner: ShallowController,
    silence: Silence,
    mtu: u64,
    /// See [`hold_back`]. All copies share it.
    held: Arc<AtomicBool>,
}

impl StallProof {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            inner: ShallowController::new(now, mtu),
            silence: Silence::new(now),
            mtu: mtu.into(),
            held: Arc::default(),
        }
    }

    fn window_at(&self, now: Instant) -> u64 {
        let packets = match self.silence.stalled(now) {
            Some(stalled) if !self.held.load(Relaxed) => {
                stalled.as_millis() / PACKET_EVERY.as_millis() + 1
            }
            _ => 0,
        };
        self.inner.window() + packets as u64 * self.mtu
    }
}

impl Controller for StallProof {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.silence.on_sent(now, bytes);
        self.inner.on_sent(now, bytes);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        self.silence.on_ack(now, sent);
        self.inner.on_ack(now, sent, bytes, app_limited);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.inner.on_acks_done(now, in_flight, app_limited);
    }

    fn on_congestion_event(
        &mut self,
        _now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner.on_lost(sent, lost_bytes, is_persistent_congestion);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.inner.on_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.window_at(Instant::now())
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.inner.first_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// How often the path of a connection has changed. All copies of its controller share it.
#[derive(Clone, Default)]
struct Changes(Arc<AtomicU64>);

impl Changes {
    fn note(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(now: Instant) -> StallProof {
        StallProof::new(now, 1200)
    }

    #[test]
    fn the_window_grows_while_nothing_is_acknowledged_and_no_longer() {
        let began = Instant::now();
        let mut proof = controller(began);
        let normal = proof.inner.window();
        assert_eq!(proof.window_at(began + Duration::from_millis(999)), normal);
        assert_eq!(proof.window_at(began + Duration::from_secs(1)), normal + 1200);
        assert_eq!(proof.window_at(began + Duration::from_secs(61)), normal + 1201 * 1200);
        let later = began + Duration::from_secs(63);
        proof.silence.on_ack(later, later - Duration::from_millis(50));
        assert_eq!(proof.window_at(later), proof.inner.window());
    }

    #[test]
    fn a_change_of_path_is_told_through_a_copy_and_forgets_what_was_learned() {
        let began = Instant::now();
        let mut proof = controller(began);
        let rtt = Duration::from_millis(50);
        let mut now = began;
        for _ in 0..20 {
            proof.inner.on_sent(now, 12_000);
            proof.inner.on_ack(now + rtt, now, 12_000, false);
            proof.inner.on_acks_done(now + rtt, 0, false);
            now += rtt;
        }
        assert!(proof.inner.window() > proof.initial_window());
        proof.clone().inner.path_changed();
        proof.inner.on_sent(now, 1200);
        assert_eq!(proof.inner.window(), proof.initial_window());
        // Packets of the old path tell nothing about the new one.
        proof.inner.on_ack(now + rtt, now - rtt, 1200, false);
        proof.inner.on_acks_done(now + rtt, 0, false);
        assert_eq!(proof.inner.window(), proof.initial_window());
    }
}
