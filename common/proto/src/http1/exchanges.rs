//! Follows the requests and answers of one connection as its bytes pass: whether a request is under
//! way, and whether its answer has begun. Nothing is changed or refused. A request or an answer
//! that cannot be read in exactly one way counts as under way until the connection ends.

use std::collections::VecDeque;

use super::{
    framing::Body,
    head::{HeadReader, RequestHead},
    response::Tracker,
};
use crate::ollama::route;

/// The most bytes of a request's first line that are remembered.
const MOST_LINE: usize = 8 * 1024;

/// What has passed on one connection.
#[derive(Debug, Default)]
pub struct Exchanges {
    request: RequestPart,
    /// The first line of the newest request, as far as it has come.
    line: Vec<u8>,
    /// Answers that are not complete, oldest first.
    answers: VecDeque<Tracker>,
    /// Whether a byte of the oldest of these answers has arrived; without any, whether the answer to
    /// the request whose body still comes has.
    is_answered: bool,
    /// Whether no other request may follow (RFC 9112 section 9.3).
    closes: bool,
    /// Whether it is no longer known where a request or an answer ends.
    lost: bool,
    /// Whether the newest request may be sent again, as far as it has come.
    may_repeat: bool,
}

/// Which of the bytes that an application has just sent are to be kept, so that its only request can
/// be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None, and none of those before.
    Nothing,
    /// All of them, behind those before.
    More,
    /// Those from this one on, and none before: a request begins there.
    From(usize),
}

/// The part of a request that comes next.
#[derive(Debug)]
enum RequestPart {
    Head(HeadReader),
    Body(Body),
}

impl Default for RequestPart {
    fn default() -> Self {
        Self::Head(HeadReader::default())
    }
}

impl Exchanges {
    /// The application sends these bytes.
    pub fn asks(&mut self, bytes: &[u8]) -> Keep {
        if self.lost {
            remember(&mut self.line, bytes);
            return Keep::Nothing;
        }
        let (mut rest, mut keep) = (bytes, Keep::More);
        while !rest.is_empty() && !self.lost {
            let taken = match &mut self.request {
                RequestPart::Head(head) => {
                    if head.is_empty() {
                        keep = Keep::From(bytes.len() - rest.len());
                        // Of two requests nobody could tell which of them was answered.
                        self.may_repeat = self.answers.is_empty();
                    }
                    self.asks_head(rest)
                }
                RequestPart::Body(body) => body.follow(rest, |_| {}).ok(),
            };
            if matches!(&self.request, RequestPart::Body(body) if body.is_over()) {
                self.request = RequestPart::default();
                self.is_answered &= !self.answers.is_empty();
            }
            match taken {
                Some(taken) => rest = &rest[taken..],
                None => (self.lost, self.may_repeat) = (true, false),
            }
        }
        if self.may_repeat { keep } else { Keep::Nothing }
    }

    /// Continues to read a head. Returns how many bytes belong to it, or `None` if it cannot be
    /// read.
    fn asks_head(&mut self, bytes: &[u8]) -> Option<usize> {
        let RequestPart::Head(head) = &mut self.request else { return None };
        if head.is_empty() {
            self.line.clear();
        }
        remember(&mut self.line, bytes);
        let Some(taken) = head.take(bytes).ok()? else { return Some(bytes.len()) };
        let head = RequestHead::parse(&head.finish()).ok()?;
        self.closes |= head.closes;
        self.may_repeat &= route::is_repeatable(&head.method, &head.target);
        self.answers.push_back(Tracker::new(&*head.method == "HEAD", false));
        self.request = RequestPart::Body(Body::new(head.body));
        Some(taken)
    }

    /// The service sends these bytes.
    pub fn answers(&mut self, mut bytes: &[u8]) {
        self.may_repeat &= bytes.is_empty();
        // It cannot be known any more where this answer ends.
        self.is_answered |= self.lost && !bytes.is_empty();
        while !bytes.is_empty() && !self.lost {
            let Some(answer) = self.answers.front_mut() else {
                // No request asked for these bytes.
                (self.lost, self.is_answered) = (true, true);
                return;
            };
            self.is_answered = true;
            bytes = &bytes[answer.take(bytes)..];
            if answer.is_complete() {
                self.closes |= answer.closes();
                self.answers.pop_front();
                // An answer may be complete before the body of its request is.
                self.is_answered =
                    self.answers.is_empty() && matches!(self.request, RequestPart::Body(_));
            } else if answer.ends_with_connection() {
                self.lost = true;
            }
        }
    }

    /// The application sends nothing more.
    pub fn ends(&mut self) {
        self.closes = true;
        // Ollama takes that for the end of its wish for an answer.
        self.may_repeat = false;
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        let is_between = matches!(&self.request, RequestPart::Head(head) if head.is_empty());
        is_between && self.answers.is_empty() && !self.lost
    }

    /// Whether no request is under way, and another may follow.
    pub fn may_go_on(&self) -> bool {
        self.is_idle() && !self.closes
    }

    /// Whether the only request under way may be sent again: no byte of its answer has arrived, and
    /// repeating it is safe. The rest of it may still come.
    pub fn may_repeat(&self) -> bool {
        self.may_repeat && !self.is_idle()
    }

