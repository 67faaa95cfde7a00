//! Errors that we answer to an application instead of the service. They have the form of Ollama's
//! own errors, so that every tool shows them.

use std::{sync::Arc, time::SystemTime};

use crate::wire::Code;

/// `Retry-After` if it is not known how long the cause will last, in seconds.
pub const RETRY_SOON: u64 = 5;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// The HTTP status: 400, 401, 403, 408, 413, 429, 431, 502, 503 or 504.
    pub status: u16,
    /// For `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// Why, and what to do.
    pub sentence: String,
    /// What another service answered, if the application gets that in place of the sentence.
    pub instead: Option<Arc<ServiceAnswer>>,
}

/// The refusal of another service, as it is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAnswer {
    /// Its `Content-Type`: visible ASCII and spaces.
    pub content_type: String,
    /// Its `WWW-Authenticate` fields (RFC 9110 section 11.6.1): visible ASCII and spaces.
    pub challenges: Vec<String>,
    /// Its body. If it is empty, the application gets our sentence.
    pub body: Vec<u8>,
}

impl ErrorAnswer {
    /// An answer without `Retry-After`.
    pub fn new(status: u16, sentence: impl Into<String>) -> Self {
        Self { status, retry_after: None, sentence: sentence.into(), instead: None }
    }

    /// The answer with `Retry-After`, in seconds.
    pub fn retry_after(self, seconds: impl Into<Option<u64>>) -> Self {
        Self { retry_after: seconds.into(), ..self }
    }

    /// The answer as bytes. `line` is the first line of the request, as far as it has arrived;
    /// `now` becomes the `Date`. The connection closes after the answer.
    pub fn render(&self, line: &[u8], now: SystemTime) -> Vec<u8> {
        self.render_with(line, now, &[])
    }

    /// [`ErrorAnswer::render`], with these fields in the head, which must be valid there.
    pub fn render_with(
        &self,
        line: &[u8],
        now: SystemTime,
        fields: &[(&'static str, String)],
    ) -> Vec<u8> {
        let own = self.body(line);
        let (kind, body) = match self.instead.as_deref() {
            Some(instead) if !instead.body.is_empty() => {
                (instead.content_type.as_str(), instead.body.as_slice())
            }
            _ => ("application/json; charset=utf-8", own.as_bytes()),
        };
        let mut added: String =
            fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        for challenge in self.instead.iter().flat_map(|instead| &instead.challenges) {
            added.push_str(&format!("WWW-Authenticate: {challenge}\r\n"));
        }
        let line = RequestLine::of(line);
        let date = httpdate::fmt_http_date(now);
        let retry = self
            .retry_after
            .map(|seconds| format!("Retry-After: {seconds}\r\n"))
            .unwrap_or_default();
        let head = format!(
            "{} {} {}\r\nContent-Type: {kind}\r\nDate: {date}\r\n{retry}{added}Content-Length: {}\r\nConnection: close\r\n\r\n",
            if line.version == Some(b"HTTP/1.0") { "HTTP/1.0" } else { "HTTP/1.1" },
            self.status,
            reason(self.status),
            body.len()
        );
        let mut answer = head.into_bytes();
        if line.method != b"HEAD" {
            answer.extend_from_slice(body);
        }
        answer
    }

    /// The JSON body, for the request that begins with `line`.
    pub fn body(&self, line: &[u8]) -> String {
        let line = RequestLine::of(line);
        let sentence = serde_json::Value::from(self.sentence.as_str());
        // Ollama answers in OpenAI's shape below /v1.
        if line.target.starts_with(b"/v1/") {
            format!(
                "{{\"error\":{{\"message\":{sentence},\"type\":\"{}\",\"param\":null,\"code\":null}}}}",
                self.kind()
            )
        } else {
            format!("{{\"error\":{sentence}}}")
        }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }
}

impl From<Code> for ErrorAnswer {
    /// The answer if a stream to the service could not be opened, or was ended, for this reason.
    fn from(code: Code) -> Self {
        let status = match code {
            Code::Revoked
            | Code::Expired
            | Code::ServerClock
            | Code::OutOfTime
            | Code::Held
            | Code::SignedOut
            | Code::ProviderDown
            | Code::CaRetired
            | Code::ShuttingDown
            | Code::Busy
            | Code::Superseded
            | Code::TooManyStreams => 503,
            Code::UpstreamSilent => 504,
            _ => 502,
        };
        // A retry does not help if the server's owner has to do something first.
        let passes_by_itself = status == 503
            && !matches!(
                code,
                Code::Revoked
                    | Code::Superseded
                    | Code::ServerClock
                    | Code::OutOfTime
                    | Code::Held
                    | Code::SignedOut
                    | Code::CaRetired
            );
        Self::new(status, format!("adit: {}", code.sentence()))
            .retry_after(passes_by_itself.then_some(RETRY_SOON))
    }
}

/// RFC 9110 section 15.
fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        408 => "Request Timeout",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        504 => "Gateway Timeout",
        _ => "Service Unavailable",
    }
}

/// A request line (RFC 9112 section 3), as far as it has come.
struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: Option<&'a [u8]>,
}

