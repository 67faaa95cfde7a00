//! What a request costs in tokens: the counts that its answer reports, and an estimate where it
//! reports none. Pure: the facts come from the gate.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use proto::ollama::route::RouteClass;

use crate::record::{End, RequestRecord, TokenFacts};

/// How many bytes of an answer count as one token if neither its text nor its counts can be read.
const BYTES_PER_TOKEN: u64 = 128;

/// The tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    /// Tokens of the prompt; `None` if nothing is known.
    pub read: Option<u64>,
    /// Tokens of the answer.
    pub written: Option<u64>,
    /// Whether one of the two is an estimate.
    pub is_estimated: bool,
}

impl Charge {
    /// The cost of a request that has ended, if the model generates `speed` tokens per second.
    pub(crate) fn of(record: &RequestRecord, speed: f64) -> Self {
        let facts = &record.tokens;
        let reported = Self { read: facts.told_in, written: facts.told_out, is_estimated: false };
        // A refusal's status is the gate's own: the service may have worked on the request before.
        let is_answered = matches!(record.end, End::Refused(_))
            || record.status.is_none_or(|status| (200..300).contains(&status));
        let Some(at_work) = facts.at_work.filter(|_| record.route.needs_gpu() && is_answered)
        else {
            return reported;
        };
        if is_told(record) {
            return reported;
        }
        let (written, is_guess) = written(record, at_work.as_secs_f64() * speed);
        Self {
            read: Some(facts.told_in.unwrap_or(facts.prompt)),
            written: (record.route == RouteClass::Generate).then_some(written),
            is_estimated: facts.told_in.is_none() || is_guess,
        }
    }

    /// Tokens of the prompt and of the answer together.
    pub(crate) fn sum(&self) -> u64 {
        self.read.unwrap_or(0).saturating_add(self.written.unwrap_or(0))
    }
}

/// Whether the answer reports all its counts. Ollama's own answers always report them at their end,
/// and leave out zeros: an answer to a request that only loads a model has none.
fn is_told(record: &RequestRecord) -> bool {
    let TokenFacts { told_in, told_out, pieces, .. } = record.tokens;
    let is_own = record.path.starts_with("/api/");
    record.end == End::Done
        && (told_out.is_some() || (pieces == 0 && (told_in.is_some() || is_own)))
}

/// Tokens of an answer, and whether they are an estimate.
fn written(record: &RequestRecord, by_time: f64) -> (u64, bool) {
    let facts = &record.tokens;
    // Counts at the beginning of an answer are incomplete if the client left.
    let seen = facts.told_out.unwrap_or(0).max(facts.pieces);
    if facts.pieces > 0 {
        return (seen, false);
    }
    let by_bytes = if record.status.is_some() { record.bytes_out / BYTES_PER_TOKEN } else { 0 };
    // Of an answer that comes in one piece nothing is seen while the model works.
    let by_time = if facts.is_stream { 0 } else { by_time as u64 };
    let guess = by_bytes.max(by_time);
    (seen.max(guess), guess > seen)
}

/// How fast answers are generated: tokens per second, a moving average.
#[derive(Debug)]
pub(crate) struct Speed(AtomicU64);

impl Default for Speed {
    /// The speed of a medium model on a medium GPU, before any answer was seen.
    fn default() -> Self {
        Self(AtomicU64::new(20f64.to_bits()))
    }
}

impl Speed {
    /// The weight of the newest answer.
    const SHARE: f64 = 0.2;
    /// Answers with fewer tokens, or that took less time in seconds, are not counted. An answer
    /// that comes out of a buffer looks thousands of times as fast as the model, and would make all
    /// estimates too high.
    const FEWEST: u64 = 8;
    const SHORTEST: f64 = 0.5;
    /// The bounds of a plausible speed, in tokens per second.
    const SLOWEST: f64 = 1.0;
    const FASTEST: f64 = 1000.0;

