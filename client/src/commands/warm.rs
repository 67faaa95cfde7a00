//! `adit warm`: makes Ollama load a model before it is needed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;
use common::machine::{
    json,
    process::parse_time,
    progress::Progress,
    report::{Failure, data},
};
use proto::{human, identity::Name};
use serde::Serialize;
use serde_json::json;

use crate::{
    commands::{
        api,
        run::{Lent, lease},
    },
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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A model that is loaded.
#[derive(Serialize)]
struct Loaded<'a> {
    /// The server's name on this device.
    server: &'a Name,
    model: &'a str,
    /// How long loading took, in seconds.
    seconds: f64,
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
    let waits = "Loading begins when there is one";
    let Lent { address, stream: _lease, .. } =
        lease(state_dir, config, &profile_dir, None, waits).await?;
    // A request without a prompt only loads the model.
    let mut body = json!({"model": warm.model, "stream": false});
    if let Some(keep) = warm.keep {
        body["keep_alive"] = format!("{}s", keep.as_secs()).into();
    }
    let progress = Progress::show(&format!("loading {}", warm.model));
    let began = Instant::now();
    let answer = api::request(address, "/api/generate", Some(&body), WITHIN).await;
    drop(progress);
    let status = answer.as_ref().ok().and_then(|answer| answer.status);
    match answer.and_then(api::ApiAnswer::success) {
        Ok(_) if warm.json => json::answer(Loaded {
            server: &profile_dir.name,
            model: &warm.model,
            seconds: began.elapsed().as_secs_f64(),
        }),
        Ok(_) => data(format!("{} is loaded, after {}", warm.model, human::time(began.elapsed()))),
        Err(why) => Err(not_loaded(&warm.model, status, why, &profile_dir)),
    }
}

fn not_loaded(model: &str, status: Option<u16>, why: String, profile_dir: &ProfileDir) -> Failure {
    let failure = Failure::new(format!("cannot load `{model}`"));
    let list = format!("to see which models there are: `adit ls{}`", profile_dir.argument());
    match status {
        Some(403) => {
            let device = profile_dir.read().map(|profile| profile.enrolled.device.to_string());
            let device = device.unwrap_or_else(|_| "NAME".to_owned());
            failure
                .source(why.trim_start_matches("403: adit: "))
                .hint(format!(
                    "to see what this device may use, on the box: `aditd device show {device}`"
                ))
                .hint(list)
        }
        Some(404) => failure
            .source(format!("Ollama on the box has no such model ({why})"))
            .hint(list)
            .hint(format!("to get it, on the box: `ollama pull {model}`")),
        _ => failure.source(why).hint(list),
    }
}
