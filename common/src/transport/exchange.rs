//! Whether an answer is under way on a connection, as far as its bytes tell: so that a program that
//! is told to stop waits for answers, and not for connections that an application only keeps for
//! later.
//!
//! It only looks, and it errs on one side: what it can't tell to be over is under way.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The end of a chunked body without trailers (RFC 9112 section 7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What has passed on one connection, in brief.
#[derive(Debug)]
pub struct Exchange<'a> {
    state: Mutex<State>,
    /// Counts the exchanges of a program that are under way.
    underway: &'a AtomicUsize,
}

#[derive(Debug, Default)]
enum State {
    /// Nobody waits for anything.
    #[default]
    Idle,
    /// A request, or a part of one, has been sent.
    Asked { head: bool },
    /// An answer has begun.
    Answering(Length),
}

/// How an answer tells its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    /// So many bytes are still to come.
    Left(u64),
    /// By its last chunk, or not at all.
    Unknown,
}

impl<'a> Exchange<'a> {
    /// An exchange that is counted in `underway` for as long as it is under way.
    pub fn new(underway: &'a AtomicUsize) -> Self {
        Self { state: Mutex::default(), underway }
    }

    /// The application sends these bytes.
    pub fn asked(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !matches!(*state, State::Asked { .. }) {
            self.change(&mut state, State::Asked { head: bytes.starts_with(b"HEAD ") });
        }
    }

    /// These bytes of the service are on their way to the application; only [`Exchange::delivered`]
    /// may end the answer.
    pub fn answering(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let length = match *state {
            State::Asked { head } => length_left(bytes, head),
            State::Idle => Length::Unknown,
            State::Answering(Length::Left(left)) => match left.checked_sub(bytes.len() as u64) {
                Some(left) => Length::Left(left),
                None => Length::Unknown,
            },
            State::Answering(Length::Unknown) => Length::Unknown,
        };
        self.change(&mut state, State::Answering(length));
    }

    /// All bytes so far have been delivered; these were the last.
    pub fn delivered(&self, last: &[u8]) {
        let mut state = self.lock();
        match *state {
            State::Answering(Length::Left(0)) => self.change(&mut state, State::Idle),
            State::Answering(Length::Unknown) if last.ends_with(LAST_CHUNK) => {
                self.change(&mut state, State::Idle)
            }
            _ => {}
        }
    }

    /// Whether nobody waits for anything here.
    pub fn is_idle(&self) -> bool {
        matches!(*self.lock(), State::Idle)
    }

    fn change(&self, state: &mut State, to: State) {
        match (matches!(state, State::Idle), matches!(to, State::Idle)) {
            (true, false) => drop(self.underway.fetch_add(1, Relaxed)),
            (false, true) => drop(self.underway.fetch_sub(1, Relaxed)),
            _ => {}
        }
        *state = to;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.change(&mut self.lock(), State::Idle);
    }
}

/// What is left of an answer that begins with these bytes (RFC 9112 section 6.3), if all of its
/// head is in them.
fn length_left(bytes: &[u8], to_head: bool) -> Length {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Length::Unknown };
    let (head, body) = (String::from_utf8_lossy(&bytes[..end]), (bytes.len() - end - 4) as u64);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let lengths: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .collect();
    let length = match (status, lengths.as_slice()) {
        // Interim: the answer is still to come.
        (status, _) if status.starts_with('1') => return Length::Unknown,
        ("204" | "304", _) => 0,
        _ if to_head => 0,
        (_, [length]) => *length,
        _ => return Length::Unknown,
    };
    length.checked_sub(body).map_or(Length::Unknown, Length::Left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(request: &[u8], answer: &[&[u8]]) -> bool {
        let underway = AtomicUsize::new(0);
        let exchange = Exchange::new(&underway);
        exchange.asked(request);
        assert_eq!(underway.load(Relaxed), 1);
        assert!(!exchange.is_idle(), "a model may load for long");
        for part in answer {
            exchange.answering(part);
            assert!(!exchange.is_idle(), "it has not been delivered");
            exchange.delivered(part);
        }
        let idle = exchange.is_idle();
        assert_eq!(underway.load(Relaxed), usize::from(!idle));
        drop(exchange);
        assert_eq!(underway.load(Relaxed), 0, "a connection that has ended is not under way");
        idle
    }

    #[test]
    fn a_connection_is_idle_before_the_first_request_and_after_a_whole_answer() {
        assert!(Exchange::new(&AtomicUsize::new(0)).is_idle());
        assert!(after(
            b"GET / HTTP/1.1\r\n\r\n",
            &[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"]
        ));
        assert!(after(
            b"GET / HTTP/1.1\r\n\r\n",
            &[b"HTTP/1.1 200 OK\r\ncontent-length:3\r\n\r\n", b"ab", b"c"]
        ));
        assert!(after(
            b"HEAD / HTTP/1.1\r\n\r\n",
            &[b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"]
        ));
        assert!(after(b"GET / HTTP/1.1\r\n\r\n", &[b"HTTP/1.1 204 No Content\r\n\r\n"]));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(after(b"POST / HTTP/1.1\r\n\r\n", &[chunked, b"3\r\nabc\r\n", b"0\r\n\r\n"]));
    }

    #[test]
    fn what_may_go_on_is_not_idle() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for answer in [
            &[&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"[..]][..],
            &[chunked, b"3\r\nabc\r\n"],
            // Its end is the connection's.
            &[b"HTTP/1.0 200 OK\r\n\r\nsome"],
            &[b"HTTP/1.1 100 Continue\r\n\r\n"],
            // More than was announced, two lengths, half a head, no HTTP.
            &[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc"],
            &[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na"],
            &[b"HTTP/1.1 200 OK\r\nConte"],
            &[b"220 hello\r\n"],
        ] {
            assert!(!after(b"GET / HTTP/1.1\r\n\r\n", answer), "{answer:?}");
        }
    }
}
