//! The tunnels of one process: they end together.

use std::{pin::pin, task::Poll, time::Duration};

use common::machine::{process::StopSignals, report::Failure};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::running::RunningTunnel;

/// The tunnels, and what each needs for its end.
#[derive(Default)]
pub(in crate::commands) struct Tunnels(Vec<TunnelToEnd>);

struct TunnelToEnd {
    running: RunningTunnel,
    /// How long its running answers may go on.
    drain: Duration,
    /// The span of its lines in the log.
    span: Span,
}

impl Tunnels {
    /// Adds a tunnel that was started in the current span.
    pub(in crate::commands) fn add(&mut self, running: RunningTunnel, drain: Duration) {
        self.0.push(TunnelToEnd { running, drain, span: Span::current() });
    }

    /// Waits until a part of one of them has ended by itself. Cancellation safe.
    pub(in crate::commands) async fn ended(&mut self) -> Failure {
        std::future::poll_fn(|context| {
            for tunnel in &mut self.0 {
                // The future keeps nothing, so a new one may be polled each time.
                if let Poll::Ready(ended) = pin!(tunnel.running.parts.ended()).poll(context) {
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Stops all of them, side by side. Another signal ends the answers that still run.
    ///
    /// # Errors
    /// If a part of one has ended by itself.
    pub(in crate::commands) async fn stop(self, signals: &mut StopSignals) -> Result<(), Failure> {
        let end_now = CancellationToken::new();
        let mut stopping = JoinSet::new();
        for TunnelToEnd { running, drain, span } in self.0 {
            stopping.spawn(running.stop(end_now.clone(), drain).instrument(span));
        }
        let mut result = Ok(());
        loop {
            tokio::select! {
                stopped = stopping.join_next() => match stopped {
                    Some(stopped) => {
                        result = result.and(stopped.map_err(Failure::from_error).and_then(|it| it));
                    }
                    None => return result,
                },
                () = signals.asked() => end_now.cancel(),
            }
        }
    }
}
