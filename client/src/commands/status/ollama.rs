//! Asks Ollama through the tunnel for its version and its models, at the local listener as any tool
//! would.

use std::{net::SocketAddr, time::Duration};

use proto::human;

use serde::{Deserialize, Serialize};

use crate::commands::api::{self, ApiAnswer};

const WITHIN: Duration = Duration::from_secs(3);

/// The answer of Ollama, or of what answered in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum OllamaStatus {
    Answers {
        version: String,
        /// How many models it has; absent if this device may not list them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        models: Option<u64>,
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
    Silent { why: String },
}

impl OllamaStatus {
    /// In words that follow the word Ollama. `server` is what the server is called here.
    pub(in crate::commands) fn text(&self, server: &str) -> String {
        match self {
            Self::Answers { version, models: None } => format!("{version} on {server}"),
            Self::Answers { version, models: Some(models) } => {
                format!("{version} on {server}, {}", human::count(*models, "model"))
            }
            Self::Fails { status, error } => format!("{status}: {error}"),
            Self::Unknown { status: Some(status) } => {
                format!("answers with status {status}, but not like Ollama")
            }
            Self::Unknown { status: None } => "the answer is not HTTP".to_owned(),
            Self::Silent { why } => why.clone(),
        }
    }
}

/// Asks Ollama at the listener `address` for its version and, if it answers, for its models. Takes
/// at most six seconds.
pub(in crate::commands) async fn ask(address: &str) -> OllamaStatus {
    let mut said = ask_version(address).await;
    if let (OllamaStatus::Answers { models, .. }, Ok(address)) = (&mut said, address.parse()) {
        *models = count_models(address).await;
    }
    said
}

/// Asks Ollama at the listener `address` for its version only.
pub(in crate::commands) async fn ask_version(address: &str) -> OllamaStatus {
    let Ok(address) = address.parse() else { return OllamaStatus::Unknown { status: None } };
    match api::request(address, "/api/version", None, WITHIN).await {
        Ok(answer) => told(&answer),
        Err(why) => OllamaStatus::Silent { why },
    }
}

async fn count_models(address: SocketAddr) -> Option<u64> {
    let answer = api::request(address, "/api/tags", None, WITHIN).await.ok()?;
    answer.success().ok()?["models"].as_array().map(|models| models.len() as u64)
}

fn told(answer: &ApiAnswer) -> OllamaStatus {
    let ApiAnswer { status, body } = answer;
    match (*status, body["version"].as_str(), body["error"].as_str()) {
        (Some(200), Some(version), _) => {
            OllamaStatus::Answers { version: version.to_owned(), models: None }
        }
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
            ("HTTP/1.0 200 OK\r\n\r\n{\"version\":\"0.12.3\"}", "0.12.3 on gpu"),
            ("HTTP/1.0 502 Bad Gateway\r\n\r\n{\"error\":\"adit: no\"}", "502: adit: no"),
            (
                "HTTP/1.0 404 Not Found\r\n\r\nnothing",
                "answers with status 404, but not like Ollama",
            ),
            ("nonsense", "the answer is not HTTP"),
        ] {
            assert_eq!(told(&ApiAnswer::parse(answer.as_bytes())).text("gpu"), says);
        }
    }

    #[test]
    fn the_number_of_models_is_told_where_it_is_known() {
        let said = |models| OllamaStatus::Answers { version: "1".to_owned(), models }.text("gpu");
        assert_eq!(said(Some(1)), "1 on gpu, 1 model");
        assert_eq!(said(Some(12)), "1 on gpu, 12 models");
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
