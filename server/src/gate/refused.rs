//! What an application is told instead of an answer of the service: in Ollama's shape, so that any tool shows it.

use super::{
    authorize,
    head::Fault,
    record::{NotNow, Refusal},
};
use crate::policy::Denied;

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// For `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// The sentence.
    pub sentence: String,
    /// For the record.
    pub why: Refusal,
}

impl Refused {
    /// A refusal with this status.
    pub fn new(status: u16, why: Refusal, sentence: impl Into<String>) -> Self {
        Self { status, retry_after: None, sentence: sentence.into(), why }
    }

    /// The answer as bytes. `line` is the beginning of the request, as far as it has come. The connection closes behind it.
    pub fn render(&self, line: &[u8]) -> Vec<u8> {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let mut words = line.trim_ascii_end().split(|b| *b == b' ');
        let (method, target, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next());
        let version = if version == Some(b"HTTP/1.0") { "HTTP/1.0" } else { "HTTP/1.1" };
        let sentence = serde_json::Value::from(self.sentence.as_str());
        // Ollama answers in OpenAI's shape below /v1.
        let body = if target.starts_with(b"/v1/") {
            format!("{{\"error\":{{\"message\":{sentence},\"type\":\"{}\",\"param\":null,\"code\":null}}}}", self.kind())
        } else {
            format!("{{\"error\":{sentence}}}")
        };
        let date = httpdate::fmt_http_date(std::time::SystemTime::now());
        let retry = self.retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
        let mut answer = format!(
            "{version} {} {}\r\nContent-Type: application/json; charset=utf-8\r\nDate: {date}\r\n{retry}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.status,
            reason(self.status),
            body.len()
        );
        if method != b"HEAD" {
            answer.push_str(&body);
        }
        answer.into_bytes()
    }

    fn kind(&self) -> &'static str {
        match self.status {
            403 => "permission_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }
}

/// RFC 9110 section 15.
fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        _ => "Service Unavailable",
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        let status = if fault == Fault::TooLong { 431 } else { 400 };
        Self::new(status, Refusal::Malformed, format!("adit: the request {fault}"))
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        let (status, why) = match &denied {
            Denied::Device(_) => (503, Refusal::Role),
            Denied::Role { .. } => (403, Refusal::Role),
            Denied::Model { .. } | Denied::NoModel { .. } => (403, Refusal::Model),
        };
        Self::new(status, why, denied.to_string())
    }
}

impl From<authorize::Refusal> for Refused {
    fn from(refusal: authorize::Refusal) -> Self {
        let (status, why) = match &refusal {
            authorize::Refusal::No => (403, Refusal::Authorize),
            authorize::Refusal::Failed(_) => (503, Refusal::AuthorizeFailed),
        };
        Self::new(status, why, format!("adit: {refusal}"))
    }
}

impl From<NotNow> for Refused {
    fn from(not_now: NotNow) -> Self {
        let NotNow { status, retry_after, sentence, limit } = not_now;
        Self { status, retry_after, sentence, why: Refusal::Limit(limit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_ollamas_json_and_closes_the_connection() {
        let refused = Refused { retry_after: Some(7), ..Refused::new(429, Refusal::Limit("x"), "adit: \"slow\"") };
        let text = |line: &str| String::from_utf8(refused.render(line.as_bytes())).expect("text");
        let plain = text("POST /api/chat HTTP/1.1\r\nHost: x");
        assert!(plain.starts_with("HTTP/1.1 429 Too Many Requests\r\n") && plain.contains("Retry-After: 7\r\n"), "{plain}");
        assert!(plain.contains("Content-Length: 26\r\nConnection: close\r\n\r\n"), "{plain}");
        assert!(plain.ends_with("\r\n\r\n{\"error\":\"adit: \\\"slow\\\"\"}"), "{plain}");
        assert!(text("HEAD / HTTP/1.0").starts_with("HTTP/1.0 429") && text("HEAD / HTTP/1.0").ends_with("\r\n\r\n"));
        assert!(
            text("POST /v1/x HTTP/1.1").contains("{\"error\":{\"message\":\"adit: \\\"slow\\\"\",\"type\":\"rate_limit_error\"")
        );
        assert!(text("\x16\x03").starts_with("HTTP/1.1 429"));
    }
}
