//! What a request costs of the day's tokens: what its answer says of them, and an estimate where
//! that says nothing. Pure: the facts come from the gate.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use proto::ollama::route::RouteClass;

use crate::record::{End, RequestRecord, TokenFacts};

/// Bytes of an answer that are one token if neither its text nor its counts can be read.
const BYTES_PER_TOKEN: u64 = 128;

/// The tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charge {
    /// Those of the prompt; `None` if nothing is known of any.
    pub read: Option<u64>,
    /// Those of the answer.
    pub written: Option<u64>,
    /// Whether one of the two is an estimate.
    pub is_estimated: bool,
}

impl Charge {
    /// What a request costs that has ended, where the model writes `speed` tokens per second.
    pub fn of(record: &RequestRecord, speed: f64) -> Self {
        let facts = &record.tokens;
        let told = Self { read: facts.told_in, written: facts.told_out, is_estimated: false };
        // The status of a refusal is ours: the service may have been at work before.
        let is_answered = matches!(record.end, End::Refused(_))
            || record.status.is_none_or(|status| (200..300).contains(&status));
        let Some(at_work) = facts.at_work.filter(|_| record.route.needs_gpu() && is_answered)
        else {
            return told;
        };
        if is_told(record) {
            return told;
        }
        let (written, is_guess) = written(record, at_work.as_secs_f64() * speed);
        Self {
            read: Some(facts.told_in.unwrap_or(facts.prompt)),
            written: (record.route == RouteClass::Generate).then_some(written),
            is_estimated: facts.told_in.is_none() || is_guess,
        }
    }

    /// Both together.
    pub fn sum(&self) -> u64 {
        self.read.unwrap_or(0).saturating_add(self.written.unwrap_or(0))
    }
}

/// Whether the answer says all its counts. Ollama's own always do at their end, and leave out what
/// is nothing: an answer to a request that only loads a model has none.
fn is_told(record: &RequestRecord) -> bool {
    let TokenFacts { told_in, told_out, pieces, .. } = record.tokens;
    let is_own = record.path.starts_with("/api/");
    record.end == End::Done
        && (told_out.is_some() || (pieces == 0 && (told_in.is_some() || is_own)))
}

/// Tokens of an answer, and whether they are an estimate.
fn written(record: &RequestRecord, by_time: f64) -> (u64, bool) {
    let facts = &record.tokens;
    // What an answer says at its beginning is not all, if it was left.
    let seen = facts.told_out.unwrap_or(0).max(facts.pieces);
    if facts.pieces > 0 {
        return (seen, false);
    }
    let by_bytes = if record.status.is_some() { record.bytes_out / BYTES_PER_TOKEN } else { 0 };
    // Nothing is seen of an answer that comes in one piece, while the model works for it.
    let by_time = if facts.is_stream { 0 } else { by_time as u64 };
    let guess = by_bytes.max(by_time);
    (seen.max(guess), guess > seen)
}

/// How fast answers come: tokens per second, a moving average.
#[derive(Debug)]
pub struct Speed(AtomicU64);

impl Default for Speed {
    /// What a middling model does on a middling GPU, before one has been seen.
    fn default() -> Self {
        Self(AtomicU64::new(20f64.to_bits()))
    }
}

impl Speed {
    /// Of the newest answer this much is taken.
    const SHARE: f64 = 0.2;
    /// Answers of fewer tokens, or of less time in seconds, say little: one that comes out of a buffer
    /// looks thousands of times as fast as the model is, and all other devices would pay for that.
    const FEWEST: u64 = 8;
    const SHORTEST: f64 = 0.5;
    /// The bounds of what is believed, in tokens per second.
    const SLOWEST: f64 = 1.0;
    const FASTEST: f64 = 1000.0;

    /// Tokens per second.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    /// Tokens that come in so much time.
    pub fn tokens_in(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.get()) as u64
    }

    /// Takes a stream into account that has ended.
    pub fn learn(&self, record: &RequestRecord) {
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
        /// Read, written, whether that is an estimate.
        charge: (Option<u64>, Option<u64>, bool),
    }

    #[test]
    fn what_an_answer_does_not_say_is_counted_or_estimated() {
        let worked = TokenFacts {
            prompt: 30,
            is_stream: true,
            at_work: Some(Duration::from_secs(2)),
            ..TokenFacts::default()
        };
        let told = TokenFacts { told_in: Some(7), told_out: Some(100), pieces: 98, ..worked };
        let pieces = TokenFacts { pieces: 100, ..worked };
        let whole = TokenFacts { is_stream: false, ..worked };
        for Case { why, end, status, facts, charge } in [
            Case {
                why: "a whole answer says it",
                end: End::Done,
                status: Some(200),
                facts: told,
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
    fn only_work_of_the_model_is_charged() {
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
    fn the_speed_follows_what_was_seen() {
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
    fn no_device_makes_the_answers_of_others_dear_or_free() {
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
