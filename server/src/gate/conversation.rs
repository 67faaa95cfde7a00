//! One connection through the gate: its requests, one after the other.

use common::transport::splice::{DownEnd, End, Receiving, Sending};
use proto::{
    http1::head::{Fault, HeadReader, RequestHead},
    wire::Code,
};
use quinn::{ConnectionError, VarInt};
use tokio::{io::AsyncWriteExt, sync::watch};

use super::{
    Gate, Line,
    carry::{Carried, Hold, Sides, carry},
    exchange::{Ending, Exchange, How, Request},
    inbox::{Head, Inbox},
    judge::Judged,
    refused::Refused,
    running::Running,
    service::{Left, Service},
};
use crate::record;

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

impl Over {
    fn of(how: How, lost: Option<ConnectionError>) -> Self {
        match how {
            How::Done => End::Done.into(),
            How::Stopped => Self::Ended { end: End::Done, stopped: true },
            How::Drained => End::Drained.into(),
            How::Aborted => End::Aborted.into(),
            How::Reset(code) => {
                let aborted = VarInt::from_u32(Code::Aborted as u32);
                End::Reset(VarInt::from_u64(code).unwrap_or(aborted)).into()
            }
            How::Lost => End::Lost(lost.unwrap_or(ConnectionError::LocallyClosed)).into(),
        }
    }
}

