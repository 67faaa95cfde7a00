//! Keeps the watcher of one tunnel: a process of its own that tells the server if this one ends
//! without a word.

use std::{ffi::OsString, process::Stdio, time::Duration};

use clap::ValueEnum;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, debug, warn};

use crate::{
    commands::watcher::WatcherMessage, dial::route::CarrierChoice, profile::ProfileDir,
    ssh::SshClient, tunnel::state::TunnelState,
};

/// How long the watcher may take to end when it is told to.
const WITHIN: Duration = Duration::from_secs(1);

/// The watcher of one tunnel. When this is dropped without [`Watched::dismiss`], the watcher takes
/// that for an end without a word, which it is.
pub(super) struct Watched {
    is_over: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Watched {
    /// Starts the watcher. If that cannot be, there is none, and a warning says what is missing.
    pub(super) fn start(
        profile_dir: &ProfileDir,
        carrier: CarrierChoice,
        ssh_client: Option<SshClient>,
        state: watch::Receiver<TunnelState>,
    ) -> Self {
        let is_over = CancellationToken::new();
        let ends = is_over.clone();
        let started =
            command(profile_dir, carrier, ssh_client).and_then(|mut command| command.spawn());
        let following = async move {
            match started {
                Ok(child) => follow(child, state, ends).await,
                Err(e) => warn!(
                    "cannot start the process that tells the server if this one is killed: {e} (then running answers \
                     go on until the next start)"
                ),
            }
        };
        let task = tokio::spawn(following.in_current_span());
        Self { is_over, task: AbortOnDropHandle::new(task) }
    }

    /// Ends the watcher: the server has been told of the end.
    pub(super) async fn dismiss(self) {
        self.is_over.cancel();
        let _ = self.task.await;
    }
}

fn command(
    profile_dir: &ProfileDir,
    carrier: CarrierChoice,
    ssh_client: Option<SshClient>,
) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    // The name that this process was called by, wherever its file is.
    command.arg0(std::env::args_os().next().unwrap_or_else(|| OsString::from("adit")));
    command.args(["watcher", profile_dir.name.as_str()]);
    command.arg("--state-dir").arg(std::path::absolute(profile_dir.state_dir())?);
    for (flag, value) in [
        ("--carrier", carrier.to_possible_value()),
        ("--ssh-client", ssh_client.and_then(|client| client.to_possible_value())),
    ] {
        if let Some(value) = value {
            command.args([flag, value.get_name()]);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).current_dir("/");
    // Ctrl-C in the terminal is for `adit up`, which tells the watcher.
    command.process_group(0);
    Ok(command)
}

/// Tells the watcher what there is to lose, until it is dismissed; and waits for it, so that it
/// leaves no zombie.
async fn follow(
    mut child: Child,
    mut state: watch::Receiver<TunnelState>,
    over: CancellationToken,
) {
    let Some(mut to) = child.stdin.take() else { return };
    let mut said = None;
    loop {
        let now = match &*state.borrow_and_update() {
            TunnelState::Up(_) | TunnelState::Silent(_) => WatcherMessage::Session,
            TunnelState::Down(_) | TunnelState::Refused(_) => WatcherMessage::NoSession,
        };
        if said != Some(now) && say(&mut to, now).await {
            said = Some(now);
        }
        tokio::select! {
            () = over.cancelled() => break,
            changed = state.changed() => if changed.is_err() { break },
            ended = child.wait() => return debug!("the watcher has ended: {ended:?}"),
        }
    }
    over.cancelled().await;
    say(&mut to, WatcherMessage::Farewell).await;
    drop(to);
    let _ = tokio::time::timeout(WITHIN, child.wait()).await;
}

async fn say(to: &mut ChildStdin, word: WatcherMessage) -> bool {
    to.write_all(&[word as u8]).await.is_ok()
}
