//! Counts connections and generations, and wakes the tasks that wait for a count.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{sync::watch, time::timeout};

/// What has happened at a stand-in since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requested generations, whether or not their first token has come.
    pub started: u64,
    /// Generations that made their last token.
    pub completed: u64,
    /// Generations whose client disconnected before that.
    pub cancelled: u64,
    /// Running generations.
    pub running: u64,
    /// Open TCP connections, with the one that asks for `/test/counters`.
    pub connections_open: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<watch::Sender<Counters>>);

impl Tally {
    pub(super) fn now(&self) -> Counters {
        *self.0.borrow()
    }

    pub(super) async fn wait_for(
        &self,
        pred: impl Fn(&Counters) -> bool,
        within: Duration,
    ) -> Result<Counters, Counters> {
        let mut counters = self.0.subscribe();
        match timeout(within, counters.wait_for(pred)).await {
            Ok(Ok(now)) => Ok(*now),
            // The channel can't be closed: this struct holds its sender.
            Ok(Err(_)) | Err(_) => Err(self.now()),
        }
    }

    /// Returns when no connection is open.
    pub(super) async fn no_connections(&self) {
        let mut counters = self.0.subscribe();
        // It fails only without a sender, which this struct holds.
        let _ = counters.wait_for(|now| now.connections_open == 0).await;
    }

    /// Counts a connection as open until the guard is dropped.
    pub(super) fn connection(&self) -> OpenConnection {
        self.0.send_modify(|counters| counters.connections_open += 1);
        OpenConnection(self.clone())
    }

    /// Counts a generation as running until the guard is completed or dropped.
    pub(super) fn generation(&self) -> Running {
        self.0.send_modify(|counters| {
            counters.started += 1;
            counters.running += 1;
        });
        Running { tally: self.clone(), complete: false }
    }
}

/// An open connection; dropping it counts it as closed.
pub(super) struct OpenConnection(Tally);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.send_modify(|counters| counters.connections_open -= 1);
    }
}

/// A running generation; dropping it before [`Running::complete`] counts it as cancelled.
pub(super) struct Running {
    tally: Tally,
    complete: bool,
}

impl Running {
    pub(super) fn complete(mut self) {
        self.complete = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tally.0.send_modify(|counters| {
            counters.running -= 1;
            match self.complete {
                true => counters.completed += 1,
                false => counters.cancelled += 1,
            }
        });
    }
}