/// Both sides of a connection, and what is between them.
pub(super) struct Conversation<'a> {
    pub(super) gate: &'a Gate,
    pub(super) line: &'a Line<'a>,
    /// The connection to the service, from the first request on.
    pub(super) service: Option<Service<'a>>,
    pub(super) send: &'a mut Sending,
    pub(super) inbox: Inbox<'a>,
    pub(super) changes: watch::Receiver<()>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        gate: &'a Gate,
        line: &'a Line<'a>,
        send: &'a mut Sending,
        recv: Receiving,
    ) -> Self {
        Self {
            gate,
            line,
            service: None,
            send,
            inbox: Inbox::new(recv, gate.memory.share(line.asker.id)),
            changes: gate.changes.subscribe(),
        }
    }

    /// Until nothing more can come; also gives back the connection to the service, the stream, and
    /// whether all of it had come.
    pub(super) async fn run(mut self) -> (Over, Option<Service<'a>>, Receiving, bool) {
        let over = loop {
            if let Err(over) = self.next().await {
                break over;
            }
        };
        let (recv, received_all) = self.inbox.into_stream();
        (over, self.service, recv, received_all)
    }

    async fn next(&mut self) -> Result<(), Over> {
        let Some(bytes) = self.head().await? else {
            self.send.finish();
            return Err(End::Done.into());
        };
        let head = match RequestHead::parse(&bytes) {
            Ok(head) => head,
            Err(fault) => return Err(self.malformed(fault, &bytes).await),
        };
        self.judge(head, bytes.into()).await
    }

    /// The next request's head, its empty line included. `None` if there will be none, because one
    /// of both sides has ended.
    async fn head(&mut self) -> Result<Option<Vec<u8>>, Over> {
        let mut reader = HeadReader::default();
        loop {
            let is_asked = !reader.is_empty();
            let head = tokio::select! {
                biased;
                head = self.inbox.head(&mut reader) => head?,
                left = Service::left(self.service.as_mut()) => match left {
                    // The request that has begun goes to a new connection.
                    _ if is_asked => {
                        self.service = None;
                        continue;
                    }
                    Left::Ended => return Ok(None),
                    Left::Broken => return Err(End::Aborted.into()),
                },
                // Another request of this device has more need of it.
                () = self.gate.connections.wanted(self.line.asker.id), if self.service.is_some() => {
                    self.service = None;
                    continue;
                }
                () = self.line.draining.cancelled(), if !is_asked => return Err(End::Drained.into()),
            };
            match head {
                Head::More => {}
                Head::Whole(bytes) => return Ok(Some(bytes)),
                Head::None => return Ok(None),
                Head::Fault(fault, line) => return Err(self.malformed(fault, &line).await),
                Head::Full => {
                    let line = reader.finish();
                    let running = self.gate.nobody(self.line);
                    return Err(self.refuse(running, &line, Refused::no_memory()).await);
                }
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

    /// Carries a request and its answer. An error is the end of the connection.
    pub(super) async fn exchange(
        &mut self,
        request: Request,
        mut judged: Judged,
        hold: Hold,
        mut running: Running<'a>,
    ) -> Result<(), Over> {
        let line = request.begun.first().cloned().unwrap_or_default();
        let Self { send, inbox, changes, gate, line: connection, service, .. } = self;
        let Some(service) = service else { return Err(End::Aborted.into()) };
        let Inbox { recv, ahead, room } = inbox;
        let Running { incoming, outgoing, answer, .. } = &mut running;
        let exchange = Exchange::start(request, incoming, answer, ahead);
        let sides = Sides {
            send,
            recv,
            service: &mut service.tcp,
            meter: connection.meter,
            draining: connection.draining,
        };
        let overruled = judged.overruled(gate, connection, changes.clone());
        let carried = carry(sides, exchange, hold, room, outgoing, overruled, &line).await;
        room.shrink(ahead.len());
        self.conclude(carried, running, &line).await
    }

    async fn conclude(
        &mut self,
        carried: Carried,
        mut running: Running<'a>,
        line: &[u8],
    ) -> Result<(), Over> {
        let Carried { ending, service_left, lost } = carried;
        match ending {
            Ending::Next(end) => {
                running.ended(end, None);
                Ok(())
            }
            Ending::Tell(refused) => {
                // The service stops now, however long it takes to tell.
                self.stop_service().await;
                Err(self.refuse(running, line, refused).await)
            }
            Ending::Last(bytes, end) => {
                self.stop_service().await;
                let over = match Refused::write(self.send, &bytes).await {
                    true => Over::Refused,
                    false => Over::Cut(Code::Aborted),
                };
                running.outgoing.bytes += bytes.len() as u64;
                running.ended(end, None);
                Err(over)
            }
            Ending::Cut(code, end) => {
                running.ended(end, None);
                Err(Over::Cut(code))
            }
            Ending::Close(how, end) => {
                if end == record::End::Cut && service_left {
                    tracing::warn!(
                        "the service ended its connection before its answer was whole: look at its log"
                    );
                }
                running.ended(end, None);
                Err(Over::of(how, lost))
            }
        }
    }

    async fn stop_service(&mut self) {
        if let Some(service) = &mut self.service {
            let _ = service.tcp.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How both connections end is what the exchange says, and nothing else.
    #[test]
    fn each_end_of_an_exchange_is_one_of_a_connection() {
        let ended = |how, lost| match Over::of(how, lost) {
            Over::Ended { end, stopped } => (format!("{end:?}"), stopped),
            over => panic!("{over:?}"),
        };
        for (how, end, stopped) in [
            (How::Done, "Done", false),
            (How::Stopped, "Done", true),
            (How::Drained, "Drained", false),
            (How::Aborted, "Aborted", false),
            (How::Reset(7), "Reset(7)", false),
            (How::Lost, "Lost(TimedOut)", false),
        ] {
            let lost = (how == How::Lost).then_some(ConnectionError::TimedOut);
            assert_eq!(ended(how, lost), (end.to_owned(), stopped), "{how:?}");
        }
    }

    #[test]
    fn an_application_that_ends_while_it_waits_is_no_cut() {
        let of = |end: DownEnd| record::End::of(&Over::from(end));
        assert_eq!(of(DownEnd::Reset((Code::Aborted as u32).into())), record::End::Cancelled);
        assert_eq!(of(DownEnd::Reset((Code::Cut as u32).into())), record::End::Cut);
        assert_eq!(of(DownEnd::Lost(ConnectionError::TimedOut)), record::End::Cut);
    }
}
