//! `adit rename`: gives a server another name on this device.

use std::{fs, path::Path};

use clap::Args;
use common::machine::{
    control,
    files::FileError,
    json,
    report::{Exit, Failure, say, typed},
};
use proto::identity::Name;
use serde::Serialize;

use crate::{
    commands::{in_use, list::OneServer},
    profile::ProfileDir,
    settings::SettingsFile,
};

/// Flags of `rename`.
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// The name that the server has
    old: Name,
    /// The name that it gets
    new: Name,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A server with another name.
#[derive(Serialize)]
struct Renamed<'a> {
    /// The name that it had.
    before: &'a Name,
    #[serde(flatten)]
    now: OneServer,
}

/// Renames a server. The server itself does not know the name.
///
/// # Errors
/// If there is no such server, if it is in use, or if the new name is taken.
pub(crate) async fn run(
    state_dir: &Path,
    flags: &Rename,
    file: &SettingsFile,
) -> Result<(), Failure> {
    let from = ProfileDir::new(state_dir, flags.old.clone());
    let to = ProfileDir::new(state_dir, flags.new.clone());
    if !from.is_enrolled()? {
        // The error says which servers there are.
        from.read()?;
    }
    refuse_taken(&from, &to)?;
    let what = format!("cannot rename the server `{}` now", from.name);
    let _lock = in_use::take(&from, &what, control::lock).await?;
    fs::rename(&from.dir, &to.dir).map_err(FileError::io("rename", &from.dir))?;
    let (old, new) = (&from.name, &to.name);
    if flags.json {
        json::answer(Renamed { before: old, now: OneServer::look(to.clone()).await })?;
    }
    say(typed(format!("The server `{old}` is now called `{new}`: `adit up{}`", to.argument())));
    if file.has_table(old) {
        say(format!(
            "Its settings stay behind: in the settings file, rename [servers.{old}] to [servers.{new}]."
        ));
    }
    Ok(())
}

fn refuse_taken(from: &ProfileDir, to: &ProfileDir) -> Result<(), Failure> {
    let taken = |why: String| {
        Failure::new(format!("the name `{}` is taken", to.name)).source(why).exit(Exit::Usage)
    };
    if from.name == to.name {
        return Err(taken("it is the name that this server has".to_owned())
            .hint("to see all names: `adit list`"));
    }
    if to.is_enrolled()? {
        return Err(taken("another server has it".to_owned())
            .hint("choose another name; to see those that are taken: `adit list`"));
    }
    if to.dir.try_exists().map_err(FileError::io("read", &to.dir))? {
        return Err(taken(format!(
            "an enrollment under it was begun: there is `{}`",
            to.dir.display()
        ))
        .hint("choose another name, or finish that enrollment first")
        .hint(format!("if nothing of it is needed: `rm -r '{}'`", to.dir.display())));
    }
    Ok(())
}
