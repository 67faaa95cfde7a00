//! Who answers in the demo: the Ollama of this machine if it works, else the stand-in.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use common::machine::report::Failure;
use proto::wire::OLLAMA_PORT;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use server::Upstream;
use tokio::time::timeout;

use super::{http::Client, screen::Screen};
use crate::ollama::{Ollama, Options};

/// Ollama answers these requests at once; a slower server is not usable for the demo.
const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// How many models are tried.
const MODELS: usize = 16;

pub(super) struct Source {
    pub(super) address: SocketAddr,
    /// The model that is asked.
    pub(super) model: String,
    /// The stand-in, if one runs.
    pub(super) stand_in: Option<Ollama>,
}

/// What was found at an address.
enum Found {
    Nobody,
    WithoutModel { version: String },
    Model { version: String, name: String },
}

impl Source {
    /// Looks for an Ollama and prints what was found. `named` must be usable.
    pub(super) async fn choose(
        named: Option<SocketAddr>,
        only_stand_in: bool,
        screen: &Screen,
    ) -> Result<Self, Failure> {
        if only_stand_in {
            return Self::start_stand_in("As you asked, a stand-in takes Ollama's place.", screen)
                .await;
        }
        let address = named.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, OLLAMA_PORT)));
        let found =
            timeout(PROBE_WITHIN, probe(address)).await.ok().flatten().unwrap_or(Found::Nobody);
        match found {
            Found::Model { version, name } => {
                screen.talk(format_args!(
                    "Ollama {version} answers at {address}; its model {name} will be asked."
                ));
                Ok(Self { address, model: name, stand_in: None })
            }
            Found::Nobody if named.is_some() => Err(Failure::new(format!(
                "no Ollama answers at {address}"
            ))
            .hint("start it with `ollama serve`, or leave --ollama out: a stand-in will do")),
            Found::WithoutModel { .. } if named.is_some() => {
                Err(Failure::new(format!("the Ollama at {address} has no model that could answer"))
                    .hint("get one with `ollama pull`, or leave --ollama out: a stand-in will do"))
            }
            Found::WithoutModel { version } => {
                let why = format!(
                    "Ollama {version} answers at {address} but has no model that could, so a stand-in takes its place."
                );
                Self::start_stand_in(&why, screen).await
            }
            Found::Nobody => {
                Self::start_stand_in(
                    &format!("No Ollama answers at {address}, so a stand-in takes its place."),
                    screen,
                )
                .await
            }
        }
    }

    async fn start_stand_in(why: &str, screen: &Screen) -> Result<Self, Failure> {
        let options = Options { token_interval: Duration::from_millis(30), ..Options::default() };
        let model = options.model.clone();
        let ollama = Ollama::start(options)
            .await
            .map_err(|e| Failure::new("cannot start the stand-in for Ollama").source(e))?;
        screen.talk(format_args!("{why}\nIt is no model: it speaks HTTP as Ollama does and sends fixed words, one every 30 ms."));
        Ok(Self { address: ollama.addr(), model, stand_in: Some(ollama) })
    }

    /// A question whose answer people read.
    pub(super) fn question(&self) -> Value {
        let mut question = json!({ "model": self.model, "prompt": "Why is the sky blue? Answer in two sentences." });
        if self.stand_in.is_none() {
            question["options"] = json!({ "num_predict": 96 });
        }
        question
    }

    /// A question whose answer is the same each time, as far as the model can do that.
    pub(super) fn steady_question(&self, tokens: usize) -> Value {
        json!({
            "model": self.model,
            "prompt": "Name the colours of the rainbow, and something that has each of them.",
            "options": { "seed": 11, "temperature": 0, "num_predict": tokens },
        })
    }

    /// A question whose answer does not end during the demo.
    pub(super) fn endless_question(&self) -> Value {
        let tokens = if self.stand_in.is_some() { -1 } else { 4096 };
        json!({
            "model": self.model,
            "prompt": "Write a very long story about a river, from its spring to the sea.",
            "options": { "seed": 5, "num_predict": tokens },
        })
    }
}

/// Parses `--ollama` as `aditd` parses its upstream, so that both accept the same addresses.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let shown = text.parse::<Upstream>().map_err(|e| e.to_string())?.to_string();
    let address = shown.strip_prefix("http://").and_then(|address| address.parse().ok());
    address.ok_or_else(|| "Ollama speaks HTTP: write it as 127.0.0.1:PORT".to_owned())
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    #[serde(default)]
    size: u64,
    /// The remote host that runs the model, if it does not run here.
    #[serde(default)]
    remote_host: String,
}

#[derive(Deserialize)]
struct Details {
    /// Older versions do not report it, and are accepted.
    capabilities: Option<Vec<String>>,
}

/// Looks what is at the address; `None` if its answers are not Ollama's.
async fn probe(address: SocketAddr) -> Option<Found> {
    let mut client = Client::connect(address).await.ok()?;
    let Version { version } = parse(client.get("/api/version").await.ok()?)?;
    let Tags { mut models } = parse(client.get("/api/tags").await.ok()?)?;
    // The demo must not send anything to another machine.
    models.retain(|model| model.remote_host.is_empty());
    models.sort_by_key(|model| model.size);
    for model in models.into_iter().take(MODELS) {
        let shown = client.post("/api/show", &json!({ "model": model.name })).await.ok()?;
        // The smallest model is often one for embeddings, which can't generate; and some are
        // broken.
        let speaks = |details: Details| {
            details.capabilities.is_none_or(|able| able.iter().any(|a| a == "completion"))
        };
        if parse(shown).is_some_and(speaks) {
            return Some(Found::Model { version, name: model.name });
        }
    }
    Some(Found::WithoutModel { version })
}

fn parse<T: DeserializeOwned>((status, body): (hyper::StatusCode, bytes::Bytes)) -> Option<T> {
    status.is_success().then(|| serde_json::from_slice(&body).ok()).flatten()
}
