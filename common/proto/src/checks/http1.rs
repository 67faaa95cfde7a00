//! HTTP/1.1: requests, bodies, answers, and the connection that they follow each other on.

use std::time::SystemTime;

use super::however_cut;
use crate::{
    http1::{
        BodyLength,
        exchanges::{Exchanges, Keep},
        framing::Body,
        head::{Fault, HeadReader, MOST_HEAD, RequestHead},
        response::Tracker,
    },
    ollama::answer::{self, ErrorAnswer},
};

/// More than a connection remembers of a request's first line, in bytes.
const MOST_LINE: usize = 8 * 1024;

/// What was read from the bytes of one request.
#[derive(Debug, PartialEq, Eq)]
struct ReadRequest {
    head: RequestHead,
    head_len: usize,
    body: Result<Followed, Fault>,
}

/// How many bytes belong to a body, whether it is complete, and its content.
#[derive(Debug, Default, PartialEq, Eq)]
struct Followed {
    taken: usize,
    over: bool,
    text: Vec<u8>,
}

/// The verdict on a request does not depend on how it is split, and an accepted head has one
/// meaning.
pub fn request(bytes: &[u8]) {
    match however_cut(bytes, read_request) {
        Ok(Some(read)) => {
            has_one_meaning(&read, &bytes[..read.head_len]);
            assert!(answer::is_request(bytes) || !is_usual(&read.head));
        }
        Ok(None) => assert!(bytes.len() <= MOST_HEAD),
        Err(_) => {}
    }
    own_answer(bytes);
}

/// Whether the method has only capital letters, like all that Ollama knows.
fn is_usual(head: &RequestHead) -> bool {
    head.method.bytes().all(|byte| byte.is_ascii_uppercase())
}

fn read_request(parts: &[&[u8]]) -> Result<Option<ReadRequest>, Fault> {
    let (mut reader, mut before) = (HeadReader::default(), 0);
    for (at, part) in parts.iter().enumerate() {
        let taken = reader.take(part)?;
        assert!(reader.len() <= MOST_HEAD);
        if let Some(taken) = taken {
            let head = RequestHead::parse(&reader.finish())?;
            let rest = [&[&part[taken..]], &parts[at + 1..]].concat();
            let body = follow(Body::new(head.body), &rest);
            return Ok(Some(ReadRequest { head, head_len: before + taken, body }));
        }
        before += part.len();
    }
    Ok(None)
}

fn follow(mut body: Body, parts: &[&[u8]]) -> Result<Followed, Fault> {
    let mut followed = Followed::default();
    for part in parts {
        let taken = body.follow(part, |content| followed.text.extend_from_slice(content))?;
        followed.taken += taken;
        assert!(taken == part.len() || body.is_over(), "it left bytes and goes on");
    }
    followed.over = body.is_over();
    Ok(followed)
}

fn has_one_meaning(read: &ReadRequest, bytes: &[u8]) {
    let head = &read.head;
    assert!(bytes.ends_with(b"\r\n\r\n") && head.target.starts_with('/'));
    let text = String::from_utf8_lossy(bytes);
    assert!(text.starts_with(&format!("{} {} HTTP/1.", head.method, head.target)));
    // No line contains bytes that a reader could take for another end of the head.
    assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
    assert_eq!(text.matches('\r').count(), text.matches("\r\n").count());
    let values = |wanted: &str| -> Vec<&str> {
        text.split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim_matches([' ', '\t']))
            .collect()
    };
    match (&values("content-length")[..], &values("transfer-encoding")[..], head.body) {
        ([], [], BodyLength::Known(0)) => {}
        ([length], [], BodyLength::Known(known)) => assert_eq!(length.parse(), Ok(known)),
        ([], [coding], BodyLength::Chunked) => assert!(coding.eq_ignore_ascii_case("chunked")),
        other => panic!("{other:?}"),
    }
    match &values("host")[..] {
        [] => assert!(head.is_http10 && head.host.is_empty()),
        [host] => assert_eq!(**host, *head.host),
        hosts => panic!("{hosts:?}"),
    }
}

