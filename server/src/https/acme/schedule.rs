//! When a certificate is renewed, and when an order that has failed is tried again. Names no clock:
//! times are Unix seconds, `chance` is a random number from 0 to 1.

use serde::{Deserialize, Serialize};

/// How long to wait after the first, second … failure in a row, in seconds. Let's Encrypt allows
/// five failures for a name in an hour.
const PAUSES: [i64; 7] = [60, 300, 1800, 3600, 2 * 3600, 4 * 3600, 12 * 3600];
/// So many orders may fail in an hour, also if the owner asks for another one or the server starts
/// again.
const MOST_PER_HOUR: usize = 4;
const HOUR: i64 = 3600;
/// The longest wait that an authority is granted.
const LONGEST: i64 = 7 * 86_400;
/// The shortest and the longest time between two questions about the renewal (RFC 9773 section 4.3.3
/// asks for bounds).
const ASKED_AGAIN: (i64, i64) = (60, 86_400);

/// When a certificate is renewed: after two thirds of its life, or up to a thirtieth of its life
/// before that, so that servers that began together do not renew together.
pub(super) fn renew_at(begin: i64, end: i64, chance: f64) -> i64 {
    let life = (end - begin).max(0);
    begin + life * 2 / 3 - part(life / 30, chance)
}

/// When a certificate is renewed for which the authority suggests a window (RFC 9773 section 4.2):
/// at a random time in it, but not in the last tenth of the certificate's life.
pub(super) fn renew_in(window: (i64, i64), certificate: (i64, i64), chance: f64) -> i64 {
    let (begin, end) = certificate;
    let suggested = window.0 + part((window.1 - window.0).max(0), chance);
    suggested.min(end - (end - begin).max(0) / 10)
}

/// When to ask again for the window, if the authority wants to be left alone for `pause` seconds.
pub(super) fn ask_again_at(now: i64, pause: i64) -> i64 {
    now + pause.clamp(ASKED_AGAIN.0, ASKED_AGAIN.1)
}

/// Orders that have failed since the last one that succeeded. They are remembered over a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempts {
    /// How many in a row.
    count: usize,
    /// When the last ones were: at most [`MOST_PER_HOUR`].
    recent: Vec<i64>,
    /// Until when the authority wants no order (`Retry-After`).
    asked_until: i64,
    next: i64,
}

impl Attempts {
    /// An order has failed. `asked_until`: when the authority wants the next one.
    pub(super) fn fail(&mut self, now: i64, asked_until: Option<i64>, chance: f64) {
        let pause = PAUSES[self.count.min(PAUSES.len() - 1)];
        self.count += 1;
        if self.recent.len() == MOST_PER_HOUR {
            self.recent.remove(0);
        }
        self.recent.push(now);
        self.asked_until = asked_until.map_or(0, |until| until.min(now + LONGEST));
        self.next = (now + pause + part(pause / 4, chance)).max(self.earliest(now));
    }

    /// The owner, or a new start of the server, asks for an order as soon as one is allowed.
    pub(super) fn hurry(&mut self, now: i64) {
        // Times to come are from before the clock was set back.
        self.recent.retain(|at| *at <= now);
        if self.asked_until > now + LONGEST {
            self.asked_until = 0;
        }
        self.next = self.earliest(now);
    }

    /// The earliest time of the next order.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    fn earliest(&self, now: i64) -> i64 {
        let is_full = self.recent.len() == MOST_PER_HOUR;
        let free = self.recent.first().filter(|_| is_full).map_or(now, |first| first + HOUR);
        now.max(free).max(self.asked_until)
    }
}

fn part(of: i64, chance: f64) -> i64 {
    // Lengths of time are far below 2^52.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let part = (of as f64 * chance) as i64;
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life_or_a_little_earlier() {
        for (begin, end, chance, at) in [
            (0, 90 * DAY, 0.0, 60 * DAY),
            (0, 90 * DAY, 1.0, 57 * DAY),
            (100, 100 + 6 * DAY, 0.0, 100 + 4 * DAY),
            (0, 30, 1.0, 19),
            (50, 40, 0.5, 50),
        ] {
            assert_eq!(renew_at(begin, end, chance), at, "{begin} {end} {chance}");
        }
    }

    #[test]
    fn a_suggested_window_counts_but_not_when_it_is_too_late() {
        let certificate = (0, 90 * DAY);
        for (window, chance, at) in [
            ((50 * DAY, 52 * DAY), 0.0, 50 * DAY),
            ((50 * DAY, 52 * DAY), 1.0, 52 * DAY),
            // One in the past: at once.
            ((-5 * DAY, -4 * DAY), 0.5, -4 * DAY - DAY / 2),
            ((89 * DAY, 95 * DAY), 0.5, 81 * DAY),
            ((7, 3), 0.9, 7),
        ] {
            assert_eq!(renew_in(window, certificate, chance), at, "{window:?}");
        }
        for (pause, at) in [(0, 60), (7200, 7200), (i64::MAX, DAY)] {
            assert_eq!(ask_again_at(0, pause), at);
        }
    }

    #[test]
    fn failures_are_tried_again_less_and_less_often() {
        let mut attempts = Attempts::default();
        let mut now = 1_000_000;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            attempts.fail(now, None, 0.0);
            pauses.push(attempts.next() - now);
            now = attempts.next();
        }
        assert_eq!(pauses, [60, 300, 1800, 3600, 7200, 14_400, 43_200, 43_200, 43_200]);
        attempts.fail(now, None, 1.0);
        assert_eq!(attempts.next() - now, 43_200 + 10_800, "and never together with others");
    }

    #[test]
    fn neither_the_owner_nor_a_restart_makes_more_than_four_failures_in_an_hour() {
        let mut attempts = Attempts::default();
        let mut at = Vec::new();
        let mut now = 0;
        for _ in 0..9 {
            attempts.fail(now, None, 0.0);
            attempts.hurry(now + 1);
            now = attempts.next();
            at.push(now);
        }
        assert_eq!(at, [1, 2, 3, 3600, 3601, 3602, 3603, 7200, 7201]);
    }

    #[test]
    fn the_authority_is_left_alone_for_as_long_as_it_wants() {
        let mut attempts = Attempts::default();
        attempts.fail(0, Some(2 * HOUR), 0.0);
        assert_eq!(attempts.next(), 2 * HOUR);
        attempts.hurry(10);
        assert_eq!(attempts.next(), 2 * HOUR);
        attempts.fail(2 * HOUR, Some(i64::MAX), 0.0);
        assert_eq!(attempts.next(), 2 * HOUR + LONGEST);
        attempts.fail(0, None, 0.0);
        assert_eq!(attempts.next(), 1800, "it asks for nothing any more");
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stop_it() {
        let mut attempts = Attempts::default();
        for _ in 0..4 {
            attempts.fail(100 * 365 * DAY, Some(101 * 365 * DAY), 0.0);
        }
        attempts.hurry(DAY);
        assert_eq!(attempts.next(), DAY);
    }
}
