//! Makes the tokens of an answer, one at a time, at an even pace.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{Options, bytes::mix, counters::Running};

/// How many tokens an answer has if the request does not say.
const DEFAULT_TOKENS: u64 = 24;

/// The answer if the request has no seed: [`DEFAULT_TOKENS`] words.
const CONFESSION: &str = "This is a stand-in for Ollama, not a model: it sends fixed words at a steady pace, \
                          so that you can try the tunnel.";

/// The words of seeded answers; some have characters of several bytes, as real tokens do.
const WORDS: [&str; 32] = [
    "river", "stone", "amber", "cloud", "früh", "maple", "quiet", "ember", "north", "glass",
    "señal", "harbour", "violet", "copper", "winter", "野原", "signal", "meadow", "lantern",
    "silver", "дом", "orchard", "thunder", "pebble", "saffron", "willow", "🌊", "canyon", "velvet",
    "compass", "hollow", "tide",
];

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish {
    /// Chooses the text; without it the answer is always the same.
    pub(super) seed: Option<i64>,
    /// How many tokens; a negative number means endless, as in Ollama.
    pub(super) tokens: Option<i64>,
}

impl Wish {
    /// How many tokens the answer has.
    pub(super) fn count(&self) -> u64 {
        match self.tokens {
            Some(tokens) => u64::try_from(tokens).unwrap_or(u64::MAX),
            None => DEFAULT_TOKENS,
        }
    }

    /// Why the answer ends, in the words of Ollama and OpenAI.
    pub(super) fn end_reason(&self) -> &'static str {
        match self.tokens {
            Some(_) => "length",
            None => "stop",
        }
    }

    /// The token at `index`, which depends only on the seed and the index.
    fn token(&self, index: u64) -> String {
        let word = match self.seed {
            Some(seed) => pick(&WORDS, mix(mix(seed.cast_unsigned()) ^ index)),
            None => {
                let words: Vec<_> = CONFESSION.split(' ').collect();
                pick(&words, index)
            }
        };
        match index {
            0 => word.to_owned(),
            _ => format!(" {word}"),
        }
    }
}

fn pick<'a>(words: &[&'a str], number: u64) -> &'a str {
    let index =
        usize::try_from(number % words.len() as u64).expect("less than the length of a slice");
    words[index]
}

/// A running generation.
pub(super) struct Generation {
    wish: Wish,
    made: u64,
    pace: Pace,
    running: Option<Running>,
}

impl Generation {
    pub(super) fn new(wish: Wish, options: &Options, running: Running) -> Self {
        Self { wish, made: 0, pace: Pace::new(options), running: Some(running) }
    }

    /// The next token when it is due; `None` after the last, which completes the generation.
    pub(super) fn poll_token(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        if self.made == self.wish.count() {
            if let Some(running) = self.running.take() {
                running.complete();
            }
            return Poll::Ready(None);
        }
        ready!(self.pace.poll_tick(cx));
        let token = self.wish.token(self.made);
        self.made += 1;
        Poll::Ready(Some(token))
    }

    /// All tokens as one text.
    pub(super) async fn text(mut self) -> String {
        let mut text = String::new();
        while let Some(token) = poll_fn(|cx| self.poll_token(cx)).await {
            text.push_str(&token);
        }
        text
    }
}

/// Ticks first after the load time and then once per interval. A late tick does not delay the next
/// ones.
pub(super) struct Pace {
    next: Pin<Box<Sleep>>,
    interval: Duration,
}

impl Pace {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            next: Box::pin(sleep_until(Instant::now() + options.load_time)),
            interval: options.token_interval,
        }
    }

    pub(super) fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.next.as_mut().poll(cx));
        // A timer that is not reset stays ready, which an interval of zero needs.
        if !self.interval.is_zero() {
            let next = self.next.deadline() + self.interval;
            self.next.as_mut().reset(next);
        }
        Poll::Ready(())
    }
}
