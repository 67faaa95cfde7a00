//! The gate: what stands between a device's stream and an `http` service. It reads every request
//! strictly, asks whether it may pass, and then lets the very bytes through that it has read; of
//! answers it only follows where they end.
//!
//! One stream is one TCP connection, as with `common::transport::splice`, and FIN, RST and the loss of the
//! network mean the same. Requests are decided one after the other: the next one is looked at when
//! the answer to the last has passed.

mod conversation;
mod exchange;
mod inbox;
mod judge;
pub mod refused;
mod room;
mod running;
mod this_machine;

use std::sync::{Arc, PoisonError, RwLock, atomic::AtomicI64};

use common::transport::splice::{self, End, Meter, Receiving, Sending};
use proto::{
    http1::head::{HeadReader, RequestHead},
    identity::Certificate,
    ollama::route::{Route, Target, route},
    wire::Code,
};
use tokio::{net::TcpStream, sync::watch};
use tokio_util::sync::CancellationToken;

use self::{
    conversation::{Conversation, Over},
    inbox::{Head, Inbox},
    room::Room,
    running::Running,
};
use crate::{
    policy::{Policy, authorize::Authority},
    record::{Admission, Asker, Observer},
};

/// What all connections through the gate share.
pub struct Gate {
    policy: Arc<Policy>,
    admission: Arc<dyn Admission>,
    observer: Arc<dyn Observer>,
    authority: RwLock<Option<Arc<Authority>>>,
    changes: watch::Sender<()>,
    room: Room,
}

/// One connection through the gate.
pub struct Line<'a> {
    /// What the device has proved.
    pub certificate: &'a Certificate,
    /// The end of its newest certificate, Unix time.
    pub not_after: &'a AtomicI64,
    /// Who it is.
    pub asker: Asker,
    /// Counts what passes.
    pub meter: &'a Meter,
    /// Cancelled when the server is to stop.
    pub draining: &'a CancellationToken,
}

impl Gate {
    /// A gate that asks these.
    pub fn new(
        policy: Arc<Policy>,
        admission: Arc<dyn Admission>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            policy,
            admission,
            observer,
            authority: RwLock::default(),
            changes: watch::Sender::new(()),
            room: Room::default(),
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

    /// Tells whoever asks for a service that can't be reached why not, and records it.
    pub async fn turn_away(&self, line: Line<'_>, why: Code, mut send: Sending, recv: Receiving) {
        let (mut inbox, mut reader) = (Inbox::new(recv), HeadReader::default());
        let told = loop {
            let head = tokio::select! {
                head = inbox.head(&mut reader) => head,
                () = line.draining.cancelled() => break true,
            };
            let (bytes, fault) = match head {
                Ok(Head::More) => continue,
                Ok(Head::Whole(bytes)) => (bytes, None),
                Ok(Head::Fault(fault, bytes)) => (bytes, Some(fault)),
                Ok(Head::None) => break true,
                Err(_) => break false,
            };
            let head = fault.map_or_else(|| RequestHead::parse(&bytes), Err);
            let (mut running, refused) = match &head {
                // What is not allowed is not told how the service is.
                Ok(head) => {
                    let route = route(&head.method, Target::new(&head.target));
                    let refused =
                        self.leave(&line, head, route).err().unwrap_or_else(|| why.into());
                    (self.begin(&line, Some((head, route))), refused)
                }
                Err(fault) => (self.nobody(&line), (*fault).into()),
            };
            running.incoming.bytes = bytes.len() as u64;
            break refused.tell(&mut send, running, &bytes).await;
        };
        let (recv, received_all) = inbox.into_stream();
        if told {
            splice::finish(send, recv, received_all).await;
        }
    }

    /// A request that begins now, and its record.
    fn begin<'a>(&'a self, line: &Line<'_>, head: Option<(&RequestHead, Route)>) -> Running<'a> {
        Running::new(&*self.observer, &line.asker, self.policy.role(line.certificate), head)
    }

    /// The record of what is no request that could be read.
    fn nobody<'a>(&'a self, line: &Line<'_>) -> Running<'a> {
        self.begin(line, None)
    }

    /// Carries one connection to its end. Cancelling it cuts both sides.
    pub async fn run(
        &self,
        line: Line<'_>,
        mut tcp: TcpStream,
        mut send: Sending,
        recv: Receiving,
    ) -> End {
        let (read, write) = tcp.split();
        let (over, recv, received_all) =
            Conversation::new(self, &line, read, write, &mut send, recv).run().await;
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
