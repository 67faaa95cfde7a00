//! One connection through the gate: its requests, one after the other.

use bytes::Bytes;
use common::transport::splice::{Receiving, SpliceEnd};
use proto::{http1::head::RequestHead, wire::Code};
use quinn::{ConnectionError, VarInt};
use tokio::io::AsyncWriteExt;

use super::{
    carry::{Carried, Outcome, Sides, carry},
    connection::{Conversation, Over},
    device_stream::DeviceStream,
    exchange::{Ending, Exchange, How},
    judge::Judgement,
    refused::Refused,
    running::RunningRequest,
    service::ServiceConnection,
};
use crate::record;

impl Over {
    fn of(how: How, lost: Option<ConnectionError>) -> Self {
        match how {
            How::Done => SpliceEnd::Done.into(),
            How::Stopped => Self::Ended { end: SpliceEnd::Done, stopped: true },
            How::Drained => SpliceEnd::Drained.into(),
            How::Aborted => SpliceEnd::Aborted.into(),
            How::Reset(code) => {
                let aborted = VarInt::from_u32(Code::Aborted as u32);
                SpliceEnd::Reset(VarInt::from_u64(code).unwrap_or(aborted)).into()
            }
            How::Lost => SpliceEnd::Lost(lost.unwrap_or(ConnectionError::LocallyClosed)).into(),
        }
    }
}

impl<'a> Conversation<'a> {
    /// Runs until no more requests can come. Also returns the connection to the service, the
    /// device's stream, and whether all of that stream was received.
    pub(super) async fn run(mut self) -> (Over, Option<ServiceConnection<'a>>, Receiving, bool) {
        let over = loop {
            if let Err(over) = self.next().await {
                break over;
            }
        };
        let (recv, received_all) = self.device.into_stream();
        (over, self.service, recv, received_all)
    }

    /// Carries the next request and its answer. An error ends the connection.
    pub(super) async fn next(&mut self) -> Result<(), Over> {
        let Some(bytes) = self.head().await? else {
            self.send.finish();
            return Err(SpliceEnd::Done.into());
        };
        let head = match RequestHead::parse(&bytes) {
            Ok(head) => head,
            Err(fault) => return Err(Box::pin(self.malformed(fault, &bytes)).await),
        };
        // In memory of their own, as both are large: thousands of streams may wait for a head.
        let judgement = Box::pin(self.judge(head, bytes.into())).await?;
        Box::pin(self.exchange(judgement)).await
    }

    /// Carries a request and its answer. An error ends the connection.
    async fn exchange(&mut self, judgement: Judgement<'a>) -> Result<(), Over> {
        let Judgement { mut request, mut judged, mut hold, mut running } = judgement;
        let line = request.begun.first().cloned().unwrap_or_default();
        loop {
            let Self { send, device, changes, gate, context, service, .. } = self;
            let Some(service) = service else { return Err(SpliceEnd::Aborted.into()) };
            let DeviceStream { recv, ahead, memory } = device;
            let RunningRequest { incoming, outgoing, answer, .. } = &mut running;
            let exchange = Exchange::start(request, incoming, answer, ahead);
            let sides = Sides {
                send,
                recv,
                service: &mut service.tcp,
                meter: context.meter,
                draining: context.draining,
            };
            let overruled = judged.overruled(gate, context, changes.clone());
            match carry(sides, exchange, hold, memory, outgoing, overruled, &line).await {
                Outcome::Ended(carried) => {
                    memory.shrink(ahead.len());
                    return self.conclude(carried, running, &line).await;
                }
                // At most once: the next connection is a new one.
                Outcome::Again(sent_again, held) => (request, hold) = (sent_again, held),
            }
            let held = request.begun.iter().map(Bytes::len).sum();
            running = self.reach_again(&mut judged, running, &line, held).await?;
        }
    }

    async fn conclude(
        &mut self,
        carried: Carried,
        mut running: RunningRequest<'a>,
        line: &[u8],
    ) -> Result<(), Over> {
        let Carried { ending, service_left, lost } = carried;
        match ending {
            Ending::Next(end) => {
                running.ended(end, None);
                if let Some(service) = &mut self.service {
                    service.has_answered = true;
                }
                Ok(())
            }
            Ending::Tell(refused) => {
                // First, so that the service stops even if the device reads slowly.
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
                        "the service closed its connection before its answer was complete: look at the service's log"
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
    use common::transport::splice::DownEnd;

    use super::*;

    /// How both connections end follows from the ending of the exchange.
    #[test]
    fn the_ending_of_an_exchange_decides_how_the_connection_ends() {
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
    fn an_application_that_gives_up_while_waiting_is_not_recorded_as_cut() {
        let of = |end: DownEnd| record::End::of(&Over::from(end));
        assert_eq!(of(DownEnd::Reset((Code::Aborted as u32).into())), record::End::Cancelled);
        assert_eq!(of(DownEnd::Reset((Code::Cut as u32).into())), record::End::Cut);
        assert_eq!(of(DownEnd::Lost(ConnectionError::TimedOut)), record::End::Cut);
    }
}
