//! `adit warm`: makes Ollama load a model before it is needed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;
use common::machine::{
    process::parse_time,
    progress::Progress,
    report::{Failure, data},
};
use proto::{human, identity::Name};
use serde_json::json;

use crate::{
    commands::{api, run::lease},
    profile::ProfileDir,
};

/// How long loading may take: a large model from a slow disk takes minutes.
const WITHIN: Duration = Duration::from_secs(30 * 60);

/// Flags of `warm`.
#[derive(Debug, Args)]
pub(crate) struct Warm {
    /// The model, as `ollama list` shows it
    model: String,
    /// Use the server with this name [default: the only server, or the one called `default`]
    #[arg(long, value_name = "NAME")]
    pub(crate) server: Option<Name>,
    /// Ask Ollama to keep the model in memory this long without a request [default: Ollama's own]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    keep: Option<Duration>,
}

/// Loads the model.
///
/// # Errors
/// If there is no tunnel, or Ollama does not load it.
pub(crate) async fn run(
    state_dir: &Path,
    config: Option<&Path>,
    profile_dir: ProfileDir,
    warm: Warm,
) -> Result<(), Failure> {
    let (address, _lease) = lease(state_dir, config, &profile_dir).await?;
    // A request without a prompt only loads the model.
    let mut body = json!({"model": warm.model, "stream": false});
    if let Some(keep) = warm.keep {
        body["keep_alive"] = format!("{}s", keep.as_secs()).into();
    }
    let progress = Progress::show(&format!("loading {}", warm.model));
    let began = Instant::now();
    let answer = api::request(address, "/api/generate", Some(&body), WITHIN).await;
    drop(progress);
    match answer.and_then(api::ApiAnswer::success) {
        Ok(_) => data(format!("{} is loaded, after {}", warm.model, human::time(began.elapsed()))),
        Err(why) => Err(Failure::new(format!("cannot load `{}`", warm.model))
            .source(why)
            .hint(format!("to see which models there are: `adit ls{}`", profile_dir.argument()))),
    }
}
