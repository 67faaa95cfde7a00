//! The gate: what stands between a device's stream and an `http` service. It reads every request strictly, asks whether it may pass, and
//! then lets the very bytes through that it has read; of answers it only follows where they end.
//!
//! One stream is one TCP connection, as with `common::splice`, and FIN, RST and the loss of the network mean the same. Requests are
//! decided one after the other: the next one is looked at when the answer to the last has passed.

pub mod authorize;
mod conversation;
mod exchange;
pub mod framing;
pub mod head;
pub mod host;
mod inbox;
mod judge;
pub mod model;
pub mod record;
pub mod refused;
pub mod route;
mod running;
pub mod tokens;
pub mod tracker;

use std::sync::{Arc, PoisonError, RwLock};

use common::{
    identity::Certificate,
    splice::{self, End, Meter, Sending},
};
use quinn::RecvStream;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use self::{
    authorize::Authority,
    conversation::{Conversation, Over},
    record::{Admission, Asker, Observer},
};
use crate::policy::Policy;

/// Bodies that are read whole before they are forwarded, all together, in KiB.
const MOST_READ: usize = 256 * 1024;

/// What all connections through the gate share.
pub struct Gate {
    policy: Arc<Policy>,
    admission: Arc<dyn Admission>,
    observer: Arc<dyn Observer>,
    authority: RwLock<Option<Arc<Authority>>>,
    changes: watch::Sender<()>,
    room: Semaphore,
}

/// One connection through the gate.
pub struct Line<'a> {
    /// What the device has proved.
    pub certificate: &'a Certificate,
    /// Who it is.
    pub asker: Asker,
    /// Counts what passes.
    pub meter: &'a Meter,
    /// Cancelled when the server is to stop.
    pub draining: &'a CancellationToken,
}

impl Gate {
    /// A gate that asks these.
    pub fn new(policy: Arc<Policy>, admission: Arc<dyn Admission>, observer: Arc<dyn Observer>) -> Self {
        Self {
            policy,
            admission,
            observer,
            authority: RwLock::default(),
            changes: watch::Sender::new(()),
            room: Semaphore::new(MOST_READ),
        }
    }

    /// Who is asked besides the policy.
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Somebody else is asked from now on, or nobody.
    pub fn set_authority(&self, authority: Option<Arc<Authority>>) {
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = authority;
    }

    /// The policy says something else than before: requests that run are judged again.
    pub fn judge_again(&self) {
        self.changes.send_replace(());
    }

    /// Carries one connection to its end. Cancelling it cuts both sides.
    pub async fn run(&self, line: Line<'_>, mut tcp: TcpStream, mut send: Sending, recv: RecvStream) -> End {
        let (read, write) = tcp.split();
        let (over, recv, received_all) = Conversation::new(self, &line, read, write, &mut send, recv).run().await;
        let (end, stopped) = match over {
            Over::Ended { end, stopped } => (end, stopped),
            Over::Refused => {
                // It must not take what it has for a whole request.
                let _ = tcp.set_zero_linger();
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