    /// The first line of the only request that is under way, if no byte of its answer has arrived:
    /// the caller can still answer this request itself. Empty if there was no request.
    pub fn unanswered(&self) -> Option<&[u8]> {
        let is_one = match &self.request {
            // A second request has begun before the first was answered.
            RequestPart::Head(head) if !head.is_empty() || self.lost => self.answers.is_empty(),
            _ => self.answers.len() <= 1,
        };
        // After a complete answer no request waits for one.
        let is_over = self.is_idle() && !self.line.is_empty();
        (is_one && !is_over && !self.is_answered).then_some(&self.line[..])
    }
}

/// Keeps only the first line of a head.
fn remember(line: &mut Vec<u8>, bytes: &[u8]) {
    if line.ends_with(b"\n") {
        return;
    }
    let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
    let room = MOST_LINE - line.len();
    line.extend_from_slice(&bytes[..end.min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET /api/tags HTTP/1.1\r\nHost: a\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// The state of a connection: idle, may go on, the line of the request that is not answered.
    fn state(exchanges: &Exchanges) -> (bool, bool, Option<String>) {
        let line = exchanges.unanswered().map(|line| String::from_utf8_lossy(line).into_owned());
        (exchanges.is_idle(), exchanges.may_go_on(), line)
    }

    /// The state after these bytes, of the application (`>`) or of the service (`<`), for every way
    /// to cut each of them in two.
    fn after(parts: &[(char, &str)]) -> (bool, bool, Option<String>) {
        let run = |cut: usize| {
            let mut exchanges = Exchanges::default();
            for (from, bytes) in parts {
                let (first, second) = bytes.as_bytes().split_at(cut.min(bytes.len()));
                for piece in [first, second] {
                    match from {
                        '>' => {
                            exchanges.asks(piece);
                        }
                        _ => exchanges.answers(piece),
                    }
                }
            }
            state(&exchanges)
        };
        let longest = parts.iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(0);
        let whole = run(longest);
        (0..longest).for_each(|cut| assert_eq!(run(cut), whole, "{parts:?} cut at {cut}"));
        whole
    }

    fn is_idle(parts: &[(char, &str)]) -> bool {
        let (is_idle, may_go_on, _) = after(parts);
        assert_eq!(is_idle, may_go_on, "{parts:?}");
        is_idle
    }

    #[test]
    fn a_connection_is_idle_before_the_first_request_and_after_each_whole_answer() {
        let done = [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n\r\n",
        ];
        assert!(is_idle(&[]));
        for answer in done {
            assert!(is_idle(&[('>', GET), ('<', answer)]), "{answer}");
            assert!(is_idle(&[
                ('>', GET),
                ('<', answer),
                ('>', POST),
                ('>', "abc"),
                ('<', answer)
            ]));
            let both = format!("{answer}{answer}");
            let asked = format!("{GET}{POST}abc");
            assert!(is_idle(&[('>', &asked), ('<', &both)]), "in a pipeline: {answer}");
            assert!(!is_idle(&[('>', &asked), ('<', answer)]), "{answer}");
        }
        let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(is_idle(&[('>', head), ('<', "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")]));
    }

    #[test]
    fn what_may_go_on_is_not_idle() {
        for parts in [
            &[('>', "G")][..],
            &[('>', GET)],
            &[('>', POST), ('>', "ab")],
            // The rest of its body is still to come.
            &[('>', POST), ('<', "HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")],
            &[('>', GET), ('<', "HTTP/1.1 200 OK\r\nConte")],
            &[('>', GET), ('<', "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab")],
            &[('>', GET), ('<', CHUNKED), ('<', "3\r\nabc\r\n0\r\n")],
            // A token whose text is the end of a chunked body.
            &[('>', GET), ('<', CHUNKED), ('<', "f\r\n0\r\n\r\n")],
            &[('>', GET), ('<', "HTTP/1.1 100 Continue\r\n\r\n")],
            // Only the connection's end ends these.
            &[('>', GET), ('<', "HTTP/1.0 200 OK\r\n\r\nsome")],
            &[('>', GET), ('<', "HTTP/1.1 101 Switching\r\n\r\n")],
            // More than was announced, two lengths, no HTTP, not asked for.
            &[('>', GET), ('<', "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc")],
            &[
                ('>', GET),
                ('<', "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            ],
            &[('>', GET), ('<', "220 hello\r\n\r\n")],
            &[('<', "HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")],
            &[('>', "\x16\x03\x01")],
            &[('>', "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n")],
        ] {
            assert!(!is_idle(parts), "{parts:?}");
        }
    }

    #[test]
    fn no_request_follows_where_either_side_closes() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        for (request, answer) in [
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", whole),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", whole),
            ("GET / HTTP/1.0\r\n\r\n", whole),
            (GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            (GET, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ] {
            let (is_idle, may_go_on, _) = after(&[('>', request), ('<', answer)]);
            assert!(is_idle && !may_go_on, "{request} {answer}");
        }
        let mut left = Exchanges::default();
        left.ends();
        assert!(left.is_idle() && !left.may_go_on());
    }

    #[test]
    fn a_request_without_a_byte_of_its_answer_may_be_answered_by_somebody_else() {
        let line = |parts: &[(char, &str)]| after(parts).2;
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let first = Some("GET /api/tags HTTP/1.1\r\n");
        assert_eq!(line(&[]).as_deref(), Some(""));
        assert_eq!(line(&[('>', "GET /ap")]).as_deref(), Some("GET /ap"));
        assert_eq!(line(&[('>', GET)]).as_deref(), first);
        let kept = [('>', POST), ('>', "abc"), ('<', whole), ('>', GET)];
        assert_eq!(line(&kept).as_deref(), first);
        assert_eq!(line(&kept[..3]), None, "it has been answered");
        assert_eq!(line(&[('>', POST), ('>', "a")]).as_deref(), Some("POST / HTTP/1.1\r\n"));
        assert_eq!(line(&[('>', "\x16\x03\n")]).as_deref(), Some("\x16\x03\n"));
        assert_eq!(line(&[('>', GET), ('<', "H")]), None);
        assert_eq!(line(&[('>', GET), ('<', whole), ('<', "x")]), None, "it was not asked for");
        let early = [('>', POST), ('>', "a"), ('<', whole), ('>', "bc"), ('>', GET)];
        assert_eq!(line(&early[..3]), None, "its answer came before the rest of its body");
        assert_eq!(line(&early[..4]), None, "it has been answered");
        assert_eq!(line(&early).as_deref(), first);
        for unreadable in ["\x16\x03\n", "\r\n", "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
            assert!(line(&[('>', unreadable)]).is_some());
            assert_eq!(line(&[('>', unreadable), ('<', "H")]), None, "{unreadable:?} is answered");
        }
        assert_eq!(line(&[('>', GET), ('>', GET)]), None, "which of the two?");
        assert_eq!(line(&[('>', GET), ('>', "GET")]), None);
        assert_eq!(line(&[('>', GET), ('>', "0\x11")]), None, "another that can't be read");
        let mut endless = Exchanges::default();
        for _ in 0..10 {
            endless.asks(&[b'x'; 4096]);
        }
        assert_eq!(endless.unanswered().map(<[u8]>::len), Some(MOST_LINE));
    }

    /// What is kept after these bytes, each piece of which is cut in two at `cut`.
    fn kept(parts: &[(char, &str)], cut: usize) -> Option<String> {
        let (mut exchanges, mut kept) = (Exchanges::default(), None::<Vec<u8>>);
        for (from, bytes) in parts {
            let (first, second) = bytes.as_bytes().split_at(cut.min(bytes.len()));
            for piece in [first, second].into_iter().filter(|piece| !piece.is_empty()) {
                if *from == '<' {
                    exchanges.answers(piece);
                    kept = None;
                    continue;
                }
                match exchanges.asks(piece) {
                    Keep::Nothing => kept = None,
                    Keep::More => kept.as_mut().expect("a beginning").extend_from_slice(piece),
                    Keep::From(at) => kept = Some(piece[at..].to_vec()),
                }
            }
        }
        assert_eq!(kept.is_some(), exchanges.may_repeat(), "{parts:?} cut at {cut}");
        kept.map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    /// What is kept, for every way to cut.
    fn kept_after(parts: &[(char, &str)]) -> Option<String> {
        let longest = parts.iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(0);
        let whole = kept(parts, longest);
        (0..longest).for_each(|cut| assert_eq!(kept(parts, cut), whole, "{parts:?} cut at {cut}"));
        whole
    }

    #[test]
    fn the_only_request_is_kept_whole_until_its_answer_begins_if_it_may_be_sent_again() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let chat = "POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let chunked = "POST /api/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for request in [GET, chat, chunked] {
            assert_eq!(kept_after(&[('>', request)]).as_deref(), Some(request));
            let second = [('>', POST), ('>', "abc"), ('<', whole), ('>', request)];
            assert_eq!(kept_after(&second).as_deref(), Some(request));
            for half in [&request[..5], &request[..request.len() - 1]] {
                assert_eq!(kept_after(&[('>', half)]).as_deref(), Some(half), "the rest follows");
            }
        }
        let two = format!("{GET}{chat}");
        for parts in [
            &[('>', POST), ('>', "abc")][..],
            &[('>', GET), ('<', "H")],
            &[('>', GET), ('<', "HTTP/1.1 100 Continue\r\n\r\n")],
            &[('>', GET), ('<', whole)],
            &[('>', &two)],
            &[('>', &two), ('<', whole)],
            &[('>', GET), ('>', "\x16")],
            &[('>', "\x16\x03\n")],
            &[('>', "POST /api/chat HTTP/1.1\r\nContent-Length: x\r\n\r\n")],
        ] {
            assert_eq!(kept_after(parts), None, "{parts:?}");
        }
        let mut left = Exchanges::default();
        assert_eq!(left.asks(GET.as_bytes()), Keep::From(0));
        left.ends();
        assert!(!left.may_repeat(), "nobody waits for its answer any more");
    }
}
