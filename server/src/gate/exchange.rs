//! A request that may pass and its answer, both at once: each byte goes on as soon as it is there.

mod answer;
mod ask;

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use common::transport::splice::{DownEnd, End, Meter};
use proto::{
    http1::{BodyLength, framing::Body},
    wire::Code,
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    sync::{Notify, watch},
};

use self::{
    answer::{Answered, answer},
    ask::{Asked, ask},
};
use super::{
    Gate, Line,
    conversation::{Conversation, Over},
    judge::Judged,
    refused::Refused,
    room::Share,
    running::Running,
};
use crate::record::{self, Held, Refusal, Ticket};

/// A request on its way to the service.
pub(super) struct Request<'a> {
    /// What has been read of it, to go first.
    pub(super) begun: Vec<Bytes>,
    /// The room that this takes.
    pub(super) room: Option<Share<'a>>,
    /// The rest of its body.
    pub(super) body: Body,
    /// How it was judged; `None` if nothing is asked.
    pub(super) judged: Option<Judged>,
    /// Leave to forward it.
    pub(super) ticket: Ticket,
}

impl Request<'_> {
    /// Nothing is asked.
    pub(super) fn none() -> Self {
        let body = Body::new(BodyLength::Known(0));
        Self { begun: Vec::new(), room: None, body, judged: None, ticket: Ticket::default() }
    }
}

/// Who went away before an answer was whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeftBy {
    Nobody,
    /// The device takes no more.
    Device,
    Service,
}

/// How both ended.
enum Both {
    Ended(End),
    /// Not before the next request can be read.
    Next,
    Refused(Refused),
}

impl<'a> Conversation<'a> {
    /// Carries a request and its answer. An error is the end of the connection.
    pub(super) async fn exchange(
        &mut self,
        mut request: Request<'a>,
        mut running: Running<'a>,
    ) -> Result<(), Over> {
        let line = request.begun.first().cloned().unwrap_or_default();
        let judged = request.judged.take();
        let held = request.ticket.held.take();
        let (answered, sent) = (Notify::new(), Notify::new());
        let (both, left_by) = {
            let Self { read, write, send, inbox, changes, gate, line, .. } = self;
            let Running { incoming, outgoing, .. } = &mut running;
            let way = Way {
                meter: line.meter,
                sent: &sent,
                answered: &answered,
                gone: AtomicBool::new(false),
                turn: Mutex::default(),
            };
            let down = ask(inbox, write, request, incoming, &way);
            let up = answer(read, send, outgoing, &way);
            let overruled = overruled(judged, gate, line, changes.clone());
            tokio::pin!(down, up, overruled);
            let (mut asked, mut replied) = (None, None);
            let mut left_by = LeftBy::Nobody;
            let both = loop {
                tokio::select! {
                    biased;
                    end = &mut up, if replied.is_none() => match end {
                        end @ (Answered::Aborted | Answered::Closed) => {
                            // The service also closes when the application has gone.
                            if !matches!(asked, Some(Asked::Finished)) {
                                left_by = LeftBy::Service;
                            }
                            if let Answered::Aborted = end {
                                break Both::Ended(End::Aborted);
                            }
                            replied = Some(end);
                        }
                        Answered::Lost(e) if asked.is_some() => break Both::Ended(End::Lost(e)),
                        // What has been received is still the service's, unless it needs a turn.
                        end @ (Answered::Lost(_) | Answered::Stopped) => {
                            if let Answered::Stopped = end {
                                left_by = LeftBy::Device;
                            }
                            way.gone.store(true, Relaxed);
                            answered.notify_one();
                            replied = Some(end);
                        }
                        end => replied = Some(end),
                    },
                    // Before anything more of the request leaves.
                    refused = &mut overruled => break Both::Refused(refused),
                    end = &mut down, if asked.is_none() => match end {
                        Asked::Fault(fault) => break Both::Refused(fault.into()),
                        Asked::TooLong(most) => break Both::Refused(too_long(most)),
                        Asked::NotNow(not_now) => break Both::Refused(not_now.into()),
                        Asked::Left(DownEnd::Finished) => break Both::Ended(End::Drained),
                        Asked::Left(DownEnd::Reset(code)) => break Both::Ended(End::Reset(code)),
                        Asked::Broken(DownEnd::Reset(code)) => break Both::Ended(End::Reset(code)),
                        Asked::Broken(DownEnd::Lost(e)) | Asked::Left(DownEnd::Lost(e)) => break Both::Ended(End::Lost(e)),
                        Asked::Broken(_) | Asked::Left(_) => break Both::Ended(End::Aborted),
                        end => asked = Some(end),
                    },
                    // Nobody reads after the FIN, so nobody else would see an RST.
                    _ = read.ready(Interest::ERROR), if matches!(replied, Some(Answered::Closed | Answered::Stopped | Answered::Lost(_))) => {
                        break Both::Ended(End::Aborted);
                    }
                    () = line.draining.cancelled(), if matches!(replied, Some(Answered::Closed | Answered::Stopped | Answered::Lost(_))) => {
                        break Both::Ended(End::Drained);
                    }
                }
                match (&replied, &asked) {
                    (Some(Answered::Whole), Some(_)) => break Both::Next,
                    (Some(Answered::Lost(e)), Some(_)) => break Both::Ended(End::Lost(e.clone())),
                    (Some(_), Some(_)) => break Both::Ended(End::Done),
                    _ => {}
                }
            };
            (both, left_by)
        };
        drop(held);
        self.conclude(both, left_by, running, &line).await
    }

