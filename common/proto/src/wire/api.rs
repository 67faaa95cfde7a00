//! Whose routes a service that speaks HTTP has.

use serde::{Deserialize, Serialize};

/// Whose routes a service that speaks HTTP has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Those that vLLM, the server of llama.cpp and LM Studio have.
    OpenAi,
    /// Those of Ollama. Also the API of a service that another version knows and this one does not.
    #[default]
    #[serde(other)]
    Ollama,
}

impl Api {
    pub(crate) const ALL: [Self; 2] = [Self::Ollama, Self::OpenAi];

    /// Whether it is Ollama's.
    pub fn is_ollama(&self) -> bool {
        *self == Self::Ollama
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_that_is_not_known_is_taken_for_ollamas() {
        let read = |text: &str| serde_json::from_str::<Api>(text).expect(text);
        assert_eq!(read("\"openai\""), Api::OpenAi);
        assert_eq!(read("\"ollama\""), Api::Ollama);
        assert_eq!(read("\"another\""), Api::Ollama);
        for api in Api::ALL {
            assert_eq!(read(&serde_json::to_string(&api).expect("text")), api);
        }
    }
}
