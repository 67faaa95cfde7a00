//! Whether an answer is under way on a connection, as far as its bytes tell: so that a program that is told to stop waits for
//! answers, and not for connections that an application only keeps for later.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The end of a chunked body without trailers (RFC 9112 section 7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// An answer that does not say where it ends has ended when nothing more has come for so long.
const QUIET: Duration = Duration::from_secs(5);

const NOTHING: u8 = 0;
const ASKED: u8 = 1;
const ANSWERING: u8 = 2;
const COMPLETE: u8 = 3;

/// What has passed on one connection, in brief.
#[derive(Debug)]
pub struct Exchange {
    began: Instant,
    state: AtomicU8,
    /// Of the answer's last bytes, in milliseconds after the beginning.
    answered_at: AtomicU64,
}

impl Exchange {
    /// A connection on which nothing has passed.
    pub fn new(now: Instant) -> Self {
        Self { began: now, state: AtomicU8::new(NOTHING), answered_at: AtomicU64::new(0) }
    }

    /// The application has sent something.
    pub fn asked(&self) {
        self.state.store(ASKED, Relaxed);
    }

    /// The service has sent something that ends with these bytes.
    pub fn answered(&self, bytes: &[u8], now: Instant) {
        self.state.store(if bytes.ends_with(LAST_CHUNK) { COMPLETE } else { ANSWERING }, Relaxed);
        self.answered_at.store(now.duration_since(self.began).as_millis() as u64, Relaxed);
    }

    /// Whether nobody waits for anything here.
    pub fn is_idle(&self, now: Instant) -> bool {
        match self.state.load(Relaxed) {
            NOTHING | COMPLETE => true,
            ANSWERING => now.duration_since(self.began) >= Duration::from_millis(self.answered_at.load(Relaxed)) + QUIET,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_before_the_first_request_and_after_a_whole_answer() {
        let began = Instant::now();
        let exchange = Exchange::new(began);
        assert!(exchange.is_idle(began));
        exchange.asked();
        assert!(!exchange.is_idle(began + Duration::from_secs(3600)), "a model may load for long");
        exchange.answered(b"7\r\n{\"a\":1}\r\n", began + Duration::from_secs(1));
        assert!(!exchange.is_idle(began + Duration::from_secs(2)));
        assert!(exchange.is_idle(began + Duration::from_secs(6)), "no length and nothing more");
        exchange.answered(b"0\r\n\r\n", began + Duration::from_secs(3));
        assert!(exchange.is_idle(began + Duration::from_secs(3)));
    }
}
