//! Who is next: so many requests at once for a service, and the others wait in a bounded line that
//! serves the devices in turn.
//!
//! [`line`] decides; this file lets tasks wait for what it decides.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use proto::identity::DeviceId;
use tokio::sync::oneshot;

use self::fair_queue::{Entered, FairQueue, Ticket};

/// As many as Ollama's own queue holds.
pub const ROOM: usize = 512;

/// The queue in front of one service.
pub struct Queue {
    inner: Mutex<Inner>,
}

struct Inner {
    line: FairQueue<DeviceId>,
    waiting: HashMap<Ticket, oneshot::Sender<Turn>>,
}

/// A request's place at the service; given up when dropped.
#[derive(Debug)]
pub struct Turn {
    queue: Option<Arc<Queue>>,
}

/// The line is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("server busy, please try again.  maximum pending requests exceeded")]
pub struct Full;

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        f.debug_struct("Queue")
            .field("running", &inner.line.running())
            .field("waiting", &inner.line.waiting())
            .finish()
    }
}

impl Queue {
    /// A queue for a service that takes `most` requests at once (all, if `None`), with room for
    /// `room` that wait.
    pub fn new(most: Option<NonZeroUsize>, room: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner { line: FairQueue::new(most, room), waiting: HashMap::new() }),
        })
    }

    /// Puts other bounds in force. What waits and has room now goes on at once; nothing that waits
    /// or runs is thrown out.
    pub fn resize(self: &Arc<Self>, most: Option<NonZeroUsize>, room: usize) {
        self.lock().line.resize(most, room);
        self.call();
    }

    /// Takes a place, or one in the line: what is returned is ready when it is its turn. Dropping
    /// it leaves the line at once.
    ///
    /// # Errors
    /// [`Full`] if as many wait as may; so is the turn of one that has to leave a full line,
    /// because its device has the most in it and another one comes.
    pub fn enter(self: &Arc<Self>, device: DeviceId) -> Result<Waiting, Full> {
        let mut inner = self.lock();
        let entered = inner.line.enter(device);
        match entered {
            Entered::Now => Ok(Waiting(TurnState::Ready(Some(Turn { queue: Some(self.clone()) })))),
            Entered::Waits(ticket) | Entered::WaitsInsteadOf(ticket, _) => {
                if let Entered::WaitsInsteadOf(_, evicted) = entered {
                    // Its future sees that nobody will call it.
                    inner.waiting.remove(&evicted);
                }
                let (call, called) = oneshot::channel();
                inner.waiting.insert(ticket, call);
                Ok(Waiting(TurnState::InLine { queue: self.clone(), ticket, called }))
            }
            Entered::Full => Err(Full),
        }
    }

    /// Whether anybody may have to wait.
    pub fn is_bounded(&self) -> bool {
        self.lock().line.is_bounded()
    }

    /// Requests that wait now.
    pub fn waiting(&self) -> usize {
        self.lock().line.waiting()
    }

    /// Requests that have a turn now.
    pub fn running(&self) -> usize {
        self.lock().line.running()
    }

    /// Calls all that have room now.
    fn call(self: &Arc<Self>) {
        loop {
            let called = {
                let mut inner = self.lock();
                let Some(ticket) = inner.line.next() else { return };
                inner.waiting.remove(&ticket)
            };
            let turn = Turn { queue: Some(self.clone()) };
            match called {
                // Whoever left in this moment hands it back.
                Some(called) => {
                    if let Err(turn) = called.send(turn) {
                        turn.give_back();
                    }
                }
                None => turn.give_back(),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Gives the place back without calling the next, for the one who is calling anyway.
    fn give_back(mut self) {
        if let Some(queue) = self.queue.take() {
            queue.lock().line.end();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.lock().line.end();
            queue.call();
        }
    }
}

/// A place in the line; a future of its turn.
#[derive(Debug)]
#[must_use = "dropping it leaves the line"]
pub struct Waiting(TurnState);

#[derive(Debug)]
enum TurnState {
    Ready(Option<Turn>),
    InLine { queue: Arc<Queue>, ticket: Ticket, called: oneshot::Receiver<Turn> },
}

impl Future for Waiting {
    type Output = Result<Turn, Full>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // Polled once more after its end, it waits for ever rather than panics.
            TurnState::Ready(turn) => {
                turn.take().map_or(Poll::Pending, |turn| Poll::Ready(Ok(turn)))
            }
            TurnState::InLine { called, .. } => match Pin::new(called).poll(context) {
                Poll::Ready(Ok(turn)) => {
                    self.0 = TurnState::Ready(None);
                    Poll::Ready(Ok(turn))
                }
                Poll::Ready(Err(_)) => Poll::Ready(Err(Full)),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let TurnState::InLine { queue, ticket, .. } = &self.0 {
            let mut inner = queue.lock();
            inner.waiting.remove(ticket);
            // Otherwise it has been called: the turn lies in the channel, and is given up with it.
            inner.line.leave(*ticket);
        }
    }
}

mod fair_queue;
#[cfg(test)]
mod tests;
