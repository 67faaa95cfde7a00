//! The gate: what stands between a device's stream and an `http` service. It reads every request
//! strictly, asks whether it may pass, and then lets the very bytes through that it has read; of
//! answers it only follows where they end.
//!
//! One stream is one TCP connection, as with `common::transport::splice`, and FIN, RST and the loss of the
//! network mean the same. Requests are decided one after the other: the next one is looked at when
//! the answer to the last has passed.

mod budget;
mod carry;
mod connection;
mod conversation;
mod device_stream;
mod exchange;
mod judge;
mod read_ahead;
pub mod refused;
mod running;
mod service;
mod this_machine;

use std::{
    sync::{Arc, PoisonError, RwLock, atomic::AtomicI64},
    time::Duration,
};

use common::transport::splice::{self, ByteCounters, End, Receiving, Sending};
use proto::{
    http1::head::RequestHead,
    identity::{Certificate, Name},
    ollama::route::Route,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::{
    budget::Budget,
    connection::{Conversation, Over},
    running::Running,
};
use crate::{
    policy::{Policy, authorize::Authority},
    record::{Asker, Observer, Throttle},
};

/// What all connections through the gate share.
pub struct Gate {
    policy: Arc<Policy>,
    throttle: Arc<dyn Throttle>,
    observer: Arc<dyn Observer>,
    authority: RwLock<Option<Arc<Authority>>>,
    changes: watch::Sender<()>,
    /// Memory for what is read and may not be forwarded yet, in bytes.
    memory: Budget,
    /// Connections to the service.
    connections: Budget,
}

/// Memory for all that is read ahead, of all devices together, in bytes.
const MEMORY: usize = 192 << 20;
/// So long a request waits for memory: others may be long in coming.
const MEMORY_WITHIN: Duration = Duration::from_secs(30);
/// So long a request waits for a connection to the service, of which there are only so many.
const PLACE_WITHIN: Duration = Duration::from_secs(10);

/// One connection through the gate.
pub struct StreamContext<'a> {
    /// What the device has proved.
    pub certificate: &'a Certificate,
    /// The end of its newest certificate, Unix time.
    pub not_after: &'a AtomicI64,
    /// Who it is.
    pub asker: Asker,
    /// The service that it has asked for.
    pub service: &'a Name,
    /// A place for each of the device's requests that are served at once.
    pub slots: &'a Semaphore,
    /// Whether the tunnel is closed: then nothing more that it brought is forwarded.
    pub is_closed: &'a (dyn Fn() -> bool + Sync),
    /// Counts what passes.
    pub meter: &'a ByteCounters,
    /// Cancelled when the server is to stop.
    pub draining: &'a CancellationToken,
}

impl Gate {
    /// A gate that asks these.
    pub fn new(
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

    /// Who is asked besides the policy, if anybody.
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Somebody else is asked from now on, or nobody.
    pub fn set_authority(&self, authority: Option<Arc<Authority>>) {
        let mut now = self.authority.write().unwrap_or_else(PoisonError::into_inner);
        // What the same one has said is still true.
        if let (Some(now), Some(authority)) = (now.as_ref(), &authority)
            && now.is_same(authority)
        {
            return;
        }
        *now = authority;
    }

    /// The policy says something else than before: requests that run are judged again.
    pub fn judge_again(&self) {
        self.changes.send_replace(());
    }

    /// A request that begins now, and its record.
    fn begin<'a>(
        &'a self,
        line: &StreamContext<'_>,
        head: Option<(&RequestHead, Route)>,
    ) -> Running<'a> {
        Running::new(&*self.observer, &line.asker, self.policy.role(line.certificate), head)
    }

    /// The record of what is no request that could be read.
    fn nobody<'a>(&'a self, line: &StreamContext<'_>) -> Running<'a> {
        self.begin(line, None)
    }

    /// Carries one connection to its end. Cancelling it cuts both sides.
    pub async fn run(&self, line: StreamContext<'_>, mut send: Sending, recv: Receiving) -> End {
        let (over, service, recv, received_all) =
            Conversation::new(self, &line, &mut send, recv).run().await;
        let tcp = service.map(|service| service.tcp);
        let (end, stopped) = match over {
            Over::Ended { end, stopped } => (end, stopped),
            Over::Refused => {
                // The service must not take what it has for a whole request.
                if let Some(tcp) = &tcp {
                    let _ = tcp.set_zero_linger();
                }
                (End::Drained, false)
            }
            Over::Cut(code) => {
                send.reset(code);
                (End::Aborted, true)
            }
        };
        splice::close(tcp, send, recv, &end, stopped, received_all).await;
        end
    }
}
