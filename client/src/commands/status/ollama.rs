//! Asks Ollama for its version through the tunnel, at the local listener as any tool would.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::commands::api::{self, ApiAnswer};

const WITHIN: Duration = Duration::from_secs(3);

/// The answer of Ollama, or of what answered in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum OllamaStatus {
    Answers {
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
pub(in crate::commands) async fn ask(address: &str) -> OllamaStatus {
    let Ok(address) = address.parse() else { return OllamaStatus::Unknown { status: None } };
    match api::request(address, "/api/version", None, WITHIN).await {
        Ok(answer) => told(&answer),
        Err(why) => OllamaStatus::Silent { why },
    }
}

fn told(answer: &ApiAnswer) -> OllamaStatus {
    let ApiAnswer { status, body } = answer;
    match (*status, body["version"].as_str(), body["error"].as_str()) {
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
            assert_eq!(told(&ApiAnswer::parse(answer.as_bytes())).to_string(), says);
        }
    }

    #[test]
    fn programs_are_told_its_state_in_a_word() {
        let told = |answer: &str| {
            serde_json::to_value(told(&ApiAnswer::parse(answer.as_bytes()))).expect("JSON")
        };
        let version = told("HTTP/1.0 200 OK\r\n\r\n{\"version\":\"1\"}");
        assert_eq!(version, serde_json::json!({"state": "answers", "version": "1"}));
        let failed = told("HTTP/1.0 502 Bad Gateway\r\n\r\n{\"error\":\"no\"}");
        assert_eq!(failed, serde_json::json!({"state": "fails", "status": 502, "error": "no"}));
    }
}
