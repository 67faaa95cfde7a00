//! What a shell completes: the names of devices, keys, users, roles and models.

use std::{path::PathBuf, time::Duration};

use clap::Command;
use common::machine::{completions, owner::become_owner_of, process::unix_now};

use crate::{
    commands::beside::Beside,
    config::{Config, Flags, ServeFlags},
    doctor,
    state::{self, register::Register},
};

/// Somebody waits for it at a prompt.
const WITHIN: Duration = Duration::from_secs(1);

/// Makes each command complete what it takes.
#[must_use]
pub(crate) fn completed(command: Command) -> Command {
    command.mut_subcommands(|command| match command.get_name() {
        "device" => command.mut_subcommands(|command| {
            let command = completions::complete(command, "device", devices);
            let command = completions::complete(command, "role", roles);
            let command = completions::complete(command, "user", users);
            completions::complete(command, "models", models)
        }),
        "key" => command.mut_subcommands(|command| {
            let command = completions::complete(command, "key", keys);
            let command = completions::complete(command, "role", roles);
            let command = completions::complete(command, "user", users);
            completions::complete(command, "models", models)
        }),
        "user" => command.mut_subcommands(|command| {
            let command = completions::complete(command, "user", users);
            completions::complete(command, "role", roles)
        }),
        "audit" => {
            let command = completions::complete(command, "device", devices);
            completions::complete(command, "user", users)
        }
        // Its device is a new one.
        "invite" => {
            let command = completions::complete(command, "role", roles);
            completions::complete(command, "user", users)
        }
        _ => command,
    })
}

/// The places that the command line or the environment names.
fn flags() -> Flags {
    let of = |flag: &str, variable: &str| {
        let set = || std::env::var_os(variable).filter(|value| !value.is_empty());
        completions::named_dir(flag).or_else(|| set().map(PathBuf::from))
    };
    Flags {
        state_dir: of("--state-dir", "ADITD_STATE_DIR"),
        config: of("--config", "ADITD_CONFIG"),
    }
}

fn devices() -> Vec<String> {
    let devices = register().and_then(|register| register.devices().ok()).unwrap_or_default();
    devices.into_iter().map(|device| device.name.to_string()).collect()
}

fn keys() -> Vec<String> {
    let keys = register().and_then(|register| register.keys().ok()).unwrap_or_default();
    keys.into_iter().map(|key| key.name.to_string()).collect()
}

fn users() -> Vec<String> {
    let users = register().and_then(|register| register.users(unix_now()).ok());
    users.unwrap_or_default().into_iter().map(|user| user.name.to_string()).collect()
}

fn register() -> Option<Register> {
    let dir = flags().state_dir().ok()?;
    // A look must not make a state where there is none.
    if become_owner_of(&dir).is_err() || state::must_exist(&dir).is_err() {
        return None;
    }
    Register::open(&dir.join(Register::FILE)).ok()
}

fn roles() -> Vec<String> {
    let beside = soon(async { Beside::resolve(&flags()).await.ok() }).flatten();
    let roles = beside.iter().flat_map(Beside::roles);
    roles.map(ToString::to_string).collect()
}

/// The models that Ollama has here.
fn models() -> Vec<String> {
    let Ok(config) = Config::resolve(&flags(), &ServeFlags::default()) else { return Vec::new() };
    if become_owner_of(&config.state_dir).is_err() {
        return Vec::new();
    }
    soon(doctor::model_names(config.upstream())).flatten().unwrap_or_default()
}

/// What comes of it within a second.
fn soon<T>(work: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let result = runtime.block_on(async { tokio::time::timeout(WITHIN, work).await.ok() });
    runtime.shutdown_background();
    result
}
