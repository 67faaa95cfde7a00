//! Turns for the streams of a session: a device with thousands of streams at work keeps others
//! waiting no longer than one with a few.
//!
//! All sessions are served by one thread, which polls tasks in the order in which they were woken. A
//! device that wakes a thousand streams at once would make everybody wait for all of them. So the
//! streams of one session together get a short time, and the rest of them wait until every other
//! task that is ready has been polled.

mod share;

use std::{
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Instant,
};

use tokio::sync::Notify;

use self::share::Share;

/// The turns of one session.
pub(super) struct Turns {
    share: Mutex<Share<Waker>>,
    /// Told when somebody waits.
    waiting: Notify,
    began: Instant,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { share: Mutex::default(), waiting: Notify::new(), began: Instant::now() }
    }

    /// Does the work of one stream, each part of it in its turn. Needs [`Turns::give`] at the same
    /// time, and a task of its own: it is woken as the task that polled it first. Cancellation safe
    /// if `work` is.
    pub(super) async fn take<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> T {
        let mut ticket = None;
        std::future::poll_fn(|cx| {
            let began = self.began.elapsed();
            let waited = ticket.is_some();
            if !self.share().may_go(&mut ticket, began, || cx.waker().clone()) {
                if !waited {
                    self.waiting.notify_one();
                }
                return Poll::Pending;
            }
            let polled = work.as_mut().poll(cx);
            let ended = self.began.elapsed();
            self.share().spent(ended.saturating_sub(began), ended);
            polled
        })
        .await
    }

    /// Gives turns for ever. Cancellation safe: the next call goes on.
    pub(super) async fn give(&self) {
        loop {
            self.waiting.notified().await;
            loop {
                let next = self.share().next(self.began.elapsed());
                if next.is_empty() {
                    break;
                }
                next.into_iter().for_each(Waker::wake);
                // Everything else that is ready comes first.
                tokio::task::yield_now().await;
            }
        }
    }

    fn share(&self) -> MutexGuard<'_, Share<Waker>> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        },
        time::Duration,
    };

    use super::*;

    /// Holds the thread, as work does.
    fn work() {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(50) {
            std::hint::spin_loop();
        }
    }

    #[tokio::test]
    async fn a_thousand_streams_that_are_woken_at_once_keep_nobody_waiting_and_all_get_done() {
        let turns = Arc::new(Turns::new());
        let giver = turns.clone();
        let giving = tokio::spawn(async move { giver.give().await });
        let done = Arc::new(AtomicUsize::new(0));
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..1_000 {
            let (turns, done) = (turns.clone(), done.clone());
            streams.spawn(async move {
                let stream = pin!(async {
                    work();
                    tokio::task::yield_now().await;
                    work();
                    done.fetch_add(1, Relaxed);
                });
                turns.take(stream).await;
            });
        }
        let ended = Arc::new(AtomicBool::new(false));
        let other = tokio::spawn({
            let ended = ended.clone();
            async move {
                let mut passes = 0;
                while !ended.load(Relaxed) {
                    passes += 1;
                    tokio::task::yield_now().await;
                }
                passes
            }
        });
        while streams.join_next().await.is_some() {}
        ended.store(true, Relaxed);
        assert_eq!(done.load(Relaxed), 1_000);
        // Without turns it gets about one for each 61 parts (tokio's interval), of 2,000.
        let passes = other.await.expect("no panic");
        assert!(passes > 200, "another task was polled {passes} times");
        giving.abort();
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_while_it_waits_keeps_nobody_from_a_turn() {
        let turns = Arc::new(Turns::new());
        // All of the time is used up, until a moment that does not come: both of the next ones wait.
        turns.share().spent(Duration::from_secs(1), Duration::from_secs(3600));
        let dropped = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(pin!(async {})).await }
        });
        let waits = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(pin!(async { 7 })).await }
        });
        tokio::task::yield_now().await;
        dropped.abort();
        assert!(dropped.await.is_err_and(|e| e.is_cancelled()), "it had no turn yet");
        let giver = turns.clone();
        let giving = tokio::spawn(async move { giver.give().await });
        assert_eq!(waits.await.expect("no panic"), 7);
        giving.abort();
    }
}
