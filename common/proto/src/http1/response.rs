//! Follows the answers of a service as their bytes pass: where each ends, its status and its token
//! counts.

mod added_field;

use super::{
    framing::Body,
    head::{AnswerHead, HeadReader},
};
use crate::{http1::BodyLength, ollama::usage::AnswerUsage};

pub use self::added_field::AddedFields;
pub use super::framing::Insert;

/// What Go sends when a handler begins to read a body that was announced with `Expect`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The answer to one request.
#[derive(Debug)]
pub struct Tracker {
    head: HeadReader,
    to_head: bool,
    body: Option<Body>,
    status: Option<u16>,
    closes: bool,
    /// The bytes do not follow the framing. The answer can only end with the connection, and no
    /// other may follow.
    lost: bool,
    usage: Option<AnswerUsage>,
    /// Its head did not announce its length.
    streamed: bool,
    /// How many bytes of the service's `100 Continue` have arrived, if we have sent our own: then
    /// the service's is not passed on.
    swallow: Option<usize>,
}

impl Tracker {
    /// The answer to a request. With `to_head` the request is a HEAD, so the answer has no body;
    /// with `counts_tokens` its tokens are counted.
    pub fn new(to_head: bool, counts_tokens: bool) -> Self {
        Self {
            head: HeadReader::lenient(),
            to_head,
            body: None,
            status: None,
            closes: false,
            lost: false,
            usage: counts_tokens.then(AnswerUsage::default),
            streamed: false,
            swallow: None,
        }
    }

    /// We have sent `100 Continue` to the application ourselves.
    pub fn continued(&mut self) {
        self.swallow = Some(0);
    }

