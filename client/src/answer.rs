//! What the client itself answers an application when the server can't: in Ollama's own shape, so that any tool shows it.

use common::{splice, wire::Code};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// The HTTP status.
    pub status: Status,
    /// Why, and what to do.
    pub message: String,
}

/// The statuses that we use (RFC 9110 section 15.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The service on the server failed.
    BadGateway,
    /// There is no way to the server now.
    Unavailable,
    /// The service on the server is silent.
    GatewayTimeout,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::BadGateway => "502 Bad Gateway",
            Self::Unavailable => "503 Service Unavailable",
            Self::GatewayTimeout => "504 Gateway Timeout",
        }
    }
}

impl ErrorAnswer {
    /// What a connection that is held is told when `adit` stops.
    pub fn stopping() -> Self {
        Self {
            status: Status::Unavailable,
            message: "adit: it was told to stop on this computer: start it with `adit up`".to_owned(),
        }
    }

    /// What a stream that was reset with `code` means to the application.
    pub fn for_code(code: Option<Code>) -> Self {
        let status = match code {
            Some(Code::Revoked | Code::Expired | Code::ShuttingDown | Code::Busy | Code::Superseded | Code::TooManyStreams) => {
                Status::Unavailable
            }
            Some(Code::UpstreamSilent) => Status::GatewayTimeout,
            _ => Status::BadGateway,
        };
        Self { status, message: format!("adit: {}", code.unwrap_or(Code::Cut).sentence()) }
    }

    /// The answer's bytes for a request that begins with `head`; `None` if that is no HTTP/1.x request.
    pub fn render(&self, head: &[u8]) -> Option<Vec<u8>> {
        let Request { method, target, version } = Request::parse(head)?;
        let message = serde_json::Value::from(self.message.as_str());
        // Ollama answers in OpenAI's shape below /v1.
        let body = if target.starts_with(b"/v1/") {
            format!("{{\"error\":{{\"message\":{message},\"type\":\"api_error\",\"param\":null,\"code\":null}}}}")
        } else {
            format!("{{\"error\":{message}}}")
        };
        let date = httpdate::fmt_http_date(std::time::SystemTime::now());
        let mut answer = format!(
            "{version} {}\r\nContent-Type: application/json; charset=utf-8\r\nDate: {date}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.status.line(),
            body.len()
        );
        if method != b"HEAD" {
            answer.push_str(&body);
        }
        Some(answer.into_bytes())
    }

    /// Answers the request that begins with `head` and closes; what is no HTTP is aborted instead.
    pub async fn send(&self, mut tcp: TcpStream, head: &[u8]) {
        match self.render(head) {
            Some(answer) if tcp.write_all(&answer).await.is_ok() => splice::drain(tcp).await,
            _ => splice::abort(tcp),
        }
    }
}

/// A request line (RFC 9112 section 3).
struct Request<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: &'static str,
}

impl<'a> Request<'a> {
    fn parse(head: &'a [u8]) -> Option<Self> {
        let line = head.split(|b| *b == b'\n').next()?;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut words = line.split(|b| *b == b' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next());
        let version = match version {
            Some(b"HTTP/1.0") => "HTTP/1.0",
            // A line too long to be remembered whole is still one.
            Some(b"HTTP/1.1") | None => "HTTP/1.1",
            Some(v) if b"HTTP/1.1".starts_with(v) => "HTTP/1.1",
            Some(_) => return None,
        };
        let is_method = !method.is_empty() && method.iter().all(u8::is_ascii_uppercase);
        (is_method && matches!(target.first(), Some(b'/' | b'*' | b'h'))).then_some(Self { method, target, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(head: &str) -> Option<String> {
        let answer = ErrorAnswer { status: Status::Unavailable, message: "adit: no \"tunnel\"".into() };
        answer.render(head.as_bytes()).map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn an_error_is_ollamas_json_with_its_length_and_the_connection_closes() {
        let answer = render("POST /api/chat HTTP/1.1\r\n").expect("http");
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, r#"{"error":"adit: no \"tunnel\""}"#);
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())) && head.contains("Connection: close"), "{head}");
    }

    #[test]
    fn head_gets_no_body_http_1_0_its_own_version_and_v1_openais_shape() {
        let head = render("HEAD / HTTP/1.1\r\n").expect("http");
        assert!(head.ends_with("\r\n\r\n") && head.contains("Content-Length: 31"), "{head}");
        assert!(render("GET / HTTP/1.0\n").expect("http").starts_with("HTTP/1.0 503"));
        let v1 = render("POST /v1/chat/completions HTTP/1.1\r\n").expect("http");
        assert!(v1.contains(r#"{"error":{"message":"adit: no \"tunnel\"","type":"api_error""#), "{v1}");
    }

    #[test]
    fn what_is_no_http_gets_no_http() {
        for bad in ["", "\x16\x03\x01\x02", "hello", "SSH-2.0-OpenSSH_9\r\n", "PRI * HTTP/2.0\r\n", "get / HTTP/1.1\r\n"] {
            assert_eq!(render(bad), None, "{bad}");
        }
        assert!(render(&format!("GET /{}", "x".repeat(9000))).is_some(), "a line longer than what is remembered");
    }
}
