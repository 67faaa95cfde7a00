//! One connection through the gate: its requests, one after the other.

use common::transport::splice::{DownEnd, End, Receiving, Sending};
use proto::{
    http1::head::{Fault, HeadReader, RequestHead},
    wire::Code,
};
use quinn::VarInt;
use tokio::{
    net::tcp::{ReadHalf, WriteHalf},
    sync::watch,
};

use super::{
    Gate, Line,
    exchange::Request,
    inbox::{Head, Inbox},
    refused::Refused,
    running::Running,
};

/// Why there are no more requests on a connection.
#[derive(Debug)]
pub(super) enum Over {
    /// As a splice ends.
    Ended {
        end: End,
        /// The device takes no more of what the service says.
        stopped: bool,
    },
    /// The application has been told why.
    Refused,
    /// It can't be told any more: its answer has begun.
    Cut(Code),
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        Self::Ended { end, stopped: false }
    }
}

impl From<DownEnd> for Over {
    fn from(end: DownEnd) -> Self {
        match end {
            DownEnd::Finished => End::Drained.into(),
            DownEnd::Aborted => End::Aborted.into(),
            DownEnd::Reset(code) => End::Reset(code).into(),
            DownEnd::Lost(e) => End::Lost(e).into(),
        }
    }
}

/// Both sides of a connection, and what is between them.
pub(super) struct Conversation<'a> {
    pub(super) gate: &'a Gate,
    pub(super) line: &'a Line<'a>,
    pub(super) read: ReadHalf<'a>,
    pub(super) write: WriteHalf<'a>,
    pub(super) send: &'a mut Sending,
    pub(super) inbox: Inbox,
    pub(super) changes: watch::Receiver<()>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        gate: &'a Gate,
        line: &'a Line<'a>,
        read: ReadHalf<'a>,
        write: WriteHalf<'a>,
        send: &'a mut Sending,
        recv: Receiving,
    ) -> Self {
        Self {
            gate,
            line,
            read,
            write,
            send,
            inbox: Inbox::new(recv),
            changes: gate.changes.subscribe(),
        }
    }

    /// Until nothing more can come; also gives the stream back, and whether all of it had come.
    pub(super) async fn run(mut self) -> (Over, Receiving, bool) {
        let over = loop {
            if let Err(over) = self.next().await {
                break over;
            }
        };
        let (recv, received_all) = self.inbox.into_stream();
        (over, recv, received_all)
    }

    async fn next(&mut self) -> Result<(), Over> {
        let Some(bytes) = self.head().await? else {
            // Nothing more is asked here; what the service says still passes.
            let nothing = self.gate.nobody(self.line).unrecorded();
            return self.exchange(Request::none(), nothing).await.and(Err(End::Done.into()));
        };
        let head = match RequestHead::parse(&bytes) {
            Ok(head) => head,
            Err(fault) => return Err(self.malformed(fault, &bytes).await),
        };
        self.judge(head, bytes.into()).await
    }

    /// The next request's head, its empty line included. `None` if there will be none: an end, or a
    /// service that speaks unasked.
    async fn head(&mut self) -> Result<Option<Vec<u8>>, Over> {
        let mut reader = HeadReader::default();
        loop {
            let mut one = [0];
            let is_asked = !reader.is_empty();
            let head = tokio::select! {
                biased;
                head = self.inbox.head(&mut reader) => head?,
                _ = self.read.peek(&mut one) => return Ok(None),
                () = self.line.draining.cancelled(), if !is_asked => return Err(End::Drained.into()),
            };
            match head {
                Head::More => {}
                Head::Whole(bytes) => return Ok(Some(bytes)),
                Head::None => return Ok(None),
                Head::Fault(fault, line) => return Err(self.malformed(fault, &line).await),
            }
        }
    }

    async fn malformed(&mut self, fault: Fault, line: &[u8]) -> Over {
        let mut running = self.gate.nobody(self.line);
        running.incoming.bytes = line.len() as u64;
        self.refuse(running, line, fault.into()).await
    }

    /// Tells an application why it gets no other answer. `line` is the beginning of its request.
    pub(super) async fn refuse(
        &mut self,
        running: Running<'_>,
        line: &[u8],
        refused: Refused,
    ) -> Over {
        match refused.tell(self.send, running, line).await {
            true => Over::Refused,
            false => End::Reset(VarInt::from_u32(Code::Aborted as u32)).into(),
        }
    }
}
