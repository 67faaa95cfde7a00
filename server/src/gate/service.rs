//! A connection to the service: opened for a request, and reused for the next ones on the same
//! stream.

use std::{future::pending, io, mem::MaybeUninit};

use common::machine::process;
use proto::wire::Code;
use socket2::SockRef;
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
    /// Whether a request was answered on it. The service may close such a connection at any moment,
    /// also while the next request is on its way.
    pub(super) has_answered: bool,
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

    /// Whether the service has closed the connection, as far as this machine knows. The kernel is
    /// asked: the runtime hears of a FIN only when it looks for events the next time.
    pub(super) fn has_left(&self) -> bool {
        has_ended(&self.tcp)
    }
}

fn has_ended(tcp: &TcpStream) -> bool {
    let peeked = SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]);
    !peeked.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
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
        let permit = self.policy.permit(context.caller, context.service)?;
        let tcp = upstream::dial(&permit).await.inspect_err(|code| {
            tracing::warn!("cannot reach {}: {}", permit.upstream(), code.sentence());
        })?;
        Ok(ServiceConnection { tcp, has_answered: false, _share: share, _stream: stream })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_closed_connection_is_known_before_the_runtime_hears_of_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tcp = TcpStream::connect(address).await.expect("connected");
        let (service, _) = listener.accept().await.expect("accepted");
        // The runtime knows now that there is nothing to read.
        assert!(tcp.try_read(&mut [0]).is_err());
        assert!(!has_ended(&tcp));
        // Nothing is awaited from here on: the runtime cannot look for events.
        drop(service);
        assert!(has_ended(&tcp));
    }
}
