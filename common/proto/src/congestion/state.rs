//! The state of the controller, for a trace.

use std::time::Duration;

use super::{Phase, Shallow, rivals::Rivals};

/// The state of a controller, for a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ControllerState {
    /// Its phase.
    pub phase: &'static str,
    /// Bytes that may be in flight.
    pub window: u64,
    /// The highest delivery rate of the last rounds, in bytes per second.
    pub rate: u64,
    /// The path's own round trip.
    pub base: Duration,
    /// How much longer a round trip takes now.
    pub queue: Duration,
    /// How long the queue may be.
    pub target: Duration,
    /// The share of packets that the path loses without congestion.
    pub loss: f64,
    /// Our share of the queue, if others fill it.
    pub share: Option<f64>,
    /// Round trips so far.
    pub round: u64,
}

impl Shallow {
    /// Its state.
    pub fn state(&self) -> ControllerState {
        ControllerState {
            phase: match (self.phase, &self.rivals) {
                (Phase::SlowStart, _) => "slow start",
                (Phase::Dip(_), _) => "dip",
                (Phase::Steady, None) => "steady",
                (Phase::Steady, Some(_)) => "beside others",
            },
            window: self.window(),
            rate: self.rate.best() as u64,
            base: Duration::from_secs_f64(self.path.base()),
            queue: Duration::from_secs_f64(self.path.queue()),
            target: Duration::from_secs_f64(self.target()),
            loss: self.losses.own(),
            share: self.rivals.as_ref().map(Rivals::share),
            round: self.rate.round(),
        }
    }
}
