//! The gate stands between a device's stream and an `http` service. It reads every request
//! strictly, decides whether it may pass, and forwards the same bytes that it has read. Of answers
//! it only follows where they end.
//!
//! One stream is one TCP connection, as with `common::transport::splice`; FIN, RST and the loss of
//! the network mean the same. Requests are handled one after the other: the next one is read when
//! the answer to the last has been delivered.

mod budget;
mod carry;
mod connection;
mod conversation;
mod device_stream;
mod exchange;
mod judge;
mod read_ahead;
pub(crate) mod refused;
mod running;
mod service;
mod this_machine;

use std::{
    sync::{Arc, PoisonError, RwLock, atomic::AtomicI64},
    time::Duration,
};

use bytes::Bytes;
use common::transport::splice::{self, ByteCounters, Receiving, Sending, SpliceEnd};
use proto::{http1::head::RequestHead, identity::Name, ollama::route::ApiRoute};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use self::{
    budget::Budget,
    connection::{Conversation, Over},
    running::RunningRequest,
};
use crate::{
    policy::{Caller, Policy, authorize::Authority},
    record::{Asker, Observer, Throttle},
};

/// What all connections through the gate share.
pub(crate) struct Gate {
    policy: Arc<Policy>,
    throttle: Arc<dyn Throttle>,
    observer: Arc<dyn Observer>,
    authority: RwLock<Option<Arc<Authority>>>,
    changes: watch::Sender<()>,
    /// Memory for bytes that were read and may not be forwarded yet.
    memory: Budget,
    /// Connections to the service.
    connections: Budget,
}

/// Memory for all bytes that are read ahead, for all devices together.
const MEMORY: usize = 192 << 20;
/// How long a request waits for memory. Other requests may hold it for long.
const MEMORY_WITHIN: Duration = Duration::from_secs(30);
/// How long a request waits for a connection to the service; their number is limited.
const PLACE_WITHIN: Duration = Duration::from_secs(10);

/// The context of one stream through the gate.
pub(crate) struct StreamContext<'a> {
    /// Who makes the requests.
    pub caller: Caller<'a>,
    /// When its newest certificate expires, in Unix time; far away if it has none.
    pub not_after: &'a AtomicI64,
    pub asker: Asker,
    /// The service that the stream names.
    pub service: &'a Name,
    /// A permit for each request of the device that is served at once.
    pub slots: &'a Semaphore,
    /// Whether the tunnel is closed: then nothing more that came through it is forwarded.
    pub is_closed: &'a (dyn Fn() -> bool + Sync),
    /// Counts the bytes that pass.
    pub meter: &'a ByteCounters,
    /// Cancelled when the server is to stop.
    pub draining: &'a CancellationToken,
    /// Fields that are added to each answer.
    pub added: &'a [(&'static str, String)],
}

/// A connection on which another request may follow.
pub(crate) struct OpenConnection {
    pub(crate) send: Sending,
    pub(crate) recv: Receiving,
    /// What came after the request.
    pub(crate) ahead: Vec<Bytes>,
}

impl Gate {
    /// Creates a gate that asks these.
    pub(crate) fn new(
        policy: Arc<Policy>,
        throttle: Arc<dyn Throttle>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            policy,
            throttle,
            observer,
            authority: RwLock::default(),
            changes: watch::Sender::new(()),
            memory: Budget::new(MEMORY, MEMORY_WITHIN),
            connections: Budget::new(usize::MAX / 4, PLACE_WITHIN),
        }
    }

    /// The service that is asked besides the policy, if any.
    pub(crate) fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the service that is asked, or removes it.
    pub(crate) fn set_authority(&self, authority: Option<Arc<Authority>>) {
        let mut now = self.authority.write().unwrap_or_else(PoisonError::into_inner);
        // The answers of an unchanged service are still valid.
        if let (Some(now), Some(authority)) = (now.as_ref(), &authority)
            && now.is_same(authority)
        {
            return;
        }
        *now = authority;
    }

    /// Tells each time that the policy has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The policy has changed: running requests are judged again.
    pub(crate) fn judge_again(&self) {
        self.changes.send_replace(());
    }

    /// Begins a request, and its record.
    fn begin<'a>(
        &'a self,
        context: &StreamContext<'_>,
        head: Option<(&RequestHead, ApiRoute)>,
    ) -> RunningRequest<'a> {
        let role = self.policy.role(context.caller);
        RunningRequest::new(&*self.observer, (&context.asker, context.service), role, head)
    }

    /// Begins the record of a request that could not be read.
    fn begin_unread<'a>(&'a self, context: &StreamContext<'_>) -> RunningRequest<'a> {
        self.begin(context, None)
    }

    /// Carries one connection to its end. Cancelling it cuts both sides.
    pub(crate) async fn run(
        &self,
        context: StreamContext<'_>,
        mut send: Sending,
        recv: Receiving,
    ) -> SpliceEnd {
        let (over, service, recv, received_all) =
            Conversation::new(self, &context, &mut send, recv).run().await;
        end(over, service.map(|service| service.tcp), send, recv, received_all).await
    }

    /// Carries one request, whose head was read already, and its answer. `begun` begins with the
    /// head. Returns the connection if another request may follow on it. Cancelling it cuts both
    /// sides.
    pub(crate) async fn run_one(
        &self,
        context: StreamContext<'_>,
        mut send: Sending,
        recv: Receiving,
        begun: Vec<Bytes>,
    ) -> Option<OpenConnection> {
        let (next, service, device) = {
            let mut conversation = Conversation::new(self, &context, &mut send, recv);
            for bytes in begun {
                conversation.device.ahead.push(bytes);
            }
            let next = conversation.next().await;
            let Conversation { service, device, .. } = conversation;
            (next, service.map(|service| service.tcp), device)
        };
        match next {
            Ok(()) => {
                let (recv, ahead) = device.into_parts();
                Some(OpenConnection { send, recv, ahead })
            }
            Err(over) => {
                let (recv, received_all) = device.into_stream();
                end(over, service, send, recv, received_all).await;
                None
            }
        }
    }
}

/// Ends both sides of a connection.
async fn end(
    over: Over,
    tcp: Option<TcpStream>,
    mut send: Sending,
    recv: Receiving,
    received_all: bool,
) -> SpliceEnd {
    let (end, stopped) = match over {
        Over::Ended { end, stopped } => (end, stopped),
        Over::Refused => {
            // The service must not take the bytes that it has for a whole request.
            if let Some(tcp) = &tcp {
                let _ = tcp.set_zero_linger();
            }
            (SpliceEnd::Drained, false)
        }
        Over::Cut(code) => {
            send.reset(code);
            (SpliceEnd::Aborted, true)
        }
    };
    splice::close(tcp, send, recv, &end, stopped, received_all).await;
    end
}
