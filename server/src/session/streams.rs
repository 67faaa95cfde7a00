//! The streams of a session: each begins with a head that says what it is for.

use std::time::{Duration, Instant};

use common::transport::{
    HANDSHAKE_WITHIN,
    splice::{Facing, Receiving, Sending, splice},
};
use proto::{
    identity::Name,
    wire::{Code, StreamHead},
};
use quinn::{RecvStream, SendStream};
use tokio::{
    net::TcpStream,
    sync::{SemaphorePermit, watch},
};
use tracing::{debug, warn};

use super::Session;
use crate::{
    gate::StreamContext,
    policy::{Caller, Permit, upstream},
};

/// How long a stream of `adit doctor` may last.
const DOCTOR_WITHIN: Duration = Duration::from_secs(15);
/// How long a stream waits for another to end if there are too many.
const SLOT_WITHIN: Duration = Duration::from_secs(10);

impl Session {
    pub(super) async fn serve_stream(&self, send: SendStream, recv: RecvStream) {
        let _counted = self.guard.count_stream();
        let mut send = Sending::within(send, &self.credit);
        let mut recv = Receiving::new(recv, &self.credit);
        let head = tokio::select! {
            biased;
            head = tokio::time::timeout(HANDSHAKE_WITHIN, read_head(&mut recv)) => head,
            // Nothing was requested yet.
            () = self.draining.cancelled() => return refuse(send, recv, Code::ShuttingDown),
        };
        let end = match head {
            Ok(Ok(StreamHead::Forward(service))) => {
                return self.forward(&service, send, recv).await;
            }
            Ok(Ok(StreamHead::Renew)) => {
                let renewed = async {
                    self.renew(&mut send).await?;
                    send.acknowledged().await;
                    Ok(())
                };
                let within = tokio::time::timeout(HANDSHAKE_WITHIN, renewed).await;
                within.unwrap_or(Err(Code::Protocol))
            }
            Ok(Ok(StreamHead::Doctor)) => {
                let answered = Box::pin(self.answer_doctor(&mut send, &mut recv));
                let within = tokio::time::timeout(DOCTOR_WITHIN, answered).await;
                within.unwrap_or(Err(Code::Busy))
            }
            Ok(Ok(StreamHead::Queue)) => {
                let answered = self.answer_queue(&mut send);
                let within = tokio::time::timeout(HANDSHAKE_WITHIN, answered).await;
                within.unwrap_or(Err(Code::Busy))
            }
            Ok(Ok(StreamHead::Stored)) => {
                self.note_ca(self.ca.sent()).await;
                send.finish();
                let told = tokio::time::timeout(HANDSHAKE_WITHIN, send.acknowledged()).await;
                told.map(drop).map_err(|_| Code::Protocol)
            }
            Ok(Err(code)) => Err(code),
            Err(_) => Err(Code::Protocol),
        };
        if let Err(code) = end {
            refuse(send, recv, code);
        }
    }

    /// Joins a stream to its service: through the gate, or byte by byte.
    async fn forward(&self, service: &Name, send: Sending, recv: Receiving) {
        if !self.server.policy.is_http(service) {
            return self.forward_bytes(service, send, recv).await;
        }
        let line = StreamContext {
            caller: Caller::Device(&self.peer),
            not_after: &self.not_after,
            asker: self.asker(),
            service,
            slots: &self.slots,
            is_closed: &|| self.connection.close_reason().is_some(),
            meter: &self.guard.traffic.meter,
            draining: &self.draining,
            added: &[],
        };
        let end = self.server.gate.run(line, send, recv).await;
        debug!("stream ended: {end:?}");
    }

    /// Joins a stream to a `tcp` service, and notes it in the audit log.
    async fn forward_bytes(&self, service: &Name, send: Sending, recv: Receiving) {
        let (began, counted) = (Instant::now(), self.guard.traffic.stream());
        let (meter, draining) = (&*counted.meter, &self.draining);
        let changes = self.server.gate.changes();
        let (end, why) = match self.reach(service).await {
            Ok((tcp, _slot)) => {
                let never = std::future::pending();
                let splice = splice(tcp, send, recv, Facing::Upstream, meter, draining, never);
                // In memory of its own, as it is large: the other streams do not need it.
                tokio::select! {
                    outcome = Box::pin(splice) => self.end_of(outcome.end),
                    // Dropping the splice cuts both sides.
                    code = self.overruled(service, changes) => ("cut", Some(code.as_str())),
                }
            }
            Err(code) => {
                refuse(send, recv, code);
                ("refused", Some(code.as_str()))
            }
        };
        self.note_stream(service, meter, began.elapsed(), (end, why));
    }

    /// A connection to a `tcp` service, and a permit to serve the stream.
    async fn reach(&self, service: &Name) -> Result<(TcpStream, SemaphorePermit<'_>), Code> {
        let permit = self.permit(service)?;
        let slot = tokio::time::timeout(SLOT_WITHIN, self.slots.acquire()).await;
        let slot = slot.ok().and_then(Result::ok).ok_or(Code::TooManyStreams)?;
        let tcp = upstream::dial(&permit)
            .await
            .inspect_err(|code| warn!("cannot reach {}: {}", permit.upstream(), code.sentence()))?;
        // Buffered bytes must not reach a service after a revocation.
        if self.connection.close_reason().is_some() {
            return Err(Code::Cut);
        }
        Ok((tcp, slot))
    }

    /// Ends when the rules have changed and the device may not use the service any more.
    async fn overruled(&self, service: &Name, mut changes: watch::Receiver<()>) -> Code {
        while changes.changed().await.is_ok() {
            if let Err(code @ Code::Denied) = self.permit(service).map(drop) {
                return code;
            }
        }
        std::future::pending().await
    }

    fn permit(&self, service: &Name) -> Result<Permit, Code> {
        if self.is_expired() {
            return Err(Code::Expired);
        }
        self.server.policy.permit_unread(Caller::Device(&self.peer), service)
    }
}

pub(super) fn refuse(mut send: Sending, mut recv: Receiving, code: Code) {
    send.reset(code);
    recv.stop((code as u32).into());
}

/// Reads the head of a stream, and no byte after it.
async fn read_head(recv: &mut Receiving) -> Result<StreamHead, Code> {
    let mut bytes = [0; StreamHead::MAX_LEN];
    let (mut have, mut want) = (0, 2);
    loop {
        recv.read_exact(&mut bytes[have..want]).await.map_err(|_| Code::Protocol)?;
        have = want;
        match StreamHead::decode(&bytes[..have]) {
            Ok(Some((head, _))) => return Ok(head),
            Ok(None) => want = (2 + usize::from(bytes[1])).min(StreamHead::MAX_LEN),
            Err(_) => return Err(Code::Protocol),
        }
    }
}
