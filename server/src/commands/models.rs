//! The models that a device or a key may use, as commands show and change them.

use std::path::Path;

use common::machine::control;
use proto::{identity::Name, ollama::model::ModelPattern};

use crate::{
    doctor::model_names,
    policy::upstream::Upstream,
    running::{Answer, Request},
};

/// The list, a pattern in each line.
pub(super) fn listed(models: Option<&[ModelPattern]>, role: &Name) -> String {
    match models {
        Some(models) => models.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        None => format!("all models that its role `{role}` allows"),
    }
}

/// What it may do after a change, for people.
pub(super) fn allowed(models: &[ModelPattern], all: bool) -> String {
    if all {
        "use all models that its role allows".to_owned()
    } else {
        let models: Vec<_> = models.iter().map(ToString::to_string).collect();
        format!("use only: {}", quoted(&models))
    }
}

/// A note about those of `models` that Ollama does not have, as far as a running server knows where it
/// is.
pub(super) async fn missing(dir: &Path, models: &[ModelPattern]) -> Option<String> {
    let asked = control::ask::<_, Answer>(dir, &Request::Status).await;
    let Ok(Some(Answer::Status(status))) = asked else { return None };
    let upstream: Upstream = status.upstream.parse().ok()?;
    let known = model_names(&upstream).await?;
    let lacks = |model: &&ModelPattern| !known.iter().any(|name| model.means(name));
    let missing: Vec<_> = models.iter().filter(lacks).map(ToString::to_string).collect();
    let first = missing.first()?;
    let known = if known.is_empty() { "no model".to_owned() } else { known.join(", ") };
    let get = if first.contains('*') {
        String::new()
    } else {
        format!("; to get it: `ollama pull {first}`")
    };
    Some(format!("Note: Ollama here does not have {}. It has {known}{get}", quoted(&missing)))
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
