//! Reads the heads of requests and answers (RFC 9112), strictly: a head that two readers could
//! understand differently is a fault. Nothing is repaired.
//!
//! httparse parses the grammar; this module judges line endings and framing. The verdict does not
//! depend on how the bytes are split into reads.

use std::fmt;

use super::BodyLength;

/// The longest head, in bytes.
pub(crate) const MOST_HEAD: usize = 64 * 1024;
const MOST_FIELDS: usize = 200;

/// Why a message can't be read in exactly one way. Its text completes "the request …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// CR without LF, or LF without CR.
    #[error("has a line that does not end with CR LF")]
    BareLine,
    /// A control character.
    #[error("has a control character in its head")]
    Control,
    /// A header field that continues on the next line (obs-fold).
    #[error("has a header field that goes on in the next line")]
    Fold,
    /// An empty line before the request.
    #[error("begins with an empty line")]
    EmptyLine,
    /// Longer than `MOST_HEAD`, or too many fields.
    #[error("has a head that is too long")]
    TooLong,
    /// Neither HTTP/1.0 nor HTTP/1.1, or a malformed line.
    #[error("is not HTTP/1.0 or HTTP/1.1, or has a malformed line in its head")]
    Syntax,
    /// The target does not begin with `/`.
    #[error("has a target that is not a path")]
    Target,
    /// No Host in HTTP/1.1, or several.
    #[error("has no Host, or more than one")]
    Host,
    /// Several Content-Length, one that is not a number, or one beside Transfer-Encoding.
    #[error("has a Content-Length that is doubled, malformed, or beside a Transfer-Encoding")]
    Length,
    /// Anything other than one `chunked`, in HTTP/1.1.
    #[error("has a Transfer-Encoding other than `chunked`")]
    Encoding,
    /// Bytes after the end of the JSON, which the service would not read.
    #[error("goes on behind the JSON that it consists of")]
    Behind,
    /// A malformed chunk.
    #[error("has a malformed chunk in its body")]
    Chunk,
}

/// A request's head, as far as the gate needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// The method, as written.
    pub method: Box<str>,
    /// Path and query, as written.
    pub target: Box<str>,
    /// Whether it is HTTP/1.0.
    pub is_http10: bool,
    /// Host, as written; empty if there is none.
    pub host: Box<str>,
    /// How long the body is.
    pub body: BodyLength,
    /// No other request follows on its connection (RFC 9112 section 9.3).
    pub closes: bool,
    /// The application waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The body is compressed or otherwise encoded.
    pub encoded: bool,
    /// The method that a browser wants to use, in a preflight.
    pub preflight: Option<Box<str>>,
}

impl RequestHead {
    /// Reads a complete head, empty line included.
    ///
    /// # Errors
    /// Why it is ambiguous or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(len)) if len == bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Fault::TooLong),
            _ => return Err(Fault::Syntax),
        }
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(Fault::Syntax);
        };
        if !target.starts_with('/')
            || method == "CONNECT"
            || !target.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(Fault::Target);
        }
        let is_http10 = version == 0;
        let fields = request.headers;
        let host = match one(fields, "host") {
            Ok(Some(host)) => text(host).ok_or(Fault::Host)?,
            Ok(None) if is_http10 => "",
            _ => return Err(Fault::Host),
        };
        let length = one(fields, "content-length").map_err(|_| Fault::Length)?;
        let coding = one(fields, "transfer-encoding").map_err(|_| Fault::Encoding)?;
        let body = match (length, coding) {
            (None, None) => BodyLength::Known(0),
            (Some(length), None) => BodyLength::Known(number(length).ok_or(Fault::Length)?),
            (None, Some(coding)) if !is_http10 && coding.eq_ignore_ascii_case(b"chunked") => {
                BodyLength::Chunked
            }
            (None, Some(_)) => return Err(Fault::Encoding),
            (Some(_), Some(_)) => return Err(Fault::Length),
        };
        let preflight = one(fields, "access-control-request-method")
            .ok()
            .flatten()
            .and_then(text)
            .map(Into::into);
        Ok(Self {
            method: method.into(),
            target: target.into(),
            is_http10,
            host: host.into(),
            body,
            closes: is_http10 || closes(fields),
            expects_continue: !is_http10
                && all(fields, "expect").any(|value| value.eq_ignore_ascii_case(b"100-continue")),
            encoded: all(fields, "content-encoding")
                .any(|value| !value.is_empty() && !value.eq_ignore_ascii_case(b"identity")),
            preflight: preflight.filter(|_| method == "OPTIONS"),
        })
    }
}

