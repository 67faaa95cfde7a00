//! Look-ups that block a thread, also for long when the answer is on a machine that is down.

use std::{io, sync::Arc};

use tokio::sync::Semaphore;

/// Look-ups of one kind. They have bounds of their own, so that they never take the places of other
/// questions.
pub(super) struct LookUps {
    /// For those that run: each has a thread.
    pub(super) running: Arc<Semaphore>,
    /// For those, and those that wait for a thread.
    pub(super) open: Semaphore,
}

impl LookUps {
    /// So many run at the same time, and so many are open.
    pub(super) fn new((running, open): (usize, usize)) -> Self {
        Self { running: Arc::new(Semaphore::new(running)), open: Semaphore::new(open) }
    }

    /// Does it when a thread is free. Cancellation safe; one that runs keeps its thread until it ends.
    ///
    /// # Errors
    /// `ResourceBusy` if too many are open.
    pub(super) async fn look_up<T: Send + 'static>(
        &self,
        it: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let busy = |_| {
            let why = "too many look-ups wait for an answer: is the DNS of this machine down?";
            io::Error::new(io::ErrorKind::ResourceBusy, why)
        };
        let _open = self.open.try_acquire().map_err(busy)?;
        let running = self.running.clone().acquire_owned().await.map_err(io::Error::other)?;
        let done = tokio::task::spawn_blocking(move || {
            let _running = running;
            it()
        });
        done.await.map_err(io::Error::other)
    }
}
