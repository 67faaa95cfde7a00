//! Asks Ollama for its version through the tunnel, at the local listener as any tool would.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const WITHIN: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const MOST: u64 = 64 * 1024;
const REQUEST: &[u8] = b"GET /api/version HTTP/1.0\r\nHost: localhost\r\n\r\n";

/// The answer of Ollama, or of what answered in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OllamaStatus {
    /// Ollama answers.
    Answers {
        /// Its version.
        version: String,
    },
    /// The answer is an error, of Ollama or of something before it.
    Fails {
        /// The HTTP status.
        status: u16,
        /// The text of the error.
        error: String,
    },
    /// The answer is not Ollama's.
    Unknown {
        /// The HTTP status, if there is one.
        status: Option<u16>,
    },
    /// There is no answer, or it is incomplete.
    Silent {
        /// Why.
        why: String,
    },
}

impl fmt::Display for OllamaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answers { version } => write!(f, "answers, version {version}"),
            Self::Fails { status, error } => write!(f, "{status}: {error}"),
            Self::Unknown { status: Some(status) } => {
                write!(f, "answers with status {status}, but not like Ollama")
            }
            Self::Unknown { status: None } => f.write_str("the answer is not HTTP"),
            Self::Silent { why } => f.write_str(why),
        }
    }
}

/// Asks Ollama at the listener `address`.
pub(super) async fn ask(address: &str) -> OllamaStatus {
    let exchange = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(REQUEST).await?;
        let mut answer = Vec::new();
        tcp.take(MOST).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let why = match tokio::time::timeout(WITHIN, exchange).await {
        Ok(Ok(answer)) if answer.is_empty() => {
            "the connection was closed without an answer".to_owned()
        }
        Ok(Ok(answer)) => return told(&String::from_utf8_lossy(&answer)),
        Ok(Err(e)) => format!("the connection was lost: {e}"),
        Err(_) => format!("no answer in {} s", WITHIN.as_secs()),
    };
    OllamaStatus::Silent { why }
}

fn told(answer: &str) -> OllamaStatus {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    match (status, body["version"].as_str(), body["error"].as_str()) {
        (Some(200), Some(version), _) => OllamaStatus::Answers { version: version.to_owned() },
        (Some(status), _, Some(error)) => OllamaStatus::Fails { status, error: error.to_owned() },
        (status, _, _) => OllamaStatus::Unknown { status },
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
                "answers with status 404, but not like Ollama",
            ),
            ("nonsense", "the answer is not HTTP"),
        ] {
            assert_eq!(told(answer).to_string(), says);
        }
    }

    #[test]
    fn programs_are_told_its_state_in_a_word() {
        let told = |answer| serde_json::to_value(told(answer)).expect("JSON");
        let version = told("HTTP/1.0 200 OK\r\n\r\n{\"version\":\"1\"}");
        assert_eq!(version, serde_json::json!({"state": "answers", "version": "1"}));
        let failed = told("HTTP/1.0 502 Bad Gateway\r\n\r\n{\"error\":\"no\"}");
        assert_eq!(failed, serde_json::json!({"state": "fails", "status": 502, "error": "no"}));
    }
}
