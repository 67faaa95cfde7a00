//! `adit ls`: lists what can be used now: servers, their models, and which of these are loaded.

use std::{net::SocketAddr, path::Path, time::Duration};

use clap::Args;
use common::machine::{
    json,
    report::{Failure, data, typed},
};
use proto::{human, identity::Name};
use serde::Serialize;
use serde_json::Value;

use crate::{
    commands::{
        api,
        status::{self, ServiceStatus, Status, TunnelStatus},
    },
    profile::{self, ProfileDir},
};

const WITHIN: Duration = Duration::from_secs(5);

/// Flags of `ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Show the server with this name [default: all]
    name: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The document that `--json` prints.
#[derive(Debug, Serialize)]
struct Document {
    servers: Vec<Listed>,
}

/// A server that this device is enrolled at.
#[derive(Debug, Serialize)]
struct Listed {
    server: Name,
    /// The address for applications, if its tunnel is up.
    url: Option<String>,
    /// Why it cannot be used.
    error: Option<String>,
    models: Vec<Model>,
    /// The services besides Ollama.
    services: Vec<ListedService>,
}

/// A service besides Ollama.
#[derive(Debug, Serialize)]
struct ListedService {
    name: Name,
    /// What it speaks.
    kind: Option<String>,
    /// The address for applications, if it is served here.
    url: Option<String>,
    /// Why it cannot be used.
    error: Option<String>,
    /// The models that it lists, if it speaks OpenAI's API.
    models: Vec<String>,
}

/// A model that Ollama lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Model {
    name: String,
    /// In bytes.
    size: u64,
    loaded: Option<Loaded>,
}

/// A model in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Loaded {
    /// How much of it is in the memory of the GPU, in per cent.
    gpu: u64,
    /// When Ollama unloads it, as Ollama writes it.
    until: String,
}

/// Lists servers and models.
///
/// # Errors
/// If this device is not enrolled at any server, or not at the named one.
pub(crate) async fn run(state_dir: &Path, ls: Ls) -> Result<(), Failure> {
    let names = match &ls.name {
        Some(name) => vec![name.clone()],
        None => profile::known(state_dir)?,
    };
    let profile_dirs: Vec<_> =
        names.into_iter().map(|name| ProfileDir::new(state_dir, name)).collect();
    if profile_dirs.is_empty() || ls.name.is_some() {
        // If this device is not enrolled, that is the better error.
        let profile_dir = ProfileDir::choose(state_dir, ls.name, "ls")?;
        if !profile_dir.is_enrolled()? {
            profile_dir.read()?;
        }
    }
    let mut listed = Vec::new();
    for profile_dir in &profile_dirs {
        listed.push(look(profile_dir).await?);
    }
    if ls.json {
        return json::answer(Document { servers: listed });
    }
    data(listed.iter().map(Listed::to_text).collect::<Vec<_>>().join("\n\n"))
}

async fn look(profile_dir: &ProfileDir) -> Result<Listed, Failure> {
    let mut listed = Listed {
        server: profile_dir.name.clone(),
        url: None,
        error: None,
        models: Vec::new(),
        services: Vec::new(),
    };
    let status = status::ask(profile_dir).await?;
    match status {
        None => {
            let start = format!("start it with `adit up{}`", profile_dir.argument());
            listed.error = Some(format!("not running: {}", typed(start)));
        }
        Some(status) => match (&status.tunnel, address(&status)) {
            (TunnelStatus::Down { why, .. } | TunnelStatus::Refused { why, .. }, _) => {
                listed.error = Some(why.clone());
            }
            (_, None) => listed.error = Some("it serves only programs of `adit run`".to_owned()),
            (_, Some(address)) => {
                listed.url = Some(format!("http://{address}"));
                for service in &status.services {
                    listed.services.push(ListedService::look(service).await);
                }
                match models(address).await {
                    Ok(models) => listed.models = models,
                    Err(why) => listed.error = Some(why),
                }
            }
        },
    }
    Ok(listed)
}

fn address(status: &Status) -> Option<SocketAddr> {
    status.listening.first()?.parse().ok()
}

async fn models(address: SocketAddr) -> Result<Vec<Model>, String> {
    let tags = api::request(address, "/api/tags", None, WITHIN).await?.success()?;
    // A role may list models without seeing which are loaded.
    let loaded = api::request(address, "/api/ps", None, WITHIN).await;
    let loaded = loaded.and_then(api::ApiAnswer::success).unwrap_or_default();
    Ok(joined(&tags, &loaded))
}