    pub(crate) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    /// How many tokens are generated in `time`.
    pub(crate) fn tokens_in(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.get()) as u64
    }

    /// Learns from a stream that has ended.
    pub(crate) fn learn(&self, record: &RequestRecord) {
        let (Some(first), pieces) = (record.first_byte, record.tokens.pieces) else { return };
        let seconds = record.total.saturating_sub(first).as_secs_f64();
        if pieces >= Self::FEWEST && seconds >= Self::SHORTEST {
            let now = (pieces as f64 / seconds).clamp(Self::SLOWEST, Self::FASTEST);
            let speed = self.get() * (1.0 - Self::SHARE) + now * Self::SHARE;
            self.0.store(speed.to_bits(), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::entry::tests::record, record::Refusal};

    /// Tokens per second in these tests.
    const SPEED: f64 = 50.0;

    struct Case {
        why: &'static str,
        end: End,
        status: Option<u16>,
        facts: TokenFacts,
        /// Tokens read, tokens written, whether that is an estimate.
        charge: (Option<u64>, Option<u64>, bool),
    }

    #[test]
    fn tokens_that_an_answer_does_not_report_are_counted_or_estimated() {
        let worked = TokenFacts {
            prompt: 30,
            is_stream: true,
            at_work: Some(Duration::from_secs(2)),
            ..TokenFacts::default()
        };
        let reported = TokenFacts { told_in: Some(7), told_out: Some(100), pieces: 98, ..worked };
        let pieces = TokenFacts { pieces: 100, ..worked };
        let whole = TokenFacts { is_stream: false, ..worked };
        for Case { why, end, status, facts, charge } in [
            Case {
                why: "a whole answer says it",
                end: End::Done,
                status: Some(200),
                facts: reported,
                charge: (Some(7), Some(100), false),
            },
            Case {
                why: "a stream of /v1 that was not asked for its usage",
                end: End::Done,
                status: Some(200),
                facts: pieces,
                charge: (Some(30), Some(100), true),
            },
            Case {
                why: "a stream that was left",
                end: End::Cancelled,
                status: Some(200),
                facts: pieces,
                charge: (Some(30), Some(100), true),
            },
            Case {
                why: "what Anthropic's streams say at their beginning is not all",
                end: End::Cancelled,
                status: Some(200),
                facts: TokenFacts { told_in: Some(7), told_out: Some(1), ..pieces },
                charge: (Some(7), Some(100), false),
            },
            Case {
                why: "left while the prompt was read",
                end: End::Cancelled,
                status: None,
                facts: worked,
                charge: (Some(30), Some(0), true),
            },
            Case {
                why: "an answer in one piece that was not waited for",
                end: End::Cancelled,
                status: None,
                facts: whole,
                charge: (Some(30), Some(100), true),
            },
            Case {
                why: "the network was lost meanwhile",
                end: End::Cut,
                status: None,
                facts: whole,
                charge: (Some(30), Some(100), true),
            },
            Case {
                why: "left before it was the service's",
                end: End::Cancelled,
                status: None,
                facts: TokenFacts { at_work: None, ..whole },
                charge: (None, None, false),
            },
            Case {
                why: "ended at a limit while it was at work",
                end: End::Refused(Refusal::Limit("tokens_per_day")),
                status: Some(429),
                facts: pieces,
                charge: (Some(30), Some(100), true),
            },
            Case {
                why: "an error of the service costs nothing",
                end: End::Done,
                status: Some(404),
                facts: whole,
                charge: (None, None, false),
            },
            Case {
                why: "loading a model costs nothing",
                end: End::Done,
                status: Some(200),
                facts: TokenFacts { prompt: 2, ..worked },
                charge: (None, None, false),
            },
        ] {
            let mut record = record(end);
            (record.status, record.tokens, record.bytes_out) = (status, facts, 0);
            let Charge { read, written, is_estimated } = Charge::of(&record, SPEED);
            assert_eq!((read, written, is_estimated), charge, "{why}");
        }
    }

    #[test]
    fn only_routes_that_use_the_model_are_charged() {
        let mut left = record(End::Cancelled);
        left.tokens = TokenFacts {
            prompt: 5,
            at_work: Some(Duration::from_secs(9)),
            ..TokenFacts::default()
        };
        left.status = None;
        left.route = RouteClass::Models;
        assert_eq!(Charge::of(&left, SPEED), Charge::default());
        left.route = RouteClass::Embed;
        assert_eq!(
            Charge::of(&left, SPEED),
            Charge { read: Some(5), written: None, is_estimated: true }
        );
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_charged_by_its_bytes() {
        let mut odd = record(End::Done);
        odd.tokens = TokenFacts { at_work: Some(Duration::ZERO), ..TokenFacts::default() };
        odd.path = "/v1/audio/transcriptions".into();
        odd.bytes_out = 100 * BYTES_PER_TOKEN;
        let charge = Charge::of(&odd, SPEED);
        assert_eq!((charge.sum(), charge.is_estimated), (100, true));
    }

    #[test]
    fn the_speed_follows_the_answers_that_were_seen() {
        let speed = Speed::default();
        let mut seen = record(End::Done);
        seen.tokens.pieces = 100;
        (seen.first_byte, seen.total) = (Some(Duration::from_secs(1)), Duration::from_secs(2));
        for _ in 0..50 {
            speed.learn(&seen);
        }
        assert!((99.0..101.0).contains(&speed.get()), "{speed:?}");
        seen.tokens.pieces = 1;
        speed.learn(&seen);
        assert!(speed.get() > 99.0, "one piece says little");
    }

    #[test]
    fn no_device_can_distort_the_estimates_for_others() {
        let speed = Speed::default();
        let mut seen = record(End::Done);
        let mut learn = |pieces, seconds| {
            seen.tokens.pieces = pieces;
            seen.first_byte = Some(Duration::ZERO);
            seen.total = Duration::from_secs_f64(seconds);
            (0..1000).for_each(|_| speed.learn(&seen));
            speed.get()
        };
        assert_eq!(learn(1000, 1e-5), 20.0, "it came out of a buffer");
        assert!(learn(u64::MAX, 1.0) <= Speed::FASTEST, "pieces that are no tokens");
        assert!(learn(8, 1e9) >= Speed::SLOWEST, "it was read slowly");
    }
}
