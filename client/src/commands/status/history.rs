//! The last minute of a tunnel, as numbers and bars. Names no clock.

use std::{collections::VecDeque, time::Duration};

/// How many samples are kept and drawn: a minute, with one each second.
const KEPT: usize = 60;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The counters of a tunnel at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// The time since any moment that is the same for all samples.
    pub(super) at: Duration,
    /// The round-trip time in milliseconds, if the tunnel is up.
    pub(super) rtt_ms: Option<f64>,
    /// Bytes that applications have received so far.
    pub(super) received: u64,
    /// Bytes that applications have sent so far.
    pub(super) sent: u64,
}

/// The latest samples.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Sample>);

impl History {
    /// Adds the newest sample. If a counter has become smaller, it belongs to another process, and
    /// the earlier samples are dropped.
    pub(super) fn add(&mut self, sample: Sample) {
        let restarted = self
            .0
            .back()
            .is_some_and(|last| sample.received < last.received || sample.sent < last.sent);
        if restarted {
            self.0.clear();
        }
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The round-trip times in milliseconds, oldest first; 0 while there was no tunnel.
    pub(super) fn round_trips(&self) -> Vec<f64> {
        self.0.iter().skip(1).map(|sample| sample.rtt_ms.unwrap_or_default()).collect()
    }

    /// The rate of received bytes in each step, in bytes per second.
    pub(super) fn received(&self) -> Vec<f64> {
        self.rates(|sample| sample.received)
    }

    /// The rate of sent bytes in each step, in bytes per second.
    pub(super) fn sent(&self) -> Vec<f64> {
        self.rates(|sample| sample.sent)
    }

    fn rates(&self, of: impl Fn(&Sample) -> u64) -> Vec<f64> {
        let steps = self.0.iter().zip(self.0.iter().skip(1));
        steps
            .map(|(before, after)| {
                let passed = after.at.saturating_sub(before.at).as_secs_f64().max(1e-3);
                (of(after) - of(before)) as f64 / passed
            })
            .collect()
    }
}

/// A bar for each value, in proportion to the highest value.
pub(super) fn bars(values: &[f64]) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| {
        let height = if most > 0.0 { value / most * (BARS.len() - 1) as f64 } else { 0.0 };
        BARS[height.round() as usize]
    };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, received: u64) -> Sample {
        Sample { at: Duration::from_secs(at), rtt_ms: Some(at as f64), received, sent: 0 }
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let mut history = History::default();
        assert!(history.received().is_empty());
        for (at, received) in [(0, 100), (1, 300), (3, 700)] {
            history.add(sample(at, received));
        }
        assert_eq!(history.received(), [200.0, 200.0]);
        assert_eq!(history.sent(), [0.0, 0.0]);
        assert_eq!(history.round_trips(), [1.0, 3.0]);
    }

    #[test]
    fn a_tunnel_that_has_started_again_begins_anew() {
        let mut history = History::default();
        history.add(sample(0, 500));
        history.add(sample(1, 10));
        history.add(sample(2, 30));
        assert_eq!(history.received(), [20.0]);
    }

    #[test]
    fn no_more_than_a_minute_is_kept() {
        let mut history = History::default();
        (0..1000).for_each(|at| history.add(sample(at, at)));
        assert_eq!(history.received().len(), KEPT);
    }

    #[test]
    fn bars_are_as_high_as_their_values() {
        assert_eq!(bars(&[]), "");
        assert_eq!(bars(&[0.0, 0.0]), "▁▁");
        assert_eq!(bars(&[0.0, 7.0, 3.5]), "▁█▅");
    }
}
