//! Limits how long a host may be silent, and ends a stream together with its owner.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::{
    ask,
    pace::{PaceState, PaceVerdict, Silence, SilenceBounds, Slowest, Step},
};

/// Who is told what adit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    /// The person at the terminal.
    Person,
    /// The log.
    Log,
    /// The log, with `-v`.
    Nobody,
}

/// A deadline that every message of the host extends, and that is extended further while a person
/// is asked.
#[derive(Debug)]
pub(crate) struct Patience {
    state: watch::Sender<PaceState>,
    tell: Tell,
}

impl Patience {
    /// Begins to wait for `host`.
    pub(crate) fn new(host: &str, bounds: SilenceBounds, tell: Tell) -> Self {
        Self { state: watch::Sender::new(PaceState::new(Instant::now(), host, bounds)), tell }
    }

    /// Begins to wait for `step` at `host`. `within` is the limit of the user's configuration, if
    /// there is one.
    pub(crate) fn step(&self, step: Step, host: &str, within: Option<Duration>) {
        self.state.send_modify(|state| state.begin(Instant::now(), step, host, within));
    }

    /// The host has sent something: its next message has the full time again.
    pub(crate) fn again(&self) {
        self.state.send_modify(|state| state.heard(Instant::now()));
    }

    /// Extends the deadline during `work`, in which a person may be asked, here or by an agent.
    pub(crate) async fn with_a_person<T>(&self, work: impl Future<Output = T>) -> T {
        self.state.send_modify(|state| state.asked(Instant::now(), ask::PATIENCE));
        let done = work.await;
        self.state.send_modify(|state| state.answered(Instant::now()));
        done
    }

    /// Runs `work`, and ends it when the host has been silent for too long. Cancellation safe if
    /// `work` is.
    ///
    /// # Errors
    /// What the host did not do in time.
    pub(crate) async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, Silence> {
        tokio::select! { done = work => Ok(done), silence = self.over() => Err(silence) }
    }

    /// The longest silence of each step so far.
    pub(crate) fn slowest(&self) -> Slowest {
        self.state.borrow().slowest
    }

    async fn over(&self) -> Silence {
        let mut state = self.state.subscribe();
        loop {
            let verdict = state.borrow_and_update().judge(Instant::now());
            match verdict {
                PaceVerdict::Over(silence) => return silence,
                PaceVerdict::Tell(what) => {
                    match self.tell {
                        Tell::Person => common::machine::report::say(format!("Waiting: {what} …")),
                        Tell::Log => tracing::info!("waiting: {what}"),
                        Tell::Nobody => tracing::debug!("waiting: {what}"),
                    }
                    self.state.send_modify(PaceState::told);
                }
                PaceVerdict::WaitUntil(until) => tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    _ = state.changed() => {}
                },
            }
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.within.as_secs();
        match self.step {
            Step::Greeting => write!(f, "it has not answered for {seconds} s"),
            Step::Login => write!(f, "it has not answered the login for {seconds} s"),
            Step::Command => {
                write!(f, "the command on the host has sent nothing for {seconds} s")
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
    /// The stream and its guard.
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
        let patience = Patience::new("gpu", SilenceBounds::default(), Tell::Nobody);
        patience.step(Step::Login, "jump", Some(Duration::from_millis(50)));
        let silence = patience.bound(std::future::pending::<()>()).await.expect_err("silent");
        assert_eq!((silence.host.as_str(), silence.step), ("jump", Step::Login));
        patience.again();
        let asked = patience.with_a_person(tokio::time::sleep(Duration::from_millis(200)));
        assert!(patience.bound(asked).await.is_ok());
    }
}
