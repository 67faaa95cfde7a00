//! The first word of each server: it accepts this device, refuses it, or lacks a service.

use std::io::IsTerminal;

use common::machine::{
    progress::Progress,
    report::{Failure, typed},
};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{
    running::{RefusedDevice, first_word, tell_of_ollama},
    services,
};
use crate::{dial::NextAttempt, settings::Settings, tunnel::Tunnel};

/// Waits until the server has accepted this device, and says so. `alone`: also meanwhile that it
/// waits.
///
/// # Errors
/// If the server refuses this device, or has not a service that was asked for.
pub(super) async fn serve(
    tunnel: Tunnel,
    settings: Settings,
    listening: Vec<String>,
    places: Vec<String>,
    alone: bool,
) -> Result<(), NotServed> {
    // The system's `ssh` asks its questions itself, and they must stay readable.
    let progress = (alone && !tunnel.plan().asks_by_itself())
        .then(|| Progress::show(&format!("connecting to {}", tunnel.plan().sought())));
    first_word(&tunnel).await.map_err(|why| NotServed::Refused(Box::new(why)))?;
    drop(progress);
    services::check(&tunnel, &settings).map_err(NotServed::Lacks)?;
    info!("ready: Ollama on {}", places.first().map_or("localhost", String::as_str));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    // Only where a person reads it: the requests count against this device's limits.
    if std::io::stderr().is_terminal() {
        tell_of_ollama(&tunnel, &listening).await;
    }
    Ok(())
}

/// Why a server is not used.
pub(super) enum NotServed {
    Refused(Box<RefusedDevice>),
    /// It has not a service that was asked for.
    Lacks(Failure),
}

impl NotServed {
    /// The failure of a command; `next` is who connects when it is cured.
    fn failure(&self, next: NextAttempt) -> Failure {
        match self {
            Self::Refused(refused) => refused.failure(next),
            Self::Lacks(failure) => failure.clone(),
        }
    }
}

/// Waits for the first word of each server, and ends when all have refused this device.
pub(super) async fn all_refused(mut first_words: JoinSet<Result<(), NotServed>>) -> Failure {
    let several = first_words.len() > 1;
    let (mut is_ready, mut refused) = (false, None);
    while let Some(word) = first_words.join_next().await {
        match word {
            Ok(Ok(())) => is_ready = true,
            Ok(Err(why)) => {
                if several {
                    // This process goes on, at least while another server may be used.
                    warn!("{}", in_one_line(&why.failure(NextAttempt::Automatic)));
                }
                refused = refused.or(Some(why));
            }
            // A defect, which the log has told.
            Err(_) => {}
        }
    }
    match refused {
        Some(why) if !is_ready => why.failure(NextAttempt::UpCommand),
        _ => std::future::pending().await,
    }
}

/// A failure as a line of the log.
pub(super) fn in_one_line(failure: &Failure) -> String {
    let causes: String = failure.causes().iter().map(|cause| format!(": {cause}")).collect();
    let hints = typed(failure.hints().join("; "));
    let hints = if hints.is_empty() { hints } else { format!(" ({hints})") };
    format!("{}{causes}{hints}", failure.what())
}
