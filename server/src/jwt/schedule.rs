//! When the keys of a provider are fetched. The times are those of a clock that the caller brings.

use std::time::Duration;

/// How old keys may get. A key that the provider withdraws is out of use after this time.
const FRESH: Duration = Duration::from_secs(600);
/// After a failure it is tried again so soon.
const RETRY: Duration = Duration::from_secs(15);
/// How often keys are fetched because of a token, whatever tokens come.
const FOR_TOKENS: Duration = Duration::from_secs(5);

/// When keys were fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Schedule {
    tried: Option<Duration>,
    fetched: Option<Duration>,
}

impl Schedule {
    /// How long it is until the keys are to be fetched again.
    pub(super) fn wait(self, now: Duration) -> Duration {
        let due = match (self.tried, self.fetched) {
            (None, _) => return Duration::ZERO,
            (Some(tried), Some(fetched)) if fetched >= tried => fetched + FRESH,
            (Some(tried), _) => tried + RETRY,
        };
        due.saturating_sub(now)
    }

    /// How long it is until keys may be fetched because a token names an unknown one.
    pub(super) fn wait_for_a_token(self, now: Duration) -> Duration {
        self.tried.map_or(Duration::ZERO, |tried| (tried + FOR_TOKENS).saturating_sub(now))
    }

    /// Whether the last try has succeeded.
    pub(super) fn is_good(self) -> bool {
        self.fetched.is_some() && self.fetched >= self.tried
    }

    /// Whether a try has begun since `time`.
    pub(super) fn has_tried_since(self, time: Duration) -> bool {
        self.tried.is_some_and(|tried| tried >= time)
    }

    pub(super) fn tries(&mut self, now: Duration) {
        self.tried = Some(now);
    }

    pub(super) fn succeeds(&mut self, now: Duration) {
        self.fetched = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn keys_are_fetched_every_ten_minutes_and_sooner_after_a_failure() {
        let mut schedule = Schedule::default();
        assert_eq!((schedule.wait(at(7)), schedule.is_good()), (at(0), false));
        schedule.tries(at(7));
        assert_eq!((schedule.wait(at(8)), schedule.is_good()), (at(14), false));
        schedule.succeeds(at(8));
        assert_eq!((schedule.wait(at(8)), schedule.is_good()), (at(600), true));
        schedule.tries(at(608));
        assert_eq!((schedule.wait(at(608)), schedule.is_good()), (at(15), false));
        assert_eq!(schedule.wait(at(9999)), at(0));
    }

    #[test]
    fn tokens_with_unknown_keys_cause_one_fetch_in_five_seconds() {
        let mut schedule = Schedule::default();
        let fetches = (0..60).filter(|second| {
            let may = schedule.wait_for_a_token(at(*second)).is_zero();
            if may {
                schedule.tries(at(*second));
            }
            may
        });
        assert_eq!(fetches.count(), 12);
        assert_eq!(schedule.wait_for_a_token(at(57)), at(3));
        assert!(schedule.has_tried_since(at(55)) && !schedule.has_tried_since(at(56)));
    }
}
