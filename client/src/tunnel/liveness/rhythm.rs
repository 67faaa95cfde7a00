//! How regularly datagrams have arrived of late, and whether one is missing. It names no clock and
//! no socket.

use std::time::Duration;

/// So many pauses are remembered.
const REMEMBERED: usize = 16;
/// So many arrivals make a rhythm.
const FEWEST: usize = 4;
/// A silence that is longer than the longest pause by this much is not one more pause.
const LONGER: Duration = Duration::from_millis(15);

/// The pauses between arrivals, as looks at a counter show them.
#[derive(Debug, Default)]
pub(super) struct Rhythm {
    pauses: [Duration; REMEMBERED],
    /// How many datagrams, or groups of them, have arrived. The pause before the first one is of
    /// another time.
    arrivals: usize,
    /// Whether a datagram has been missed since the last arrival.
    missed: bool,
}

impl Rhythm {
    /// Datagrams have arrived, the first after `pause`.
    pub(super) fn arrived(&mut self, pause: Duration) {
        if self.arrivals > 0 {
            self.pauses[self.arrivals % REMEMBERED] = pause;
        }
        self.arrivals += 1;
        self.missed = false;
    }

    /// Nothing has arrived for `silence`. Returns whether that is longer than any pause lately: once
    /// until something arrives.
    pub(super) fn misses(&mut self, silence: Duration) -> bool {
        let longest = self.pauses.iter().max().copied().unwrap_or_default();
        let misses = !self.missed && self.arrivals >= FEWEST && silence >= longest + LONGER;
        self.missed |= misses;
        misses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 30 ms for so many milliseconds; something arrives when `arrives` says so. Returns
    /// when a datagram was missed, in milliseconds.
    fn missed(end: u64, arrives: impl Fn(u64) -> bool) -> Vec<u64> {
        let (mut rhythm, mut last, mut missed) = (Rhythm::default(), 0, Vec::new());
        for at in (30..=end).step_by(30) {
            let silence = Duration::from_millis(at - last);
            if (at - 30..at).any(&arrives) {
                rhythm.arrived(silence);
                last = at;
            } else if rhythm.misses(silence) {
                missed.push(at);
            }
        }
        missed
    }

    #[test]
    fn a_silence_is_noticed_in_the_rhythm_that_was() {
        for (every, until, most) in [
            // A datagram every so many milliseconds, until then; how late a miss is noticed at most.
            (20, 3_000, Some(60)),
            (50, 3_000, Some(90)),
            (100, 3_000, Some(150)),
            (200, 4_000, Some(270)),
            // Too little has arrived: there is no rhythm.
            (500, 1_500, None),
            (20, 80, None),
        ] {
            let missed = missed(6_000, |at| at % every == 0 && at < until);
            let late: Vec<_> = missed.iter().map(|at| at - (until - every)).collect();
            match most {
                None => assert_eq!(late, [0; 0], "every {every} ms until {until}"),
                Some(most) => assert!(
                    late.len() == 1 && (every..=every + most).contains(&late[0]),
                    "every {every} ms: {late:?}"
                ),
            }
        }
    }

    #[test]
    fn pauses_that_return_belong_to_the_rhythm() {
        let pausing = |at: u64| at.is_multiple_of(20) && at % 300 < 200;
        assert_eq!(missed(6_000, pausing).len(), 1, "the first is new");
    }

    #[test]
    fn a_silence_is_missed_once_until_something_arrives() {
        let twice = |at: u64| at.is_multiple_of(20) && !(1_000..5_000).contains(&at) && at < 5_300;
        assert_eq!(missed(8_000, twice).len(), 1, "the long silence is remembered");
        let later = |at: u64| at.is_multiple_of(20) && !(1_000..5_000).contains(&at) && at < 6_000;
        assert_eq!(missed(8_000, later).len(), 2, "and then forgotten");
    }
}
