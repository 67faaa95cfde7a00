//! `adit status` without a name: every tunnel that runs.

use std::path::Path;

use common::machine::{
    control, format,
    report::{Exit, Failure, data, typed},
};
use serde_json::Value;

use super::{Show, with_ollama};
use crate::profile::{self, DEFAULT_NAME, ProfileDir};

/// Shows the named tunnel, or each one that runs.
///
/// # Errors
/// If none runs.
pub(crate) async fn run(state_dir: &Path, mut show: Show) -> Result<(), Failure> {
    if let Some(name) = show.name.take() {
        return super::run(&ProfileDir::new(state_dir, name), show).await;
    }
    let known = profile::known(state_dir)?;
    let mut running: Vec<_> =
        known.iter().map(|name| ProfileDir::new(state_dir, name.clone())).collect();
    running.retain(|profile_dir| control::is_running(&profile_dir.dir));
    running.sort_by_key(|profile_dir| profile_dir.name.as_str() != DEFAULT_NAME);
    match (running.as_slice(), known.as_slice()) {
        ([], [first, _, ..]) => Err(Failure::new("adit is not running")
            .hint(format!("start it with `adit up {first}`, or for all servers: `adit up --all`"))),
        ([], _) => super::run(&ProfileDir::choose(state_dir, None, "status")?, show).await,
        ([only], _) => super::run(only, show).await,
        (several, _) if show.watch => Err(Failure::new("several tunnels run")
            .hint(format!("choose one: `adit status {} --watch`", several[0].name))
            .exit(Exit::Usage)),
        (several, _) if show.json => print_json(several, show.ollama).await,
        (several, _) => print_text(several).await,
    }
}

async fn print_text(running: &[ProfileDir]) -> Result<(), Failure> {
    for (i, profile_dir) in running.iter().enumerate() {
        let gap = if i > 0 { "\n" } else { "" };
        data(format!("{gap}Server       {}", profile_dir.name))?;
        let show = Show { name: None, json: false, ollama: false, watch: false };
        if let Err(why) = super::run(profile_dir, show).await {
            data(format!("Tunnel       {}", why.what()))?;
        }
    }
    Ok(())
}

/// Prints the first as if it were the only one, with the `others` in it: what a program knows about
/// one tunnel stays true when another is added.
async fn print_json(running: &[ProfileDir], ollama: bool) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for profile_dir in running {
        let Some(mut status) = super::ask(profile_dir).await? else { continue };
        if ollama {
            status = with_ollama(profile_dir, status).await;
        }
        documents.push(serde_json::to_value(&status).map_err(Failure::from_error)?);
    }
    let mut documents = documents.into_iter();
    let Some(mut first) = documents.next() else {
        return Err(Failure::new("adit is not running").hint(typed("start it with `adit up`")));
    };
    first["others"] = Value::Array(documents.collect());
    data(format::to_json(&first)?)
}
