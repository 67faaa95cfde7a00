//! A connection to the service: opened for a request, and reused for the next ones on the same
//! stream.

use std::future::pending;

use common::machine::process;
use proto::wire::Code;
use tokio::{net::TcpStream, sync::SemaphorePermit};

use super::{
    Gate, PLACE_WITHIN, StreamContext,
    budget::{BudgetExhausted, Share},
};
use crate::policy::upstream;

/// Descriptors that this process needs for other purposes.
const OTHER_DESCRIPTORS: usize = 128;

/// A connection to the service, and its share of the budget of connections.
pub(super) struct ServiceConnection<'a> {
    pub(super) tcp: TcpStream,
    _share: Share<'a>,
    _stream: SemaphorePermit<'a>,
}

/// How the service closed an idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// With FIN.
    Ended,
    /// With RST, or by sending bytes without a request.
    Broken,
}

impl ServiceConnection<'_> {
    /// Ends when the service closes an idle connection.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn left(service: Option<&mut Self>) -> Left {
        let Some(service) = service else { return pending().await };
        match service.tcp.peek(&mut [0]).await {
            Ok(0) => Left::Ended,
            _ => Left::Broken,
        }
    }

    /// Whether the service is known to have closed the connection.
    pub(super) fn has_left(&mut self) -> bool {
        let left = std::pin::pin!(Self::left(Some(self)));
        let mut now = std::task::Context::from_waker(std::task::Waker::noop());
        left.poll(&mut now).is_ready()
    }
}

/// How many connections to the service there may be. The limit of descriptors may change while this
/// process runs.
fn places() -> usize {
    process::descriptor_limit().saturating_sub(OTHER_DESCRIPTORS).max(OTHER_DESCRIPTORS)
}

impl Gate {
    /// Opens a connection to the service.
    ///
    /// # Errors
    /// The code that the device gets.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is left behind.
    pub(super) async fn dial<'a>(
        &'a self,
        context: &'a StreamContext<'_>,
    ) -> Result<ServiceConnection<'a>, Code> {
        let stream = tokio::time::timeout(PLACE_WITHIN, context.slots.acquire()).await;
        let stream = stream.ok().and_then(Result::ok).ok_or(Code::TooManyStreams)?;
        self.connections.resize(places());
        let mut share = self.connections.share(context.asker.id);
        share.grow(1).await.map_err(|BudgetExhausted| Code::TooManyStreams)?;
        let permit = self.policy.permit(context.certificate, context.service)?;
        let tcp = upstream::dial(&permit).await.inspect_err(|code| {
            tracing::warn!("cannot reach {}: {}", permit.upstream(), code.sentence());
        })?;
        Ok(ServiceConnection { tcp, _share: share, _stream: stream })
    }
}