/// Our own error is one complete answer, whatever the request was.
fn own_answer(bytes: &[u8]) {
    let line = &bytes[..bytes.len().min(MOST_LINE)];
    let answer = ErrorAnswer::new(503, String::from_utf8_lossy(line)).retry_after(5);
    let json: serde_json::Value =
        serde_json::from_str(&answer.body(line)).expect("the body of our answer is JSON");
    assert!(json.get("error").is_some());
    let mut tracker = Tracker::new(line.starts_with(b"HEAD "), false);
    tracker.follow(&answer.render(line, SystemTime::UNIX_EPOCH));
    assert!(tracker.is_complete() || line.starts_with(b"HEAD"));
    assert_eq!((tracker.status(), tracker.closes()), (Some(503), true));
}

/// A body ends at one place.
pub fn body(bytes: &[u8]) {
    let lengths = [0, 7, u64::MAX].map(BodyLength::Known).into_iter().chain([BodyLength::Chunked]);
    for body in lengths.map(Body::new).chain([Body::until_close()]) {
        if let Ok(followed) = however_cut(bytes, |parts| follow(body.clone(), parts)) {
            assert!(followed.taken <= bytes.len() && followed.text.len() <= followed.taken);
            assert!(followed.over || followed.taken == bytes.len());
        }
    }
}

/// The end of an answer, and what is read from it, do not depend on how it is split.
pub fn response(bytes: &[u8]) {
    for to_head in [false, true] {
        let mut tracker = Tracker::new(to_head, true);
        tracker.follow(bytes);
        assert!(!tracker.is_complete() || tracker.is_whole_at_close());
        assert!(!tracker.is_complete() || !tracker.ends_with_connection());
        however_cut(bytes, |parts| {
            let mut tracker = Tracker::new(to_head, true);
            parts.iter().for_each(|part| tracker.follow(part));
            let ends = (tracker.is_complete(), tracker.is_whole_at_close());
            let place = (tracker.is_between_heads(), tracker.can_insert());
            let closes = (tracker.closes(), tracker.ends_with_connection());
            let says = (tracker.status(), tracker.says_done());
            (ends, place, closes, says, tracker.tokens(), tracker.pieces())
        });
        // How many bytes belong to an answer that others follow.
        however_cut(bytes, |parts| {
            let mut tracker = Tracker::new(to_head, false);
            parts.iter().map(|part| tracker.take(part)).sum::<usize>()
        });
    }
    let passed = however_cut(bytes, |parts| {
        let mut tracker = Tracker::new(false, false);
        tracker.continued();
        let mut passed = Vec::new();
        for part in parts {
            let (held, rest) = tracker.pass(part);
            passed.extend_from_slice(held);
            passed.extend_from_slice(rest);
        }
        passed
    });
    assert!(bytes.ends_with(&passed) || bytes.starts_with(&passed));
}

/// A connection's state depends on its bytes, not on how they come. Bytes of the application and of
/// the service take turns; `0xff`, which no head has, stands between them.
pub fn exchanges(bytes: &[u8]) {
    however_cut(bytes, |parts| {
        let (mut exchanges, mut is_answer) = (Exchanges::default(), false);
        let mut kept = None::<Vec<u8>>;
        for part in parts {
            for (at, piece) in part.split(|byte| *byte == 0xff).enumerate() {
                is_answer ^= at > 0;
                if is_answer {
                    exchanges.answers(piece);
                    kept = kept.filter(|_| piece.is_empty());
                    continue;
                }
                match exchanges.asks(piece) {
                    Keep::Nothing => kept = None,
                    Keep::More => kept.iter_mut().for_each(|kept| kept.extend_from_slice(piece)),
                    Keep::From(at) => kept = Some(piece[at..].to_vec()),
                }
            }
        }
        let line = exchanges.unanswered().map(<[u8]>::to_vec);
        assert_eq!(kept.is_some(), exchanges.may_repeat());
        let state = (exchanges.is_idle(), exchanges.may_go_on(), line, kept);
        assert!(state.0 || !state.1, "another may follow one that is under way");
        if let Some(line) = &state.2 {
            assert!(line.len() <= MOST_LINE);
            assert!(state.3.as_ref().is_none_or(|kept| kept.starts_with(line)));
            exchanges.answers(b"H");
            assert_eq!(exchanges.unanswered(), None, "a byte of the answer has come");
            assert!(!exchanges.may_repeat());
        }
        exchanges.ends();
        assert!(!exchanges.may_go_on());
        state
    });
}
