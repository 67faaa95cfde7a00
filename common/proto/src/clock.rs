//! Judges wall clocks: which times cannot be right, and which of two clocks is wrong.

use std::time::{Duration, UNIX_EPOCH};

/// 2026-11-01. This version did not exist before, so a clock that shows an earlier time is wrong. A
/// machine whose clock has no battery starts in 1970.
pub const RELEASED: i64 = 1_793_491_200;

/// The most seconds by which two clocks may differ without a message. A slow network alone can
/// cause a minute.
const ALIKE: i64 = 120;

/// Which of two clocks is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrongClock {
    /// This computer's.
    Here,
    /// The server's.
    There,
    /// One of them; the times alone do not say which.
    One,
}

/// Judges two clocks, in Unix seconds, that were read at the same moment. `None` if they agree.
pub fn compare(here: i64, there: i64) -> Option<WrongClock> {
    match (here < RELEASED, there < RELEASED) {
        (true, _) => Some(WrongClock::Here),
        (false, true) => Some(WrongClock::There),
        _ if (here - there).abs() <= ALIKE => None,
        _ => Some(WrongClock::One),
    }
}

/// The least difference of two clocks that a person is told, in seconds. Smaller ones are of no
/// consequence here, and the measurement itself may be off by the time that a packet takes.
const WORTH_TELLING: i64 = 5;

/// How far a peer's clock is ahead of this computer's, in milliseconds (negative: behind). `theirs`
/// is what it showed in a message that arrived at `here`, both in Unix milliseconds; `round_trip` is
/// that of the connection.
pub fn ahead(theirs: i64, here: i64, round_trip: Duration) -> i64 {
    let on_the_way = i64::try_from(round_trip.as_millis() / 2).unwrap_or(0);
    theirs.saturating_add(on_the_way).saturating_sub(here)
}

/// What a person is told of a server's clock that is `ahead` of this computer's by so many
/// milliseconds; `None` if that is too little to matter.
pub fn skew_text(ahead: i64) -> Option<String> {
    let seconds = ahead.unsigned_abs() / 1000;
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    (seconds >= WORTH_TELLING.unsigned_abs()).then(|| {
        let by = crate::human::time(Duration::from_secs(seconds));
        format!("the server's is {by} {direction} this computer's")
    })
}

/// A Unix time as text for people (RFC 3339).
pub fn shown(at: i64) -> String {
    let at = Duration::from_secs(u64::try_from(at).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + at).to_string()
}

/// Detects that the wall clock was set, or that the machine slept. After either, other certificates
/// may be valid.
#[derive(Debug, Clone, Copy)]
pub struct StepWatch {
    wall: Duration,
    steady: Duration,
}

impl StepWatch {
    /// More than a wall clock drifts between two calls while it is slewed.
    const STEP: Duration = Duration::from_secs(5);

    /// Begins to watch. `wall` is the time since the Unix epoch, `steady` the time of a monotonic
    /// clock.
    pub fn new(wall: Duration, steady: Duration) -> Self {
        Self { wall, steady }
    }

    /// Whether the wall clock was set since the last call.
    pub fn stepped(&mut self, wall: Duration, steady: Duration) -> bool {
        let expected = self.wall + steady.saturating_sub(self.steady);
        *self = Self { wall, steady };
        wall.abs_diff(expected) > Self::STEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_clocks_the_one_before_the_release_is_wrong() {
        let now = RELEASED + 86_400;
        for (here, there, wrong) in [
            (now, now + 60, None),
            (5, now, Some(WrongClock::Here)),
            (now, 5, Some(WrongClock::There)),
            (5, 5, Some(WrongClock::Here)),
            (now, now + 86_400, Some(WrongClock::One)),
            (now + 86_400, now, Some(WrongClock::One)),
        ] {
            assert_eq!(compare(here, there), wrong, "{here} {there}");
        }
        assert_eq!(shown(RELEASED), "2026-11-01T00:00:00Z");
        assert_eq!(shown(-5), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_skew_is_measured_at_the_middle_of_the_round_trip_and_told_if_it_matters() {
        let s = 1000;
        for (theirs, here, round_trip, ahead_by, text) in [
            (100 * s, 100 * s, 0, 0, None),
            (100 * s, 100 * s + 20, 40, 0, None),
            (104 * s, 100 * s, 0, 4 * s, None),
            (107 * s, 100 * s, 0, 7 * s, Some("the server's is 7s ahead of this computer's")),
            (
                100 * s,
                100 * s + 7_200_000,
                0,
                -7_200_000,
                Some("the server's is 2h behind this computer's"),
            ),
            (i64::MAX, -1, 40, i64::MAX, None),
        ] {
            let measured = ahead(theirs, here, Duration::from_millis(round_trip));
            assert_eq!(measured, ahead_by);
            if text.is_some() || ahead_by < 5 * s {
                assert_eq!(skew_text(measured).as_deref(), text, "{measured}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_is_a_step_and_one_that_runs_is_none() {
        let s = Duration::from_secs;
        let mut watch = StepWatch::new(s(100), s(1));
        for (wall, steady, stepped) in [
            (s(101), s(2), false),
            (s(165), s(65), false),
            (s(2_000_000_000), s(66), true),
            (s(2_000_000_001), s(67), false),
            (s(1_999_999_000), s(68), true),
            // The machine slept.
            (s(1_999_999_600), s(69), true),
        ] {
            assert_eq!(watch.stepped(wall, steady), stepped, "{wall:?}");
        }
    }
}