impl ListedService {
    async fn look(service: &ServiceStatus) -> Self {
        let mut listed = Self {
            name: service.name.clone(),
            kind: service.kind.clone(),
            url: service.url(),
            error: None,
            models: Vec::new(),
        };
        let address = service.listening.first().and_then(|address| address.parse().ok());
        match (service.kind.as_deref(), address) {
            (None, _) => {
                listed.error = Some("the server does not have it for this device".to_owned());
            }
            (_, None) if listed.url.is_none() => {
                listed.error = Some(format!(
                    "not served here: `adit up --service {}=localhost:PORT`",
                    service.name
                ));
            }
            (Some("openai"), Some(address)) => {
                let answer = api::request(address, "/v1/models", None, WITHIN).await;
                match answer.and_then(api::ApiAnswer::success) {
                    Ok(said) => listed.models = ids(&said),
                    Err(why) => listed.error = Some(why),
                }
            }
            _ => {}
        }
        listed
    }

    fn to_text(&self, server: &Name) -> String {
        let said = self.error.as_ref().or(self.url.as_ref());
        let mut lines =
            vec![format!("{server}, {}: {}", self.name, said.map_or("", String::as_str))];
        lines.extend(self.models.iter().map(|model| format!("  {model}")));
        lines.join("\n")
    }
}

/// The names in an answer to `/v1/models`.
fn ids(answer: &Value) -> Vec<String> {
    let all = answer["data"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect()
}

/// The models of `/api/tags`, with what `/api/ps` reports about them.
fn joined(tags: &Value, loaded: &Value) -> Vec<Model> {
    let of = |answer: &Value| answer["models"].as_array().cloned().unwrap_or_default();
    let loaded = of(loaded);
    let one = |model: &Value| {
        let name = model["name"].as_str()?;
        let size = model["size"].as_u64().unwrap_or_default();
        let loaded = loaded.iter().find(|loaded| loaded["name"] == name).map(|loaded| {
            let whole = loaded["size"].as_u64().unwrap_or_default().max(1);
            let gpu = loaded["size_vram"].as_u64().unwrap_or_default() * 100 / whole;
            let until = loaded["expires_at"].as_str().unwrap_or_default().to_owned();
            Loaded { gpu: gpu.min(100), until }
        });
        Some(Model { name: name.to_owned(), size, loaded })
    };
    of(tags).iter().filter_map(one).collect()
}

impl Listed {
    fn to_text(&self) -> String {
        let mut lines = vec![match (&self.url, &self.error) {
            (Some(url), None) => format!("{}: {url}", self.server),
            (_, Some(why)) => format!("{}: {why}", self.server),
            (None, None) => self.server.to_string(),
        }];
        if self.url.is_some() && self.error.is_none() && self.models.is_empty() {
            lines.push(
                "  no models: pull one on the box, for example `ollama pull llama3.2`".to_owned(),
            );
        }
        let width = self.models.iter().map(|model| model.name.chars().count()).max().unwrap_or(0);
        lines.extend(self.models.iter().map(|model| model.to_text(width)));
        lines.extend(self.services.iter().map(|service| service.to_text(&self.server)));
        lines.join("\n")
    }
}

impl Model {
    fn to_text(&self, width: usize) -> String {
        let text = format!("  {:width$}  {:>9}", self.name, human::size(self.size));
        match &self.loaded {
            Some(Loaded { gpu, .. }) => format!("{text}  loaded, {gpu} % on the GPU"),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn models_are_listed_with_their_size_and_whether_they_are_loaded() {
        let tags = json!({"models": [
            {"name": "llama3.2:latest", "size": 2_019_393_189u64},
            {"name": "qwen3:8b", "size": 5_225_388_164u64},
            {"size": 1},
        ]});
        let loaded = json!({"models": [
            {"name": "qwen3:8b", "size": 6_000, "size_vram": 4_500, "expires_at": "2026-11-27T20:00:00Z"},
        ]});
        let models = joined(&tags, &loaded);
        let texts: Vec<_> = models.iter().map(|model| model.to_text(15)).collect();
        assert_eq!(
            texts,
            [
                "  llama3.2:latest    1.9 GiB",
                "  qwen3:8b           4.9 GiB  loaded, 75 % on the GPU"
            ]
        );
        assert_eq!(joined(&json!("nonsense"), &json!({"models": 7})), []);
        assert_eq!(joined(&tags, &Value::Null).len(), 2);
    }
}
