//! The queue in front of a service: a bounded number of requests run at once, a bounded number
//! wait, and the users are served in turn. A device without a user counts as one.
//!
//! [`fair_queue`] decides; this file lets tasks wait for its decisions.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use proto::identity::DeviceId;
use tokio::sync::oneshot;

use self::fair_queue::{Entered, FairQueue, Ticket};
use crate::limits::Account;

/// As many as Ollama's own queue holds.
pub(crate) const MAX_WAITING: usize = 512;

/// The queue in front of one service.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
}

struct Inner {
    queue: FairQueue<Account>,
    waiting: HashMap<Ticket, Waiter>,
}

struct Waiter {
    device: DeviceId,
    since: Instant,
    call: oneshot::Sender<Turn>,
}

/// A request that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queued {
    pub device: DeviceId,
    /// How long it has waited.
    pub waited: Duration,
}

/// A request's turn at the service; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    queue: Option<Arc<Queue>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("server busy, please try again.  maximum pending requests exceeded")]
pub(crate) struct QueueFull;

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        f.debug_struct("Queue")
            .field("running", &inner.queue.running())
            .field("waiting", &inner.queue.waiting())
            .finish()
    }
}

impl Queue {
    /// A queue for a service that runs `most` requests at once (any number, if `None`), in which
    /// `room` requests may wait.
    pub(crate) fn new(most: Option<NonZeroUsize>, max_waiting: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                queue: FairQueue::new(most, max_waiting),
                waiting: HashMap::new(),
            }),
        })
    }

    /// Puts other bounds in force. Waiting requests for which there is room now run at once; no
    /// request that waits or runs is removed.
    pub(crate) fn resize(self: &Arc<Self>, most: Option<NonZeroUsize>, max_waiting: usize) {
        self.lock().queue.resize(most, max_waiting);
        self.call();
    }

    /// Takes a turn, or joins the queue: the returned future is ready when the request has its
    /// turn. Dropping the future leaves the queue at once. Accounts have their turns one after another.
    ///
    /// # Errors
    /// [`QueueFull`] if the queue is full. A waiting future also ends with [`QueueFull`] if its account has
    /// the most requests in a full queue and a request of another one arrives.
    pub(crate) fn enter(
        self: &Arc<Self>,
        account: Account,
        device: DeviceId,
    ) -> Result<Waiting, QueueFull> {
        let mut inner = self.lock();
        let entered = inner.queue.enter(account.clone());
        match entered {
            Entered::Now => {
                let turn = TurnState::Ready(Some(Turn { queue: Some(self.clone()) }));
                Ok(Waiting { turn, position: 0 })
            }
            Entered::Waits(ticket) | Entered::WaitsInsteadOf(ticket, _) => {
                if let Entered::WaitsInsteadOf(_, evicted) = entered {
                    // Dropping the sender tells its future.
                    inner.waiting.remove(&evicted);
                }
                let (call, called) = oneshot::channel();
                inner.waiting.insert(ticket, Waiter { device, since: Instant::now(), call });
                let position = inner.queue.before_newest_of(account) + 1;
                let turn = TurnState::InLine { queue: self.clone(), ticket, called };
                Ok(Waiting { turn, position })
            }
            Entered::Full => Err(QueueFull),
        }
    }

    /// Requests that may run at once; `None` if all may.
    pub(crate) fn most(&self) -> Option<usize> {
        self.lock().queue.most().map(NonZeroUsize::get)
    }

    /// How many requests may wait.
    pub(crate) fn max_waiting(&self) -> usize {
        self.lock().queue.max_waiting()
    }

    /// The waiting requests in the order of their turns, if none comes or goes.
    pub(crate) fn in_order(&self) -> Vec<Queued> {
        let inner = self.lock();
        let queued = |(_, ticket)| {
            let waiter = inner.waiting.get(&ticket)?;
            Some(Queued { device: waiter.device, waited: waiter.since.elapsed() })
        };
        inner.queue.in_order().into_iter().filter_map(queued).collect()
    }

    /// Whether any request may have to wait.
    pub(crate) fn is_bounded(&self) -> bool {
        self.lock().queue.is_bounded()
    }

    /// How many requests wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().queue.waiting()
    }

    /// How many requests have a turn now.
    pub(crate) fn running(&self) -> usize {
        self.lock().queue.running()
    }

    /// Gives a turn to every waiting request for which there is room.
    fn call(self: &Arc<Self>) {
        loop {
            let called = {
                let mut inner = self.lock();
                let Some(ticket) = inner.queue.next() else { return };
                inner.waiting.remove(&ticket).map(|waiter| waiter.call)
            };
            let turn = Turn { queue: Some(self.clone()) };
            match called {
                // A future that was dropped in this moment gives the turn back.
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
    /// Gives the turn back without calling the next request: the caller does that.
    fn give_back(mut self) {
        if let Some(queue) = self.queue.take() {
            queue.lock().queue.end();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.lock().queue.end();
            queue.call();
        }
    }
}

/// A place in the queue; a future of its turn.
#[derive(Debug)]
#[must_use = "dropping it leaves the queue"]
pub(crate) struct Waiting {
    turn: TurnState,
    position: usize,
}

#[derive(Debug)]
enum TurnState {
    Ready(Option<Turn>),
    InLine { queue: Arc<Queue>, ticket: Ticket, called: oneshot::Receiver<Turn> },
}

impl Waiting {
    /// Its place when it arrived: 1 if it gets the next turn, 0 if it does not wait.
    pub(crate) fn position(&self) -> usize {
        self.position
    }
}

impl Future for Waiting {
    type Output = Result<Turn, QueueFull>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.turn {
            // Polled again after it is ready, it stays pending and does not panic.
            TurnState::Ready(turn) => {
                turn.take().map_or(Poll::Pending, |turn| Poll::Ready(Ok(turn)))
            }
            TurnState::InLine { called, .. } => match Pin::new(called).poll(context) {
                Poll::Ready(Ok(turn)) => {
                    self.turn = TurnState::Ready(None);
                    Poll::Ready(Ok(turn))
                }
                Poll::Ready(Err(_)) => Poll::Ready(Err(QueueFull)),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let TurnState::InLine { queue, ticket, .. } = &self.turn {
            let mut inner = queue.lock();
            inner.waiting.remove(ticket);
            // Otherwise the turn is in the channel, and is given back when that is dropped.
            inner.queue.leave(*ticket);
        }
    }
}

mod fair_queue;
#[cfg(test)]
mod tests;
