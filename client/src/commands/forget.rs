//! `adit forget`: deletes the profile of a server.

use std::{fs, io, path::Path};

use clap::Args;
use common::machine::{
    control,
    files::FileError,
    json,
    report::{Exit, Failure, say},
};
use proto::{device_key::KeyUri, identity::Name};
use serde::Serialize;

use crate::{
    commands::in_use,
    profile::{DeviceKey, IDENTITY, Profile, ProfileDir},
    settings::SettingsFile,
    ssh::ask,
};

/// Flags of `forget`.
#[derive(Debug, Args)]
pub(crate) struct Forget {
    /// The server to forget
    name: Name,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A server that this device does not know any more.
#[derive(Serialize)]
struct Forgotten<'a> {
    forgotten: &'a Name,
    /// What the server calls this device; null if that could not be read.
    device: Option<&'a Name>,
    /// The key that stays in a token, or null.
    key_left: Option<KeyUri>,
}

/// Deletes what is stored for a server, with this device's key for it.
///
/// # Errors
/// If there is no such server, if it is in use, or if nobody says yes.
pub(crate) async fn run(
    state_dir: &Path,
    flags: Forget,
    file: &SettingsFile,
) -> Result<(), Failure> {
    let profile_dir = ProfileDir::new(state_dir, flags.name);
    let profile = match profile_dir.read() {
        // A damaged profile can be forgotten, too.
        Err(_) if profile_dir.is_enrolled()? => None,
        read => Some(read?),
    };
    let what = format!("cannot forget the server `{}` now", profile_dir.name);
    let lock = in_use::take(&profile_dir, &what, control::lock).await?;
    if !flags.yes {
        ask_first(&profile_dir.name).await?;
    }
    remove(&profile_dir.dir)?;
    drop(lock);
    let key = profile.as_ref().map(Profile::key).filter(|key| key.left_behind().is_some());
    if flags.json {
        let device = profile.as_ref().map(|profile| &profile.enrolled.device);
        let key_left = key.as_ref().map(DeviceKey::uri);
        json::answer(Forgotten { forgotten: &profile_dir.name, device, key_left })?;
    }
    let left = key.and_then(|key| key.left_behind());
    say(match &left {
        None => format!(
            "Forgot the server `{}`: this device's key for it is deleted.",
            profile_dir.name
        ),
        Some(_) => format!("Forgot the server `{}`.", profile_dir.name),
    });
    left.into_iter().for_each(say);
    say(match profile {
        Some(profile) => format!(
            "The server still knows this device. To end that, run there: `aditd device revoke {}`",
            profile.enrolled.device
        ),
        None => "The server may still know this device: run there `aditd device list`".to_owned(),
    });
    if file.has_table(&profile_dir.name) {
        say(format!("The settings file still has a table [servers.{}].", profile_dir.name));
    }
    Ok(())
}

/// Asks the person at the terminal.
async fn ask_first(name: &Name) -> Result<(), Failure> {
    if !ask::somebody_is_there() {
        return Err(Failure::new(format!("the server `{name}` is not forgotten"))
            .source("there is no terminal at which to ask whether that is meant")
            .hint(format!("to forget it without a question: `adit forget {name} --yes`"))
            .exit(Exit::Usage));
    }
    let question =
        format!("Forget the server `{name}`? Its key is deleted on this device (yes/no): ");
    match ask::yes(&question).await {
        true => Ok(()),
        false => Err(Failure::new(format!("the server `{name}` is not forgotten"))
            .source("the answer was not yes")),
    }
}

/// Removes the directory of a profile: the key first, in case the rest cannot be removed.
pub(super) fn remove(dir: &Path) -> Result<(), FileError> {
    let identity = dir.join(IDENTITY);
    match fs::remove_file(&identity) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(FileError::io("remove", identity)(e));
        }
        _ => {}
    }
    fs::remove_dir_all(dir).map_err(FileError::io("remove", dir))
}
