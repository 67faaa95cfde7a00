//! Decides when the next attempt to connect is made. It names no clock: it takes what happened, and
//! returns pauses.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(15);
/// The pauses after a refusal: the first, how each is longer than the one before, and the longest.
struct Growing {
    first: Duration,
    times: u32,
    longest: Duration,
}

/// If two machines have the same certificate, each ends the other's session, so they must not
/// reconnect quickly.
const CONFLICT: Growing =
    Growing { first: Duration::from_secs(60), times: 2, longest: Duration::from_secs(3600) };
/// A device that was revoked by mistake is restored soon after, and its user waits for it. The
/// server drops the packets of one that is still revoked.
const REVOCATION: Growing =
    Growing { first: Duration::from_secs(5), times: 3, longest: Duration::from_secs(60) };
/// After either, if a request waits. The longest is shorter than the default of `--hold`.
const WAKE: Growing =
    Growing { first: Duration::from_secs(5), times: 2, longest: Duration::from_secs(20) };

impl Growing {
    /// The pause after so many others.
    fn pause(&self, earlier: u32) -> Duration {
        self.first.saturating_mul(self.times.saturating_pow(earlier)).min(self.longest)
    }
}

/// After a session of this length, earlier refusals are forgotten.
const LASTED: Duration = Duration::from_secs(60);

/// How an attempt or its session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttemptEnd {
    /// How long the session lasted, if there was one.
    pub(crate) session: Option<Duration>,
    /// Whether the server has refused, and how.
    pub(crate) refused: Option<Refusal>,
}

/// Why it is useless to try again at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The device is revoked, until its owner restores it; or its sign-in has ended, until its person
    /// signs in again.
    Revoked,
    /// Another machine uses its certificate, or the tunnel leads back to this one.
    Conflict,
}

/// How long to wait before the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    /// The pause if a request waits.
    pub(crate) wanted: Duration,
    /// The pause if no request waits.
    pub(crate) unwanted: Duration,
}

/// The state of the pauses.
#[derive(Debug)]
pub(crate) struct Backoff {
    pause: Duration,
    /// How many refusals there were.
    refusals: u32,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { pause: FIRST, refusals: 0 }
    }

    /// The pause after this end.
    pub(crate) fn after(&mut self, ended: AttemptEnd) -> Pause {
        if ended.session.is_some() {
            self.pause = FIRST;
        }
        if ended.session.is_some_and(|time| time >= LASTED) {
            self.refusals = 0;
        }
        if let Some(refusal) = ended.refused {
            let growing = match refusal {
                Refusal::Revoked => REVOCATION,
                Refusal::Conflict => CONFLICT,
            };
            let earlier = self.refusals;
            self.refusals = earlier.saturating_add(1);
            Pause { wanted: WAKE.pause(earlier), unwanted: growing.pause(earlier) }
        } else {
            let pause = Pause { wanted: FIRST, unwanted: FIRST + self.pause };
            self.pause = (self.pause * 2).min(LONGEST);
            pause
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused(session: Option<u32>) -> AttemptEnd {
        AttemptEnd {
            session: session.map(|seconds| SECOND * seconds),
            refused: Some(Refusal::Conflict),
        }
    }

    fn lost(session: Option<u32>) -> AttemptEnd {
        AttemptEnd { refused: None, ..refused(session) }
    }

    /// The pauses after these ends, in seconds, as (a request waits, no request waits).
    fn pauses(ends: &[AttemptEnd]) -> Vec<(f64, f64)> {
        let mut backoff = Backoff::new();
        let pauses = ends.iter().map(|end| backoff.after(*end));
        pauses.map(|p| (p.wanted.as_secs_f64(), p.unwanted.as_secs_f64())).collect()
    }

    #[test]
    fn after_a_refusal_a_waiting_request_waits_for_seconds_at_most_and_nobody_else_hurries() {
        let pauses = pauses(&[refused(None); 9]);
        let wanted: Vec<_> = pauses.iter().map(|pause| pause.0).collect();
        assert_eq!(wanted, [5.0, 10.0, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0]);
        let unwanted: Vec<_> = pauses.iter().map(|pause| pause.1).collect();
        assert_eq!(unwanted, [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0, 3600.0]);
    }

    #[test]
    fn a_revoked_device_tries_again_after_seconds_and_then_every_minute() {
        let revoked = AttemptEnd { session: None, refused: Some(Refusal::Revoked) };
        let pauses = pauses(&[revoked; 40]);
        assert_eq!(pauses[..4], [(5.0, 5.0), (10.0, 15.0), (20.0, 45.0), (20.0, 60.0)]);
        assert!(pauses[4..].iter().all(|pause| *pause == (20.0, 60.0)));
    }

    #[test]
    fn a_session_that_lasted_makes_refusals_forgotten_and_a_short_one_does_not() {
        let short = [refused(Some(59)); 3];
        assert_eq!(pauses(&short), [(5.0, 60.0), (10.0, 120.0), (20.0, 240.0)]);
        let ends = [refused(None), refused(None), refused(Some(60)), refused(None)];
        assert_eq!(pauses(&ends), [(5.0, 60.0), (10.0, 120.0), (5.0, 60.0), (10.0, 120.0)]);
        let ends = [refused(None), lost(Some(3600)), refused(None)];
        assert_eq!(pauses(&ends)[2], (5.0, 60.0));
    }

    #[test]
    fn after_silence_the_pause_grows_to_a_bound_and_any_session_makes_it_short_again() {
        let ends = [&[lost(None); 9][..], &[lost(Some(1))]].concat();
        let unwanted: Vec<_> = pauses(&ends).iter().map(|pause| pause.1).collect();
        assert_eq!(unwanted, [0.4, 0.6, 1.0, 1.8, 3.4, 6.6, 13.0, 15.2, 15.2, 0.4]);
        assert!(pauses(&ends).iter().all(|pause| pause.0 == 0.2));
    }
}
