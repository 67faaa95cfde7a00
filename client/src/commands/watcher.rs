//! `adit watcher`: a small process beside each `adit up`. If that one ends without a word (`kill -9`,
//! out of memory), it tells the server, so that running answers stop and the GPU is free.

use std::{
    io::{self, Read},
    path::Path,
    time::Duration,
};

use clap::Args;
use common::machine::{
    control,
    process::hold_off_orders,
    report::{self, Failure},
};
use proto::{human, identity::Name, wire::IDLE_TIMEOUT};
use tracing::{debug, info, warn};

use crate::{
    commands::logs,
    device_key,
    dial::{DialError, plan::DialPlan, route::CarrierChoice, unmarked},
    profile::{ProfileDir, SharedProfile},
    ssh::SshClient,
    tunnel::reconnect,
};

/// What `adit up` writes to the standard input of its watcher: one byte for each change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum WatcherMessage {
    /// A session has begun.
    Session = b'+',
    /// No session is left.
    NoSession = b'-',
    /// `adit up` ends, and has told the server.
    Farewell = b'.',
}

/// How long the watcher tries to reach the server.
const WITHIN: Duration = Duration::from_secs(30);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Within this time, the kernel has closed all files of a process that was killed.
const DYING: Duration = Duration::from_millis(300);
/// How long to wait until the server has received the end of the session.
const FAREWELL: Duration = Duration::from_secs(1);

/// The tunnel that is watched, and how to reach its server.
#[derive(Debug, Args)]
pub(crate) struct Watcher {
    name: Name,
    #[arg(long, value_enum)]
    carrier: CarrierChoice,
    #[arg(long, value_enum)]
    ssh_client: Option<SshClient>,
}

/// Waits until `adit up` has ended; the standard input of this process is a pipe from it. Then
/// tells the server, if `adit up` has not. Starts a runtime and a log only then.
///
/// # Errors
/// If the log cannot be opened.
pub(crate) fn run(state_dir: &Path, watcher: Watcher, verbose: u8) -> Result<(), Failure> {
    // These signals are meant for `adit up`. A service manager that stops a service sends them to
    // both processes.
    hold_off_orders();
    if !is_session_left(io::stdin().lock()) {
        return Ok(());
    }
    report::start_log(verbose);
    let profile_dir = ProfileDir::new(state_dir, watcher.name.clone());
    logs::keep_beside(&profile_dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start").source(e))?;
    unmarked::keep_in(&profile_dir.dir);
    let mut last = None;
    let told = tell(&profile_dir, &watcher, &mut last);
    let is_over = runtime.block_on(async { tokio::time::timeout(WITHIN, told).await });
    match (is_over, last) {
        (Ok(()), None) => {}
        (_, why) => warn!(
            "adit up{} has ended without a word, and the server cannot be told{}: it keeps running answers until the \
             next {}, or for its idle time-out (usually {})",
            profile_dir.argument(),
            why.map(|why| format!(" ({why})")).unwrap_or_default(),
            report::typed(format!("`adit up{}`", profile_dir.argument())),
            human::time(IDLE_TIMEOUT),
        ),
    }
    runtime.shutdown_background();
    device_key::finish();
    Ok(())
}

/// Reads from `adit up` until it has ended. Returns whether it left a session behind.
fn is_session_left(mut words: impl Read) -> bool {
    let (mut last, mut bytes) = (WatcherMessage::NoSession as u8, [0; 64]);
    loop {
        match words.read(&mut bytes) {
            Ok(0) => return last == WatcherMessage::Session as u8,
            Ok(n) if bytes[..n].contains(&(WatcherMessage::Farewell as u8)) => return false,
            Ok(n) => last = bytes[n - 1],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Opens a session, which ends the one that was left and its running answers, and closes it. `last`
/// is the error of the last attempt.
async fn tell(profile_dir: &ProfileDir, watcher: &Watcher, last: &mut Option<DialError>) {
    loop {
        // Read the profile each time: it may have been removed.
        let Ok(mut profile) = profile_dir.read() else { return *last = None };
        if let Some(target) = &mut profile.ssh {
            target.client_now = watcher.ssh_client;
            // No person is there who could answer a question.
            target.ask_no_more();
        }
        let plan = DialPlan {
            profile: SharedProfile::new(profile),
            choice: watcher.carrier,
            idle_timeout: IDLE_TIMEOUT,
        };
        match take_leave(profile_dir, &plan).await {
            Ok(()) => return *last = None,
            Err(why) => {
                debug!("cannot tell the server: {why}");
                let is_final = why.is_final();
                *last = Some(why);
                if is_final {
                    return;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether another `adit up` runs. The killed one may still seem to run for a moment: the kernel
/// closes its pipe before its control socket.
async fn is_another_running(profile_dir: &ProfileDir) -> bool {
    if !control::is_running(&profile_dir.dir) {
        return false;
    }
    tokio::time::sleep(DYING).await;
    control::is_running(&profile_dir.dir)
}

async fn take_leave(profile_dir: &ProfileDir, plan: &DialPlan) -> Result<(), DialError> {
    // Another `adit up` has ended the session that was left. Its own session must not be ended.
    if is_another_running(profile_dir).await {
        return Ok(());
    }
    let dialed = plan.dial().await?;
    // A server that was renamed meanwhile may have another `adit up`, which is not seen from here.
    let is_gone = profile_dir.read().is_err();
    if !is_gone && !control::is_running(&profile_dir.dir) {
        reconnect::greeted(&dialed.connection).await?;
        info!(
            "adit up{} has ended without a word: the server is told, and stops its running answers",
            profile_dir.argument()
        );
    }
    reconnect::take_leave(&dialed.connection, &dialed.endpoint, FAREWELL).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_left_if_the_last_word_was_that_there_is_one() {
        for (words, is_left) in [
            ("", false),
            ("-", false),
            ("+", true),
            ("-+", true),
            ("+-", false),
            ("+-+", true),
            ("+.", false),
            (".+", false),
        ] {
            assert_eq!(is_session_left(words.as_bytes()), is_left, "{words}");
        }
        let slow = io::Read::chain(&b"+"[..], &b"-"[..]);
        assert!(!is_session_left(slow), "in two reads");
        let long = "+-".repeat(100) + "+";
        assert!(is_session_left(long.as_bytes()));
    }
}
