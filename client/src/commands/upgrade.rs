//! `adit upgrade`: replaces the aditd that adit has put on a box by the one of this computer. Running
//! answers go on to their end.

use std::path::{Path, PathBuf};

use clap::Args;
use common::machine::{
    json,
    report::{Exit, Failure, data, say},
};
use proto::{
    bootstrap::{Found, Upgrade},
    typed::quoted,
};
use serde::Serialize;

use crate::{
    commands::{
        enroll::interrupted,
        remove::chosen,
        up::bootstrap::{
            Target,
            on_box::{self, no_login},
            program::Program,
        },
    },
    settings::SshFlag,
    ssh::{Remote, SshTarget, ask},
};

/// Flags of `upgrade`.
#[derive(Debug, Args)]
pub(crate) struct UpgradeFlags {
    /// The server with this name, or the login at its box
    #[arg(value_name = "NAME|USER@HOST")]
    target: Option<Target>,
    /// Do it without asking
    #[arg(short, long)]
    yes: bool,
    /// Print what would be done on the box, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Upload this aditd, a program for the box [default: the aditd beside adit]
    #[arg(long, value_name = "FILE")]
    server_binary: Option<PathBuf>,
    #[command(flatten)]
    ssh: SshFlag,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was done, or would be done.
#[derive(Serialize)]
struct Upgraded<'a> {
    /// The login at the box.
    login: &'a str,
    /// The version that runs there then.
    version: &'a str,
    /// Whether another program replaces the one that runs.
    replaces: bool,
    /// Whether nothing was done, because of `--dry-run`.
    dry_run: bool,
}

/// Replaces the aditd on a box.
///
/// # Errors
/// What stands in the way, or the step that failed. The aditd there goes on then.
pub(crate) async fn run(state_dir: &Path, flags: UpgradeFlags) -> Result<(), Failure> {
    let (_, mut login) = chosen(state_dir, flags.target.as_ref(), "upgrade")?;
    if let Some(client) = flags.ssh.ssh_client {
        login.client_now = Some(client);
    }
    tokio::select! {
        done = on_the_box(&login, &flags) => done,
        () = interrupted(&login) => Err(Failure::new("interrupted")
            .hint("run the same command again: it continues where this one has stopped")),
    }
}

async fn on_the_box(login: &SshTarget, flags: &UpgradeFlags) -> Result<(), Failure> {
    let to = login.login();
    let program = Program::find(flags.server_binary.as_deref())?;
    let remote = Remote::open(login).await.map_err(|e| no_login(login, e))?;
    let sha = program.as_ref().map(|program| &*program.binary.sha256).unwrap_or_default();
    // Where `adit up` has put it: the stored command is the link in that directory.
    let named = login.remote_command.as_deref().and_then(|command| command.strip_suffix("/aditd"));
    let mut found = on_box::look(&remote, login, named, sha).await?;
    if found.installed.is_none() && named.is_some() {
        // An aditd that was there before; or the login is another user's.
        let usual = on_box::look(&remote, login, None, sha).await?;
        found = Some(usual).filter(|usual: &Found| usual.installed.is_some()).unwrap_or(found);
    }
    let binary = program.as_ref().map(|program| program.binary.clone()).map_err(Clone::clone);
    let plan = Upgrade::new(&found, env!("CARGO_PKG_VERSION"), &binary)
        .map_err(|obstacle| obstacle.failure(&to, &command(&to, flags, "")))?;
    let text = plan.text(&to);
    let answer = |version: &str, replaces: bool| match flags.json {
        true => {
            let dry_run = flags.dry_run;
            json::answer(Upgraded { login: &to, version, replaces, dry_run })
        }
        false => Ok(()),
    };
    if flags.dry_run && !flags.json {
        return data(text);
    }
    say(&text);
    let replace = match plan {
        Upgrade::Nothing { version } => return answer(&version, false),
        Upgrade::Replace(replace) if flags.dry_run => return answer(&replace.version, true),
        Upgrade::Replace(replace) => replace,
    };
    agree(&to, flags).await?;
    if let (Some(_), Ok(program)) = (replace.upload, &program) {
        on_box::upload(&remote, login, &replace.dir, program).await?;
    }
    on_box::upgrade(&remote, login, &replace).await?;
    answer(&replace.version, true)?;
    say(format!("aditd {} runs on {to}.", replace.version));
    Ok(())
}

/// Asks once, unless that was answered on the command line.
async fn agree(to: &str, flags: &UpgradeFlags) -> Result<(), Failure> {
    if flags.yes {
        return Ok(());
    }
    if !ask::somebody_is_there() {
        return Err(Failure::new("nobody is at a terminal who could agree to that")
            .hint(format!("to do it without being asked: `{}`", command(to, flags, "--yes")))
            .hint(format!("to see it only: `{}`", command(to, flags, "--dry-run")))
            .exit(Exit::Usage));
    }
    match ask::yes("Do that? (yes/no): ").await {
        true => Ok(()),
        false => Err(Failure::new("nothing was done on the box").exit(Exit::Usage)),
    }
}

/// The command that was typed, with one more flag.
fn command(to: &str, flags: &UpgradeFlags, more: &str) -> String {
    let mut words = vec![format!("adit upgrade {to}")];
    words.extend(
        flags
            .server_binary
            .as_ref()
            .map(|file| format!("--server-binary {}", quoted(&file.display().to_string()))),
    );
    words.extend((!more.is_empty()).then(|| more.to_owned()));
    words.join(" ")
}
