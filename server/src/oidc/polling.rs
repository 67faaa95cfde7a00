//! When the provider is asked whether somebody has signed in (RFC 8628 sections 3.4 and 3.5). The
//! times are those of a clock that the caller brings.

use std::time::Duration;

/// By how much `slow_down` lengthens the pause.
const SLOWER: Duration = Duration::from_secs(5);
/// The longest pause while the provider does not answer.
const LONGEST: Duration = Duration::from_secs(60);

/// The pauses between the questions of one sign-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Polling {
    interval: Duration,
    failures: u32,
    ends: Duration,
}

impl Polling {
    /// For a code that is valid for `expires_in` from `now` on.
    pub(super) fn new(interval: Duration, expires_in: Duration, now: Duration) -> Self {
        Self { interval, failures: 0, ends: now + expires_in }
    }

    /// The pause before the next question; `None` if the code has ended before.
    pub(super) fn pause(self, now: Duration) -> Option<Duration> {
        let longer = self.interval.saturating_mul(1 << self.failures.min(6));
        let pause = if self.failures == 0 { self.interval } else { longer.min(LONGEST) };
        (now + pause <= self.ends).then_some(pause)
    }

    /// Nobody has signed in yet.
    pub(super) fn pending(&mut self) {
        self.failures = 0;
    }

    pub(super) fn slow_down(&mut self) {
        self.failures = 0;
        self.interval += SLOWER;
    }

    /// The provider has not answered.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_pause_grows_as_the_provider_asks_and_while_it_is_down() {
        let mut polling = Polling::new(at(5), at(600), at(100));
        assert_eq!(polling.pause(at(100)), Some(at(5)));
        polling.pending();
        assert_eq!(polling.pause(at(105)), Some(at(5)));
        polling.slow_down();
        assert_eq!(polling.pause(at(110)), Some(at(10)));
        let pauses = [20, 40, 60, 60].map(|seconds| {
            polling.failed();
            (polling.pause(at(110)), Some(at(seconds)))
        });
        assert!(pauses.iter().all(|(pause, expected)| pause == expected), "{pauses:?}");
        polling.pending();
        assert_eq!(polling.pause(at(110)), Some(at(10)), "it is back");
        for _ in 0..100 {
            polling.failed();
        }
        assert_eq!(polling.pause(at(110)), Some(LONGEST));
    }

    #[test]
    fn it_ends_with_the_code() {
        let polling = Polling::new(at(5), at(12), at(0));
        assert_eq!(polling.pause(at(7)), Some(at(5)));
        assert_eq!(polling.pause(at(8)), None);
    }
}
