//! The order to replace this process by another one, as commands give it and see it; and the older
//! processes that this one has replaced, in which answers still run.

use std::{
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::{machine::report::Failure, transport::unix};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinSet};

use crate::ingress::admission::connection_ids::Generation;

/// How the replacement of the process that answers stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Replacement {
    /// The process that answers.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Whether another process is about to replace it.
    pub is_under_way: bool,
    /// Why the last attempt has failed. Nothing has changed then.
    pub failed: Option<Failure>,
}

/// Takes orders to replace this process.
pub(crate) struct Replacements {
    orders: mpsc::Sender<PathBuf>,
    state: Mutex<State>,
    older: OlderProcesses,
}

#[derive(Default)]
struct State {
    is_under_way: bool,
    failed: Option<Failure>,
}

impl Replacements {
    /// The orders arrive at the receiver. `older` are the processes that this one has replaced.
    pub(crate) fn new(older: OlderProcesses) -> (Self, mpsc::Receiver<PathBuf>) {
        let (orders, received) = mpsc::channel(1);
        (Self { orders, state: Mutex::default(), older }, received)
    }

    /// Orders that `program` replaces this process, unless another is about to.
    pub(crate) fn order(&self, program: PathBuf) -> Replacement {
        let mut state = self.lock();
        if !state.is_under_way && self.orders.try_send(program).is_ok() {
            *state = State { is_under_way: true, failed: None };
        }
        drop(state);
        self.state()
    }

    /// How the last order stands.
    pub(crate) fn state(&self) -> Replacement {
        let State { is_under_way, failed } = &*self.lock();
        Replacement {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            is_under_way: *is_under_way,
            failed: failed.clone(),
        }
    }

    /// Notes that the order cannot be followed.
    pub(crate) fn fail(&self, why: Failure) {
        *self.lock() = State { is_under_way: false, failed: Some(why) };
    }

    /// The older processes that have not ended.
    pub(crate) fn older(&self) -> &OlderProcesses {
        &self.older
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that this one has replaced, or that an earlier one has.
#[derive(Debug)]
pub(crate) struct OlderProcess {
    pub(crate) generation: Generation,
    pub(crate) pid: u32,
    /// Each side sees by it that the other has ended.
    pub(crate) link: UnixStream,
}

/// The older processes in which answers still run. Clones share the list.
#[derive(Debug, Clone, Default)]
pub(crate) struct OlderProcesses(Arc<Mutex<Vec<OlderProcess>>>);

impl OlderProcesses {
    pub(crate) fn new(all: Vec<OlderProcess>) -> Self {
        Self(Arc::new(Mutex::new(all)))
    }

    /// Their process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.lock().iter().map(|older| older.pid).collect()
    }

    /// Gives `take` the generation, the process id and the link of each.
    pub(crate) fn with_links<T>(
        &self,
        take: impl FnOnce(&[(Generation, u32, BorrowedFd<'_>)]) -> T,
    ) -> T {
        let all = self.lock();
        let links = all.iter().map(|older| (older.generation, older.pid, older.link.as_fd()));
        take(&links.collect::<Vec<_>>())
    }

    /// Forgets those that end, for ever.
    pub(crate) async fn follow(self) {
        let mut waiting = JoinSet::new();
        let links: Vec<_> =
            self.lock().iter().map(|older| (older.pid, older.link.try_clone())).collect();
        for (pid, link) in links {
            waiting.spawn(async move {
                if let Ok(link) = link {
                    ended(link).await;
                }
                pid
            });
        }
        while let Some(ended) = waiting.join_next().await {
            if let Ok(pid) = ended {
                self.lock().retain(|older| older.pid != pid);
            }
        }
        std::future::pending().await
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OlderProcess>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the process at the other end of a link has ended.
pub(crate) async fn ended(link: UnixStream) {
    let link = link.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(link));
    if let Ok(link) = link {
        unix::gone(&link).await;
    }
}