/// An answer's head, as far as the gate needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerHead {
    pub(crate) status: u16,
    /// How long its body is; `None` until the connection closes.
    pub(crate) body: Option<BodyLength>,
    /// The connection takes no other request after it.
    pub(crate) closes: bool,
}

impl AnswerHead {
    /// Reads a complete head. It is not judged strictly, because the service is trusted.
    ///
    /// # Errors
    /// If it is not an HTTP/1.x answer.
    pub(crate) fn parse(bytes: &[u8], to_head: bool) -> Result<Self, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut answer = httparse::Response::new(&mut fields);
        match answer.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            _ => return Err(Fault::Syntax),
        }
        let status = answer.code.ok_or(Fault::Syntax)?;
        let fields = answer.headers;
        let chunked =
            all(fields, "transfer-encoding").any(|value| value.eq_ignore_ascii_case(b"chunked"));
        let body = match one(fields, "content-length") {
            _ if to_head || status < 200 || status == 204 || status == 304 => {
                Some(BodyLength::Known(0))
            }
            _ if chunked => Some(BodyLength::Chunked),
            Ok(Some(length)) => Some(BodyLength::Known(number(length).ok_or(Fault::Length)?)),
            Ok(None) => None,
            Err(_) => return Err(Fault::Length),
        };
        let closes = answer.version == Some(0) || closes(fields);
        Ok(Self { status, body, closes })
    }
}

fn closes(fields: &[httparse::Header<'_>]) -> bool {
    let close = |option: &[u8]| option.trim_ascii().eq_ignore_ascii_case(b"close");
    all(fields, "connection").any(|value| value.split(|byte| *byte == b',').any(close))
}

fn all<'a>(fields: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value.trim_ascii())
}

struct Several;

fn one<'a>(fields: &'a [httparse::Header<'a>], name: &'a str) -> Result<Option<&'a [u8]>, Several> {
    let mut found = all(fields, name);
    match (found.next(), found.next()) {
        (value, None) => Ok(value),
        _ => Err(Several),
    }
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()))
}

/// Only digits, and at most 18 of them, so that the number fits.
fn number(value: &[u8]) -> Option<u64> {
    let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// Collects a head as its bytes come.
#[derive(Default)]
pub struct HeadReader {
    bytes: Vec<u8>,
    line: LineState,
    /// Whether faults in line endings are ignored.
    lenient: bool,
}

/// The position of the next byte in a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum LineState {
    #[default]
    First,
    Start,
    Middle,
    /// After the CR of a line; `empty` if nothing stands before it.
    Cr {
        empty: bool,
    },
    End,
}

impl fmt::Debug for HeadReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeadReader({} bytes)", self.bytes.len())
    }
}

impl HeadReader {
    /// A reader for answers: malformed lines of a service are not faults.
    pub(crate) fn lenient() -> Self {
        Self { lenient: true, ..Self::default() }
    }

