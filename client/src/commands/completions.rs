//! What a shell completes: the names of servers and of their models.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::Command;
use common::machine::{completions, control, owner::become_owner_of};
use proto::identity::Name;

use crate::{
    commands::{
        api,
        status::{ControlRequest, Status},
    },
    profile::{self, ProfileDir},
    settings::SettingsFile,
};

/// Somebody waits for it at a prompt.
const WITHIN: Duration = Duration::from_secs(1);
/// The commands whose `name` is not that of a server. That of the others is `name`, `server`,
/// `old`, `target` or `targets`.
const NOT_A_SERVER: [&str; 1] = ["enroll"];

/// Makes each command complete what it takes.
#[must_use]
pub(crate) fn completed(command: Command) -> Command {
    command.mut_subcommands(|command| {
        let command = completed(command);
        if NOT_A_SERVER.contains(&command.get_name()) {
            return command;
        }
        let command = ["name", "server", "old", "target", "targets"]
            .into_iter()
            .fold(command, |command, id| completions::complete(command, id, servers));
        completions::complete(command, "model", models)
    })
}

fn state_dir() -> Option<PathBuf> {
    let dir = completions::named_dir("--state-dir")
        .or_else(|| std::env::var_os("ADIT_STATE_DIR").map(|dir: OsString| dir.into()))
        .or_else(|| {
            let named = completions::named_dir("--config")
                .or_else(|| std::env::var_os("ADIT_CONFIG").map(Into::into));
            SettingsFile::read(named.as_deref()).ok()?.state_dir
        })
        .or_else(|| profile::default_dir().ok())?;
    become_owner_of(&dir).ok()?;
    Some(dir)
}

fn servers() -> Vec<String> {
    let known = state_dir().and_then(|dir| profile::known(&dir).ok()).unwrap_or_default();
    known.iter().map(Name::to_string).collect()
}

/// The models that the servers have whose tunnel is up.
fn models() -> Vec<String> {
    let Some(dir) = state_dir() else { return Vec::new() };
    let names = profile::known(&dir).unwrap_or_default();
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let look = async {
        let mut models = Vec::new();
        for name in names {
            models.extend(of_server(&ProfileDir::new(&dir, name)).await.unwrap_or_default());
        }
        models
    };
    let mut models =
        runtime.block_on(async { tokio::time::timeout(WITHIN, look).await }).unwrap_or_default();
    runtime.shutdown_background();
    models.sort();
    models.dedup();
    models
}

async fn of_server(profile_dir: &ProfileDir) -> Option<Vec<String>> {
    let status: Status = control::ask(&profile_dir.dir, &ControlRequest::Status).await.ok()??;
    let address = status.listening.first()?.parse().ok()?;
    let tags = api::request(address, "/api/tags", None, WITHIN).await.ok()?.success().ok()?;
    let models = tags["models"].as_array()?.iter();
    Some(models.filter_map(|model| Some(model["name"].as_str()?.to_owned())).collect())
}
