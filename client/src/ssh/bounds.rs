//! Bounds of a conversation with a host: how long it may be silent, and that it ends with its
//! owner.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::ask;

/// A host that answers does so in this time.
pub(crate) const HOST_WITHIN: Duration = Duration::from_secs(15);

/// A deadline that is put off with every step, and further while a person is asked.
#[derive(Debug)]
pub(crate) struct Patience {
    until: watch::Sender<Instant>,
    within: Duration,
}

impl Patience {
    /// Each step has so long, the first from now on.
    pub(crate) fn new(within: Duration) -> Self {
        Self { until: watch::Sender::new(Instant::now() + within), within }
    }

    /// A step is done: the next has as much time again.
    pub(crate) fn again(&self) {
        self.until.send_replace(Instant::now() + self.within);
    }

    /// Somebody may be asked something meanwhile, here or by an agent.
    pub(crate) async fn with_a_person<T>(&self, work: impl Future<Output = T>) -> T {
        self.until.send_replace(Instant::now() + ask::PATIENCE + self.within);
        let done = work.await;
        self.again();
        done
    }

    /// Does `work` for as long as the patience lasts. `None` if it is over.
    pub(crate) async fn bound<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! { done = work => Some(done), () = self.over() => None }
    }

    async fn over(&self) {
        let mut deadline = self.until.subscribe();
        loop {
            let until = *deadline.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                _ = deadline.changed() => {}
            }
        }
    }
}

/// A stream that fails as soon as its guard is dropped.
pub(crate) struct Mortal<S> {
    stream: S,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Mortal<S> {
    /// The stream, and what it lives by.
    pub(crate) fn new(stream: S) -> (Self, DropGuard) {
        let end = CancellationToken::new();
        (Self { stream, end: Box::pin(end.clone().cancelled_owned()) }, end.drop_guard())
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.end.as_mut().poll(cx).is_ready()
    }
}

fn over<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
}

impl<S: AsyncRead + Unpin> AsyncRead for Mortal<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(cx) { over() } else { Pin::new(&mut self.stream).poll_read(cx, buf) }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mortal<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_over(cx) { over() } else { Pin::new(&mut self.stream).poll_write(cx, bytes) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) { over() } else { Pin::new(&mut self.stream).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) { over() } else { Pin::new(&mut self.stream).poll_shutdown(cx) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_with_its_guard_wherever_it_is_waited_for() {
        let (near, _far) = tokio::io::duplex(8);
        let (mut stream, guard) = Mortal::new(near);
        stream.write_all(b"alive").await.expect("written");
        let reading = tokio::spawn(async move { stream.read_u8().await });
        tokio::task::yield_now().await;
        drop(guard);
        let end = reading.await.expect("no panic").expect_err("it ends");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn silence_is_borne_for_a_bounded_time_and_longer_while_a_person_is_asked() {
        let patience = Patience::new(Duration::from_millis(50));
        assert!(patience.bound(std::future::pending::<()>()).await.is_none());
        patience.again();
        let answer =
            patience.bound(patience.with_a_person(tokio::time::sleep(Duration::from_millis(200))));
        assert!(answer.await.is_some());
    }
}
