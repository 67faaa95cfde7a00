//! The state of one connection through the gate: both sides, the bytes that are read ahead, and how
//! it ends.

use std::time::SystemTime;

use common::transport::splice::{DownEnd, Receiving, Sending, SpliceEnd};
use proto::{
    http1::head::{Fault, HeadReader},
    wire::Code,
};
use quinn::VarInt;
use tokio::sync::watch;

use super::{
    Gate, StreamContext,
    device_stream::{DeviceStream, Head},
    refused::Refused,
    running::RunningRequest,
    service::{Left, ServiceConnection},
};
use crate::record;

/// Why no more requests come on a connection.
#[derive(Debug)]
pub(super) enum Over {
    /// As a splice ends.
    Ended {
        end: SpliceEnd,
        /// The device does not accept more of the answer.
        stopped: bool,
    },
    /// The application was told why.
    Refused,
    /// The application can't be told: its answer has begun.
    Cut(Code),
}

impl From<SpliceEnd> for Over {
    fn from(end: SpliceEnd) -> Self {
        Self::Ended { end, stopped: false }
    }
}

impl From<DownEnd> for Over {
    fn from(end: DownEnd) -> Self {
        match end {
            DownEnd::Finished => SpliceEnd::Drained.into(),
            DownEnd::Aborted => SpliceEnd::Aborted.into(),
            DownEnd::Reset(code) => SpliceEnd::Reset(code).into(),
            DownEnd::Lost(e) => SpliceEnd::Lost(e).into(),
        }
    }
}

/// Both sides of a connection, and the state between them.
pub(super) struct Conversation<'a> {
    pub(super) gate: &'a Gate,
    pub(super) context: &'a StreamContext<'a>,
    /// The connection to the service, from the first request on.
    pub(super) service: Option<ServiceConnection<'a>>,
    pub(super) send: &'a mut Sending,
    pub(super) device: DeviceStream<'a>,
    pub(super) changes: watch::Receiver<()>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        gate: &'a Gate,
        context: &'a StreamContext<'a>,
        send: &'a mut Sending,
        recv: Receiving,
    ) -> Self {
        Self {
            gate,
            context,
            service: None,
            send,
            device: DeviceStream::new(recv, gate.memory.share(context.asker.id)),
            changes: gate.changes.subscribe(),
        }
    }

    /// The next request's head, with its empty line. `None` if there will be none, because one side
    /// has ended.
    pub(super) async fn head(&mut self) -> Result<Option<Vec<u8>>, Over> {
        let mut reader = HeadReader::default();
        loop {
            let is_asked = !reader.is_empty();
            let head = tokio::select! {
                biased;
                head = self.device.head(&mut reader) => head?,
                left = ServiceConnection::left(self.service.as_mut()) => match left {
                    // The request that has begun is sent on a new connection.
                    _ if is_asked => {
                        self.service = None;
                        continue;
                    }
                    Left::Ended => return Ok(None),
                    Left::Broken => return Err(SpliceEnd::Aborted.into()),
                },
                // Another request of this device needs the connection.
                () = self.gate.connections.wanted(self.context.asker.id), if self.service.is_some() => {
                    self.service = None;
                    continue;
                }
                () = self.context.draining.cancelled(), if !is_asked => return Err(SpliceEnd::Drained.into()),
            };
            match head {
                Head::More => {}
                Head::Whole(bytes) => return Ok(Some(bytes)),
                Head::None => return Ok(None),
                Head::Fault(fault, line) => return Err(self.malformed(fault, &line).await),
                Head::Full => {
                    let line = reader.finish();
                    let running = self.gate.begin_unread(self.context);
                    return Err(self.refuse(running, &line, Refused::no_memory()).await);
                }
            }
        }
    }

    pub(super) async fn malformed(&mut self, fault: Fault, line: &[u8]) -> Over {
        let mut running = self.gate.begin_unread(self.context);
        running.incoming.bytes = line.len() as u64;
        self.refuse(running, line, fault.into()).await
    }

    /// Tells the application why it gets no other answer, and records that. `line` is the beginning
    /// of its request.
    pub(super) async fn refuse(
        &mut self,
        mut running: RunningRequest<'_>,
        line: &[u8],
        refused: Refused,
    ) -> Over {
        let Refused { answer, why } = refused;
        tracing::debug!("refused ({}): {}", answer.status, answer.sentence);
        let bytes = answer.render_with(line, SystemTime::now(), self.context.added);
        let taken = Refused::write(self.send, &bytes).await;
        running.outgoing.bytes += bytes.len() as u64;
        running.ended(record::End::Refused(why), Some(answer.status));
        match taken {
            true => Over::Refused,
            false => SpliceEnd::Reset(VarInt::from_u32(Code::Aborted as u32)).into(),
        }
    }
}