    /// What the application gets: first the bytes that were held back and are not a `100 Continue`,
    /// then the rest of `bytes`.
    pub fn pass<'a>(&mut self, bytes: &'a [u8]) -> (&'static [u8], &'a [u8]) {
        let Some(have) = self.swallow else { return (b"", bytes) };
        let same = CONTINUE[have..].iter().zip(bytes).take_while(|(a, b)| a == b).count();
        match (have + same == CONTINUE.len(), same == bytes.len()) {
            (true, _) => {
                self.swallow = None;
                (b"", &bytes[same..])
            }
            (false, true) => {
                self.swallow = Some(have + same);
                (b"", b"")
            }
            (false, false) => {
                self.swallow = None;
                (&CONTINUE[..have], bytes)
            }
        }
    }

    /// Follows `bytes`, all of which are part of this answer.
    pub fn follow(&mut self, bytes: &[u8]) {
        if self.take(bytes) < bytes.len() {
            // More bytes than the answer announced.
            self.lose(0);
        }
    }

    /// Takes the part of `bytes` that belongs to this answer, and returns its length: less than all
    /// if the answer ends there.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.is_complete() {
            let bytes = &bytes[at..];
            at += match &mut self.body {
                None => self.follow_head(bytes),
                // Tokens are not counted in bytes that are not part of the answer.
                Some(_) if self.lost => bytes.len(),
                Some(body) => {
                    let usage = &mut self.usage;
                    let taken = body.follow(bytes, |content| {
                        if let Some(usage) = usage {
                            usage.push(content);
                        }
                    });
                    taken.unwrap_or_else(|_| {
                        *body = Body::until_close();
                        self.lost = true;
                        bytes.len()
                    })
                }
            };
        }
        at
    }

    /// Takes the part of `bytes` that belongs to its heads, and returns its length: less than all if
    /// the last head ends there.
    fn take_heads(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && self.body.is_none() {
            at += self.follow_head(&bytes[at..]);
        }
        at
    }

    fn follow_head(&mut self, bytes: &[u8]) -> usize {
        let head = match self.head.take(bytes) {
            Ok(None) => return bytes.len(),
            Ok(Some(taken)) => {
                AnswerHead::parse(&self.head.finish(), self.to_head).map(|head| (head, taken))
            }
            Err(fault) => Err(fault),
        };
        match head {
            // The protocol changes here, although no request can ask for that.
            Ok((head, _)) if head.status == 101 => self.lose(bytes.len()),
            Ok((head, taken)) if head.status < 200 => taken,
            Ok((head, taken)) => {
                self.status = Some(head.status);
                self.closes = head.closes;
                self.body = Some(head.body.map_or_else(Body::until_close, Body::new));
                self.streamed = !matches!(head.body, Some(BodyLength::Known(_)));
                taken
            }
            Err(_) => self.lose(bytes.len()),
        }
    }

    fn lose(&mut self, rest: usize) -> usize {
        self.lost = true;
        self.body = Some(Body::until_close());
        rest
    }

    /// Whether the whole answer has arrived, by its framing.
    pub fn is_complete(&self) -> bool {
        !self.lost && self.body.as_ref().is_some_and(Body::is_over)
    }

    /// Whether its head says that no other request may follow on the connection.
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// Whether only the end of its connection ends it.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.lost || self.body.as_ref().is_some_and(Body::ends_with_connection)
    }

    /// Whether the answer is complete if its connection ends now, as far as the framing can tell.
    pub fn is_whole_at_close(&self) -> bool {
        self.is_complete()
            || (!self.lost && self.body.as_ref().is_some_and(Body::ends_with_connection))
    }

    /// Whether nothing but complete interim answers (1xx) has arrived.
    pub fn is_between_heads(&self) -> bool {
        self.body.is_none() && self.head.is_empty()
    }

    /// Whether we can insert a line of our own at this point, as the end of the answer.
    pub fn can_insert(&self) -> Insert {
        match &self.body {
            Some(body) if !self.lost => body.can_insert(),
            Some(_) => Insert::Never,
            None => Insert::Later,
        }
    }

    /// Whether a complete answer says that it was not broken off. One whose length was announced
    /// does.
    pub fn says_done(&self) -> bool {
        !self.streamed || self.usage.as_ref().is_none_or(AnswerUsage::says_done)
    }

    /// Its status, once its head has arrived.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The tokens of the prompt and of the answer, if the answer states them.
    pub fn tokens(&self) -> (Option<u64>, Option<u64>) {
        self.usage.as_ref().map_or((None, None), AnswerUsage::tokens)
    }

    /// How many pieces of text have arrived in a stream.
    pub fn pieces(&self) -> u64 {
        self.usage.as_ref().map_or(0, AnswerUsage::pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Complete, whole at the close, status; for every way to cut the answer in two.
    fn after(answer: &str, to_head: bool) -> (bool, bool, Option<u16>) {
        let of = |parts: [&str; 2]| {
            let mut tracker = Tracker::new(to_head, false);
            parts.iter().for_each(|part| tracker.follow(part.as_bytes()));
            (tracker.is_complete(), tracker.is_whole_at_close(), tracker.status())
        };
        let whole = of([answer, ""]);
        for cut in 0..answer.len() {
            assert_eq!(of([&answer[..cut], &answer[cut..]]), whole, "{answer} cut at {cut}");
        }
        whole
    }

    #[test]
    fn the_end_of_an_answer_is_where_its_framing_says() {
        assert_eq!(
            after("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", false),
            (true, true, Some(200))
        );
        assert_eq!(
            after("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", false),
            (false, false, Some(200))
        );
        assert_eq!(
            after("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true),
            (true, true, Some(200))
        );
        assert_eq!(after("HTTP/1.1 204 No Content\r\n\r\n", false), (true, true, Some(204)));
        assert_eq!(
            after("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n", false),
            (true, true, Some(304))
        );
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        assert_eq!(after(chunked, false), (false, false, Some(200)));
        assert_eq!(after(&format!("{chunked}0\r\nX: 1\r\n\r\n"), false), (true, true, Some(200)));
        assert_eq!(after("HTTP/1.0 200 OK\r\n\r\nsome", false), (false, true, Some(200)));
    }

    #[test]
    fn what_is_no_answer_ends_with_its_connection_and_no_other_follows() {
        for odd in [
            "220 hello\r\n\r\nx",
            "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
        ] {
            let (complete, whole, _) = after(odd, false);
            assert!(!complete && !whole, "{odd}");
        }
    }

    #[test]
    fn what_is_no_part_of_an_answer_says_nothing_of_its_tokens() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"eval_count\":7}";
        for (to_head, behind, tokens) in
            [(false, "", Some(7)), (false, "{\"eval_count\":9}", Some(7)), (true, "", None)]
        {
            let answer = format!("{answer}{behind}");
            for cut in 0..=answer.len() {
                let mut tracker = Tracker::new(to_head, true);
                tracker.follow(&answer.as_bytes()[..cut]);
                tracker.follow(&answer.as_bytes()[cut..]);
                assert_eq!(tracker.tokens().1, tokens, "{answer} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_second_100_is_swallowed_and_nothing_else_is() {
        for cut in 0..=CONTINUE.len() {
            let mut tracker = Tracker::new(false, false);
            tracker.continued();
            let mut bytes = CONTINUE.to_vec();
            bytes.extend_from_slice(b"HTTP/1.1 200");
            let mut passed = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                let (held, rest) = tracker.pass(part);
                passed.extend_from_slice(held);
                passed.extend_from_slice(rest);
            }
            assert_eq!(passed, b"HTTP/1.1 200", "cut at {cut}");
        }
        let mut tracker = Tracker::new(false, false);
        tracker.continued();
        assert_eq!(tracker.pass(b"HTTP/1.1 "), (&b""[..], &b""[..]));
        assert_eq!(tracker.pass(b"400 Bad"), (&b"HTTP/1.1 "[..], &b"400 Bad"[..]));
        assert_eq!(tracker.pass(b" Request"), (&b""[..], &b" Request"[..]));
    }
}
