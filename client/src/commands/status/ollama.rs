//! What Ollama says through the tunnel: asked at the local listener, as any tool would.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const WITHIN: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const MOST: u64 = 64 * 1024;
const REQUEST: &[u8] = b"GET /api/version HTTP/1.0\r\nHost: localhost\r\n\r\n";

/// What the listener at `address` answers for Ollama, in words.
pub(super) async fn ask(address: &str) -> String {
    let exchange = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(REQUEST).await?;
        let mut answer = Vec::new();
        tcp.take(MOST).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(WITHIN, exchange).await {
        Ok(Ok(answer)) => told(&String::from_utf8_lossy(&answer)),
        Ok(Err(e)) => format!("the request was cut: {e}"),
        Err(_) => format!("no answer in {} s", WITHIN.as_secs()),
    }
}

fn told(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).unwrap_or("none");
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    match (body["version"].as_str(), body["error"].as_str()) {
        (Some(version), _) => format!("answers, version {version}"),
        (None, Some(error)) => format!("{status}: {error}"),
        (None, None) => format!("answers with status {status}, and is not known as an Ollama"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_by_its_version_or_its_error() {
        for (answer, says) in [
            ("HTTP/1.0 200 OK\r\n\r\n{\"version\":\"0.12.3\"}", "answers, version 0.12.3"),
            ("HTTP/1.0 502 Bad Gateway\r\n\r\n{\"error\":\"adit: no\"}", "502: adit: no"),
            (
                "HTTP/1.0 404 Not Found\r\n\r\nnothing",
                "answers with status 404, and is not known as an Ollama",
            ),
            ("", "answers with status none, and is not known as an Ollama"),
        ] {
            assert_eq!(told(answer), says);
        }
    }
}