    async fn conclude(
        &mut self,
        both: Both,
        left_by: LeftBy,
        running: Running<'a>,
        line: &[u8],
    ) -> Result<(), Over> {
        let stopped = left_by == LeftBy::Device;
        let end = match both {
            Both::Next => {
                running.ended(record::End::Done, None);
                return Ok(());
            }
            Both::Refused(refused) if running.outgoing.is_free() => {
                // The service stops now, however long it takes to tell.
                let _ = self.write.shutdown().await;
                return Err(self.refuse(running, line, refused).await);
            }
            Both::Refused(refused) => {
                let is_denied = !matches!(refused.why, Refusal::Malformed | Refusal::Limit(_));
                running.ended(
                    if is_denied { record::End::Cut } else { record::End::Refused(refused.why) },
                    None,
                );
                return Err(Over::Cut(if is_denied { Code::Denied } else { Code::Aborted }));
            }
            Both::Ended(end) => end,
        };
        let told = match &end {
            _ if running.outgoing.tracker.is_complete() => record::End::Done,
            End::Aborted if left_by == LeftBy::Service => record::End::Cut,
            _ if left_by == LeftBy::Service && running.outgoing.tracker.is_whole_at_close() => {
                record::End::Done
            }
            _ if left_by == LeftBy::Service => record::End::Cut,
            End::Reset(code) if code.into_inner() == u64::from(Code::Aborted as u32) => {
                record::End::Cancelled
            }
            End::Reset(_) | End::Lost(_) => record::End::Cut,
            _ if stopped || self.inbox.is_finished() => record::End::Cancelled,
            _ => record::End::Cut,
        };
        if told == record::End::Cut && left_by == LeftBy::Service && !running.is_told() {
            tracing::warn!(
                "the service ended its connection before its answer was whole: look at its log"
            );
        }
        running.ended(told, None);
        Err(Over::Ended { end, stopped })
    }
}

pub(super) fn too_long(most: u64) -> Refused {
    Refused::new(
        413,
        Refusal::Limit("body"),
        format!("adit: the request's body is longer than {}", proto::human::size(most)),
    )
}

/// What both directions have to know.
struct Way<'a> {
    meter: &'a Meter,
    /// The request is whole.
    sent: &'a Notify,
    /// The answer is, or nobody takes it.
    answered: &'a Notify,
    /// Nobody takes it.
    gone: AtomicBool,
    /// The request's turn at the service, until that has said all.
    turn: Mutex<Option<Held>>,
}

impl Way<'_> {
    fn turn(&self) -> MutexGuard<'_, Option<Held>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn overruled(
    judged: Option<Judged>,
    gate: &Gate,
    line: &Line<'_>,
    changes: watch::Receiver<()>,
) -> Refused {
    match judged {
        Some(mut judged) => judged.overruled(gate, line, changes).await,
        None => std::future::pending().await,
    }
}