impl<'a> RequestLine<'a> {
    fn of(head: &'a [u8]) -> Self {
        let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
        let mut words = line.strip_suffix(b"\r").unwrap_or(line).split(|b| *b == b' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Self { method, target, version: words.next() }
    }
}

/// Whether these bytes are the beginning of an HTTP/1.x request. The line may be cut off at the
/// end.
pub fn is_request(head: &[u8]) -> bool {
    let RequestLine { method, target, version } = RequestLine::of(head);
    let is_method = !method.is_empty() && method.iter().all(u8::is_ascii_uppercase);
    let is_version =
        version.is_none_or(|version| version == b"HTTP/1.0" || b"HTTP/1.1".starts_with(version));
    is_method && is_version && matches!(target.first(), Some(b'/' | b'*' | b'h'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(answer: &ErrorAnswer, line: &str) -> String {
        String::from_utf8(answer.render(line.as_bytes(), SystemTime::UNIX_EPOCH)).expect("text")
    }

    #[test]
    fn an_error_is_ollamas_json_with_its_length_and_the_connection_closes() {
        let answer =
            ErrorAnswer { retry_after: Some(7), ..ErrorAnswer::new(429, "adit: \"slow\"") };
        let plain = text(&answer, "POST /api/chat HTTP/1.1\r\nHost: x");
        assert!(
            plain.starts_with("HTTP/1.1 429 Too Many Requests\r\n")
                && plain.contains("Retry-After: 7\r\n"),
            "{plain}"
        );
        assert!(plain.contains("Content-Length: 26\r\nConnection: close\r\n\r\n"), "{plain}");
        assert!(plain.ends_with("\r\n\r\n{\"error\":\"adit: \\\"slow\\\"\"}"), "{plain}");
        assert!(text(&answer, "\x16\x03").starts_with("HTTP/1.1 429"));
    }

    #[test]
    fn head_gets_no_body_http_1_0_its_own_version_and_v1_openais_shape() {
        let answer = ErrorAnswer::new(503, "adit: no \"tunnel\"");
        let head = text(&answer, "HEAD / HTTP/1.1\r\n");
        assert!(head.ends_with("\r\n\r\n") && head.contains("Content-Length: 31"), "{head}");
        assert!(text(&answer, "GET / HTTP/1.0\n").starts_with("HTTP/1.0 503"));
        let v1 = text(&answer, "POST /v1/chat/completions HTTP/1.1\r\n");
        assert!(
            v1.contains(r#"{"error":{"message":"adit: no \"tunnel\"","type":"api_error""#),
            "{v1}"
        );
    }

    #[test]
    fn the_refusal_of_another_service_is_passed_on_with_its_type_and_challenges() {
        let instead = ServiceAnswer {
            content_type: "text/html".into(),
            challenges: vec!["Bearer realm=\"x\"".into()],
            body: b"<p>no".to_vec(),
        };
        let answer = ErrorAnswer {
            instead: Some(Arc::new(instead.clone())),
            ..ErrorAnswer::new(401, "adit: no")
        };
        let told = text(&answer, "GET / HTTP/1.1\r\n");
        assert!(told.starts_with("HTTP/1.1 401 ") && told.ends_with("\r\n\r\n<p>no"), "{told}");
        assert!(told.contains("Content-Type: text/html\r\n"), "{told}");
        assert!(told.contains("WWW-Authenticate: Bearer realm=\"x\"\r\n"), "{told}");
        assert!(told.contains("Content-Length: 5\r\n"), "{told}");
        let empty = ServiceAnswer { body: Vec::new(), ..instead };
        let answer = ErrorAnswer { instead: Some(Arc::new(empty)), ..answer };
        let told = text(&answer, "GET / HTTP/1.1\r\n");
        assert!(told.ends_with("{\"error\":\"adit: no\"}") && told.contains("Bearer"), "{told}");
    }

    #[test]
    fn a_503_that_passes_by_itself_says_when_to_ask_again() {
        for code in (0..=u8::MAX).filter_map(|number| Code::from_number(number.into())) {
            let answer = ErrorAnswer::from(code);
            let needs_a_person = matches!(
                code,
                Code::Revoked
                    | Code::Superseded
                    | Code::ServerClock
                    | Code::OutOfTime
                    | Code::Held
                    | Code::SignedOut
                    | Code::CaRetired
            );
            let retry = (answer.status == 503 && !needs_a_person).then_some(RETRY_SOON);
            assert_eq!(answer.retry_after, retry, "{code:?}");
        }
    }

    #[test]
    fn what_is_no_http_is_told_from_what_is() {
        for bad in [
            "",
            "\x16\x03\x01\x02",
            "hello",
            "SSH-2.0-OpenSSH_9\r\n",
            "PRI * HTTP/2.0\r\n",
            "get / HTTP/1.1\r\n",
        ] {
            assert!(!is_request(bad.as_bytes()), "{bad}");
        }
        for good in ["GET / HTTP/1.1\r\n", "HEAD /x HTTP/1.0\r\n", "POST /api/chat HTTP/1", "GET /"]
        {
            assert!(is_request(good.as_bytes()), "{good}");
        }
        assert!(
            is_request(format!("GET /{}", "x".repeat(9000)).as_bytes()),
            "a line longer than what is remembered"
        );
    }
}
