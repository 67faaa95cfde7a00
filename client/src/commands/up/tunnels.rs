//! The tunnels of one process. They end together, or one by one as `adit down NAME` asks.

use std::{pin::pin, task::Poll, time::Duration};

use common::machine::{process::StopSignals, report::Failure};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::running::RunningTunnel;

/// The tunnels, and what each needs for its end.
#[derive(Default)]
pub(in crate::commands) struct Tunnels {
    serving: Vec<TunnelToEnd>,
    /// Each waits until another command asks that its tunnel ends, and returns the tunnel's number.
    asked: JoinSet<usize>,
    /// Those whose running answers come to their end.
    stopping: JoinSet<Result<(), Failure>>,
    /// Cancelled when answers that still run are aborted.
    end_now: CancellationToken,
}

struct TunnelToEnd {
    number: usize,
    running: RunningTunnel,
    /// How long its running answers may go on.
    drain: Duration,
    /// The span of its lines in the log.
    span: Span,
}

/// What has happened to a tunnel that served.
enum End {
    /// A part of it has ended by itself.
    ByItself(Failure),
    /// Another command asks that the one with this number ends.
    Asked(usize),
}

impl Tunnels {
    /// Adds a tunnel that was started in the current span.
    pub(in crate::commands) fn add(&mut self, running: RunningTunnel, drain: Duration) {
        let (number, asked) = (self.serving.len(), running.asked_to_end.clone());
        self.asked.spawn(async move {
            asked.cancelled().await;
            number
        });
        self.serving.push(TunnelToEnd { number, running, drain, span: Span::current() });
    }

    /// Ends each tunnel that another command asks to end, and returns when none is left.
    /// Cancellation safe.
    ///
    /// # Errors
    /// If a part of one has ended by itself.
    pub(in crate::commands) async fn serve(&mut self) -> Result<(), Failure> {
        while !self.serving.is_empty() {
            match self.next_end().await {
                End::ByItself(failure) => return Err(failure),
                End::Asked(number) => {
                    let index = self.serving.iter().position(|tunnel| tunnel.number == number);
                    if let Some(index) = index {
                        let tunnel = self.serving.remove(index);
                        self.end(tunnel);
                    }
                }
            }
        }
        while let Some(stopped) = self.stopping.join_next().await {
            result_of(stopped)?;
        }
        Ok(())
    }

    async fn next_end(&mut self) -> End {
        std::future::poll_fn(|context| {
            for tunnel in &mut self.serving {
                // The future keeps nothing, so a new one may be polled each time.
                if let Poll::Ready(ended) = pin!(tunnel.running.parts.ended()).poll(context) {
                    return Poll::Ready(End::ByItself(ended));
                }
            }
            match self.asked.poll_join_next(context) {
                Poll::Ready(Some(Ok(number))) => Poll::Ready(End::Asked(number)),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Lets no answer go on that still runs when the tunnels are stopped.
    pub(in crate::commands) fn wait_for_no_answer(&self) {
        self.end_now.cancel();
    }

    fn end(&mut self, TunnelToEnd { running, drain, span, .. }: TunnelToEnd) {
        self.stopping.spawn(running.stop(self.end_now.clone(), drain).instrument(span));
    }

    /// Stops all of them, side by side. Another signal ends the answers that still run.
    ///
    /// # Errors
    /// If a part of one has ended by itself.
    pub(in crate::commands) async fn stop(
        mut self,
        signals: &mut StopSignals,
    ) -> Result<(), Failure> {
        for tunnel in std::mem::take(&mut self.serving) {
            self.end(tunnel);
        }
        let mut result = Ok(());
        loop {
            tokio::select! {
                stopped = self.stopping.join_next() => match stopped {
                    Some(stopped) => result = result.and(result_of(stopped)),
                    None => return result,
                },
                () = signals.asked() => self.end_now.cancel(),
            }
        }
    }
}

fn result_of(stopped: Result<Result<(), Failure>, JoinError>) -> Result<(), Failure> {
    stopped.map_err(Failure::from_error)?
}
