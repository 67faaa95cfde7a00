//! Requests to Ollama's API through the tunnel, made at the local listener as any tool makes them.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The longest answer that is read, in bytes: a list of thousands of models.
const MOST: u64 = 4 << 20;

/// A complete answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiAnswer {
    /// The HTTP status, if the answer is HTTP.
    pub(crate) status: Option<u16>,
    /// The body; null if it is not JSON.
    pub(crate) body: Value,
}

impl ApiAnswer {
    /// The body, if the request succeeded.
    ///
    /// # Errors
    /// The error of Ollama, or of what answered in its place.
    pub(crate) fn success(self) -> Result<Value, String> {
        match (self.status, self.body["error"].as_str()) {
            (Some(200), None) => Ok(self.body),
            (Some(status), Some(error)) => Err(format!("{status}: {error}")),
            (Some(status), None) => {
                Err(format!("the answer has status {status}, but no JSON of Ollama's"))
            }
            (None, _) => Err("the answer is not HTTP".to_owned()),
        }
    }

    /// Reads an answer. If it is not HTTP, it has no status.
    pub(crate) fn parse(answer: &[u8]) -> Self {
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let (head, body) = end.map_or((answer, &[][..]), |at| (&answer[..at], &answer[at + 4..]));
        let head = String::from_utf8_lossy(head);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let is_http = head.starts_with("HTTP/");
        Self {
            status: status.filter(|_| is_http),
            body: serde_json::from_slice(body).unwrap_or_default(),
        }
    }
}

/// Makes a request at the listener `address`; with a body it is a POST. If this is cancelled, the
/// request is cancelled too.
///
/// # Errors
/// Why there is no complete answer.
pub(crate) async fn request(
    address: SocketAddr,
    path: &str,
    body: Option<&Value>,
    within: Duration,
) -> Result<ApiAnswer, String> {
    // With HTTP/1.0 the end of the connection is the end of the answer, which has no chunks.
    let request = match body {
        None => format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"),
        Some(body) => {
            let body = body.to_string();
            format!(
                "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        }
    };
    let exchange = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        tcp.take(MOST).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    match tokio::time::timeout(within, exchange).await {
        Ok(Ok(answer)) if answer.is_empty() => {
            Err("the connection was closed without an answer".to_owned())
        }
        Ok(Ok(answer)) => Ok(ApiAnswer::parse(&answer)),
        Ok(Err(e)) => Err(format!("the connection was lost: {e}")),
        Err(_) => Err(format!("no answer in {} s", within.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_body_or_why_there_is_none() {
        for (answer, is) in [
            ("HTTP/1.0 200 OK\r\n\r\n{\"a\":1}", Ok(1)),
            ("HTTP/1.0 404 Not Found\r\n\r\n{\"error\":\"no model\"}", Err("404: no model")),
            ("HTTP/1.0 200 OK\r\n\r\n{\"error\":\"late\"}", Err("200: late")),
            (
                "HTTP/1.0 500 Oops\r\n\r\noops",
                Err("the answer has status 500, but no JSON of Ollama's"),
            ),
            ("SSH-2.0 200 x\r\n", Err("the answer is not HTTP")),
            ("", Err("the answer is not HTTP")),
        ] {
            let body = ApiAnswer::parse(answer.as_bytes()).success().map(|body| body["a"].as_i64());
            assert_eq!(body, is.map(Some).map_err(str::to_owned), "{answer}");
        }
    }
}