    /// How many bytes it has collected.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the part of `bytes` that belongs to the head. Returns its length if the head ends in
    /// it.
    ///
    /// # Errors
    /// The first fault in the order of the bytes.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.bytes.len() + at == MOST_HEAD {
                return Err(Fault::TooLong);
            }
            self.line = self.step(*byte)?;
            if self.line == LineState::End {
                self.keep(&bytes[..=at]);
                return Ok(Some(at + 1));
            }
        }
        self.keep(bytes);
        Ok(None)
    }

    /// Doubles the buffer when it is full, but not beyond the longest head.
    fn keep(&mut self, bytes: &[u8]) {
        let len = self.bytes.len() + bytes.len();
        if len > self.bytes.capacity() {
            let doubled = (2 * self.bytes.capacity()).clamp(len, MOST_HEAD.max(len));
            self.bytes.reserve_exact(doubled - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn step(&self, byte: u8) -> Result<LineState, Fault> {
        match (self.line, byte) {
            (LineState::Cr { empty: true }, b'\n') => Ok(LineState::End),
            (LineState::Cr { empty: false }, b'\n') => Ok(LineState::Start),
            (LineState::First, b'\r' | b'\n') => Err(Fault::EmptyLine),
            (LineState::Start, b'\r') => Ok(LineState::Cr { empty: true }),
            (LineState::Middle, b'\r') => Ok(LineState::Cr { empty: false }),
            (LineState::Start, b'\n') if self.lenient => Ok(LineState::End),
            (LineState::Middle, b'\n') if self.lenient => Ok(LineState::Start),
            _ if self.lenient => Ok(LineState::Middle),
            (LineState::Cr { .. }, _) | (_, b'\n') => Err(Fault::BareLine),
            (LineState::Start, b' ' | b'\t') => Err(Fault::Fold),
            (_, 0x7f) => Err(Fault::Control),
            (_, byte) if byte < b' ' && byte != b'\t' => Err(Fault::Control),
            _ => Ok(LineState::Middle),
        }
    }

    /// Whether the last byte is a CR that may end the head, together with an LF.
    pub(crate) fn may_end(&self) -> bool {
        self.line == LineState::Cr { empty: true }
    }

    /// Whether no byte has arrived yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the collected bytes, and is ready for the next head.
    pub fn finish(&mut self) -> Vec<u8> {
        self.line = LineState::First;
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<RequestHead, Fault> {
        let mut reader = HeadReader::default();
        reader.take(bytes)?.expect("a whole head");
        RequestHead::parse(&reader.finish())
    }

    #[test]
    fn a_request_is_read_as_it_is_written() {
        let head = read(
            b"POST /api/chat?x=1 HTTP/1.1\r\nHost: localhost:11434\r\ncontent-LENGTH: 12\r\n\r\n",
        )
        .expect("read");
        assert_eq!(
            (&*head.method, &*head.target, &*head.host),
            ("POST", "/api/chat?x=1", "localhost:11434")
        );
        assert_eq!(
            (head.body, head.is_http10, head.expects_continue, head.encoded),
            (BodyLength::Known(12), false, false, false)
        );
        let head = read(b"PUT / HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\nExpect: 100-Continue\r\n\r\n").expect("read");
        assert_eq!(
            (head.body, head.expects_continue, &*head.host),
            (BodyLength::Chunked, true, "")
        );
        assert!(read(b"GET / HTTP/1.0\r\n\r\n").expect("read").is_http10);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_a_fault() {
        use Fault::*;
        for (fields, fault) in [
            ("Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", Length),
            ("Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n", Length),
            ("Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n", Length),
            ("Host: a\r\nContent-Length: 1, 1\r\n", Length),
            ("Host: a\r\nContent-Length: +1\r\n", Length),
            ("Host: a\r\nContent-Length: 0x1\r\n", Length),
            ("Host: a\r\nContent-Length:\r\n", Length),
            ("Host: a\r\nContent-Length: 99999999999999999999\r\n", Length),
            ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", Encoding),
            ("Host: a\r\nTransfer-Encoding: identity\r\n", Encoding),
            ("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Encoding),
            ("Host: a\r\nTransfer-Encoding: \"chunked\"\r\n", Encoding),
            ("Host: a\r\nTransfer-Encoding : chunked\r\n", Syntax),
            ("Host: a\r\nX: 1\r\n folded\r\n", Fold),
            ("Host: a\r\n\tfolded: 1\r\n", Fold),
            ("Host: a\r\nX: 1\nY: 2\r\n", BareLine),
            ("Host: a\r\nX: 1\rY: 2\r\n", BareLine),
            ("Host: a\r\nX: \0\r\n", Control),
            ("Host: a\r\nX\x01: 1\r\n", Control),
            ("Host: a\r\n: 1\r\n", Syntax),
            ("Host: a\r\nno colon\r\n", Syntax),
            ("X: 1\r\n", Host),
            ("Host: a\r\nhost: b\r\n", Host),
            ("Host: a b\r\n", Host),
        ] {
            let request = format!("POST / HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(read(request.as_bytes()), Err(fault), "{fields:?}");
        }
        assert_eq!(read(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(Encoding));
    }

    #[test]
    fn only_a_path_is_a_target_and_only_http_1_is_http() {
        for (line, fault) in [
            ("GET http://localhost/ HTTP/1.1", Fault::Target),
            ("OPTIONS * HTTP/1.1", Fault::Target),
            ("CONNECT localhost:1 HTTP/1.1", Fault::Target),
            ("CONNECT / HTTP/1.1", Fault::Target),
            ("GET api HTTP/1.1", Fault::Target),
            ("GET / HTTP/2.0", Fault::Syntax),
            ("GET / HTTP/1.2", Fault::Syntax),
            ("GET /", Fault::Syntax),
            ("GET  / HTTP/1.1", Fault::Syntax),
            ("GET / HTTP/1.1 x", Fault::Syntax),
            ("G@T / HTTP/1.1", Fault::Syntax),
        ] {
            assert_eq!(read(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()), Err(fault), "{line}");
        }
        assert_eq!(read(b"\r\nGET / HTTP/1.1\r\n\r\n"), Err(Fault::EmptyLine));
        assert_eq!(read(b"\x16\x03\x01"), Err(Fault::Control));
    }

    #[test]
    fn a_head_takes_no_more_memory_than_a_head_may_have() {
        for piece in [1, 7, 1400, 40 * 1024] {
            let mut reader = HeadReader::default();
            while reader.len() + piece < MOST_HEAD {
                reader.take(&vec![b'x'; piece]).expect("a head");
                let (len, takes) = (reader.len(), reader.bytes.capacity());
                assert!(takes <= MOST_HEAD && takes <= 2 * len, "{takes} bytes for {len}");
            }
        }
    }

    #[test]
    fn a_head_that_is_too_long_is_refused_and_one_that_just_fits_is_not() {
        let head =
            |fill: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(fill));
        let fits = MOST_HEAD - head(0).len();
        read(head(fits).as_bytes()).expect("fits");
        assert_eq!(read(head(fits + 1).as_bytes()), Err(Fault::TooLong));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(MOST_FIELDS));
        assert_eq!(read(many.as_bytes()), Err(Fault::TooLong));
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let read = |head: &str, to_head| {
            AnswerHead::parse(head.as_bytes(), to_head).map(|head| (head.status, head.body))
        };
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false),
            Ok((200, Some(BodyLength::Known(5))))
        );
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true),
            Ok((200, Some(BodyLength::Known(0))))
        );
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            Ok((200, Some(BodyLength::Chunked)))
        );
        assert_eq!(read("HTTP/1.0 200 OK\r\n\r\n", false), Ok((200, None)));
        assert_eq!(
            read("HTTP/1.1 204 No Content\r\n\r\n", false),
            Ok((204, Some(BodyLength::Known(0))))
        );
        assert_eq!(read("220 hello\r\n\r\n", false), Err(Fault::Syntax));
    }
}
