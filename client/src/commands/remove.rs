//! `adit remove`: undoes what `adit up USER@HOST` has done on a box, and forgets its server here.

use std::path::Path;

use clap::Args;
use common::machine::{
    control, json,
    report::{Exit, Failure, say, typed},
};
use proto::identity::Name;
use serde::Serialize;

use crate::{
    commands::{
        enroll::interrupted,
        forget, in_use,
        up::bootstrap::{
            Target, enrolled_at,
            on_box::{self, RemovedThere, no_login},
        },
    },
    profile::{Profile, ProfileDir},
    settings::SshFlag,
    ssh::{Remote, SshTarget, ask},
};

/// Flags of `remove`.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The server with this name, or the login at its box
    #[arg(value_name = "NAME|USER@HOST")]
    target: Option<Target>,
    /// Do it without asking
    #[arg(short, long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ssh: SshFlag,
}

/// What was removed.
#[derive(Serialize)]
struct Removed<'a> {
    /// The login at the box.
    login: &'a str,
    /// Whether the server was removed with its state: not if adit has not installed it, or others use
    /// the state.
    removed: bool,
    /// The files and directories that were removed there, and the line of the crontab.
    paths: &'a [String],
    /// What is left there, in words.
    left: &'a [String],
    /// The server that this device does not know any more.
    forgotten: Option<&'a Name>,
}

/// Removes aditd from a box, and this device's enrollment there.
///
/// # Errors
/// If there is no login, or a tunnel to the server is open here.
pub(crate) async fn run(state_dir: &Path, flags: Remove) -> Result<(), Failure> {
    let (profile_dir, mut login) = chosen(state_dir, flags.target.as_ref(), "remove")?;
    if let Some(client) = flags.ssh.ssh_client {
        login.client_now = Some(client);
    }
    // A running tunnel would go on with a server that is gone.
    let _lock = match &profile_dir {
        Some(dir) => {
            let what = format!("cannot remove the server `{}` now", dir.name);
            Some(in_use::take(dir, &what, control::lock).await?)
        }
        None => None,
    };
    agree(&login, profile_dir.as_ref(), flags.yes).await?;
    let there = tokio::select! {
        done = on_the_box(&login) => done?,
        () = interrupted(&login) => {
            return Err(Failure::new("interrupted").hint("run the same command again"));
        }
    };
    // While there is a state, this device is enrolled there.
    let (forgotten, kept) = match there.state {
        true => (profile_dir, None),
        false => (None, profile_dir),
    };
    if let Some(dir) = &forgotten {
        forget::remove(&dir.dir)?;
    }
    if flags.json {
        json::answer(Removed {
            login: &login.to_string(),
            removed: there.state,
            paths: &there.removed,
            left: &there.left,
            forgotten: forgotten.as_ref().map(|dir| &dir.name),
        })?;
    }
    if let Some(dir) = forgotten {
        say(format!("The server `{}` is forgotten on this computer.", dir.name));
    }
    if let Some(dir) = kept {
        say(typed(format!(
            "This computer stays enrolled at the server `{0}`. To forget it here: `adit forget {0}`",
            dir.name
        )));
    }
    Ok(())
}

/// The server that is named for the command `verb`, if this device is enrolled there, and the login at
/// its box.
pub(super) fn chosen(
    state_dir: &Path,
    target: Option<&Target>,
    verb: &str,
) -> Result<(Option<ProfileDir>, SshTarget), Failure> {
    let name = match target {
        Some(Target::Login(login)) => {
            let known = enrolled_at(state_dir, login)?;
            let stored = known.as_ref().and_then(|dir| dir.read().ok()?.ssh);
            return Ok((known, stored.unwrap_or_else(|| login.clone())));
        }
        Some(Target::Server(name)) => Some(name.clone()),
        None => None,
    };
    let dir = ProfileDir::choose(state_dir, name, verb)?;
    let Profile { ssh, .. } = dir.read()?;
    let login = ssh.ok_or_else(|| {
        Failure::new(format!("this device has not enrolled at `{}` over SSH", dir.name))
            .source("so it knows no login at its box")
            .hint(format!("name the login: `adit {verb} USER@HOST`"))
            .exit(Exit::Usage)
    })?;
    Ok((Some(dir), login))
}

async fn agree(
    login: &SshTarget,
    profile_dir: Option<&ProfileDir>,
    yes: bool,
) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let here = profile_dir.map_or_else(String::new, |dir| {
        format!(" The server `{}` is forgotten on this computer.", dir.name)
    });
    say(format!(
        "On {login}, adit will stop the aditd that it has put there, and remove it with its state: its keys, \
         its audit log, and the enrollment of every device. Answers that run there are cut after 3 s.{here}"
    ));
    if !ask::somebody_is_there() {
        return Err(Failure::new("nobody is at a terminal who could agree to that")
            .hint(format!("to do it without being asked: `adit remove {} --yes`", login.login()))
            .exit(Exit::Usage));
    }
    match ask::yes("Do that? (yes/no): ").await {
        true => Ok(()),
        false => Err(Failure::new("nothing was done on the box").exit(Exit::Usage)),
    }
}

/// Removes what adit has installed there, and says what that was.
async fn on_the_box(login: &SshTarget) -> Result<RemovedThere, Failure> {
    let remote = Remote::open(login).await.map_err(|e| no_login(login, e))?;
    // Where `adit up` has put it: the stored command is the link in that directory.
    let named = login.remote_command.as_deref().and_then(|command| command.strip_suffix("/aditd"));
    let there = on_box::remove(&remote, login, named).await?;
    say(match &there {
        RemovedThere { installed: false, left, .. } if left.is_empty() => {
            format!("adit has installed nothing on {login}.")
        }
        RemovedThere { installed: false, .. } => {
            format!("adit has not installed the aditd on {login}: it is left as it is.")
        }
        RemovedThere { state: true, .. } => {
            format!("aditd and its state are removed from {login}.")
        }
        RemovedThere { removed, .. } if removed.is_empty() => {
            format!("Nothing was removed from {login}.")
        }
        RemovedThere { removed, .. } => format!("Removed from {login}: {}.", removed.join(", ")),
    });
    for left in &there.left {
        say(format!("Left there: {left}."));
    }
    Ok(there)
}
