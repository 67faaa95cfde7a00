//! A request that may pass and its answer, both at once: each byte goes on as soon as it is there.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use common::{
    splice::{Buffer, CHUNKS, DownEnd, End, Meter, Sending},
    wire::Code,
};
use quinn::{ConnectionError, StoppedError, WriteError};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::tcp::{ReadHalf, WriteHalf},
    sync::{Notify, watch},
};

use super::{
    Gate, Line,
    conversation::{Conversation, Over},
    framing::Body,
    head::Fault,
    inbox::{BEHIND, Inbox, WAITING},
    judge::Judged,
    record::{self, BodyLength, Held, NotNow, Refusal, Ticket, Turn},
    refused::Refused,
    room::Share,
    running::{Incoming, Outgoing, Running},
};

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

/// How the device's direction ended.
enum Asked {
    /// The request is whole, and its answer has passed.
    Whole,
    /// The application has ended; FIN was passed on.
    Finished,
    /// Its body is not what it should be. The service has got nothing of that.
    Fault(Fault),
    /// Its body is longer than it may be.
    TooLong(u64),
    /// It was not its turn.
    NotNow(NotNow),
    /// The application did not wait for its turn.
    Left(DownEnd),
    /// Nobody is there to take an answer: it did not get a turn.
    Gone,
    Broken(DownEnd),
}

/// How the service's direction ended.
enum Answered {
    /// The answer has passed, and the request before it.
    Whole,
    /// FIN was passed on.
    Closed,
    /// The device takes no more.
    Stopped,
    /// RST, or more than an answer.
    Aborted,
    Lost(ConnectionError),
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
    pub(super) async fn exchange(&mut self, mut request: Request<'a>, mut running: Running<'a>) -> Result<(), Over> {
        let line = request.begun.first().cloned().unwrap_or_default();
        let judged = request.judged.take();
        let held = request.ticket.held.take();
        let (answered, sent) = (Notify::new(), Notify::new());
        let (both, left_by) = {
            let Self { read, write, send, inbox, changes, gate, line, .. } = self;
            let Running { incoming, outgoing, .. } = &mut running;
            let way =
                Way { meter: line.meter, sent: &sent, answered: &answered, gone: AtomicBool::new(false), turn: Mutex::default() };
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

    async fn conclude(&mut self, both: Both, left_by: LeftBy, running: Running<'a>, line: &[u8]) -> Result<(), Over> {
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
                running.ended(if is_denied { record::End::Cut } else { record::End::Refused(refused.why) }, None);
                return Err(Over::Cut(if is_denied { Code::Denied } else { Code::Aborted }));
            }
            Both::Ended(end) => end,
        };
        let told = match &end {
            _ if running.outgoing.tracker.is_complete() => record::End::Done,
            End::Aborted if left_by == LeftBy::Service => record::End::Cut,
            _ if left_by == LeftBy::Service && running.outgoing.tracker.is_whole_at_close() => record::End::Done,
            _ if left_by == LeftBy::Service => record::End::Cut,
            End::Reset(code) if code.into_inner() == u64::from(Code::Aborted as u32) => record::End::Cancelled,
            End::Reset(_) | End::Lost(_) => record::End::Cut,
            _ if stopped || self.inbox.is_finished() => record::End::Cancelled,
            _ => record::End::Cut,
        };
        if told == record::End::Cut && left_by == LeftBy::Service && !running.is_told() {
            tracing::warn!("the service ended its connection before its answer was whole: look at its log");
        }
        running.ended(told, None);
        Err(Over::Ended { end, stopped })
    }
}

pub(super) fn too_long(most: u64) -> Refused {
    Refused::new(413, Refusal::Limit("body"), format!("adit: the request's body is longer than the {most} bytes that it may be"))
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

async fn overruled(judged: Option<Judged>, gate: &Gate, line: &Line<'_>, changes: watch::Receiver<()>) -> Refused {
    match judged {
        Some(mut judged) => judged.overruled(gate, line, changes).await,
        None => std::future::pending().await,
    }
}

/// From the device to the service: one request, and then whether the application is still there.
async fn ask(inbox: &mut Inbox, to: &mut WriteHalf<'_>, request: Request<'_>, incoming: &mut Incoming, way: &Way<'_>) -> Asked {
    let Request { begun, mut room, mut body, ticket, .. } = request;
    let (most_body, mut turn) = (ticket.most_body.unwrap_or(u64::MAX), ticket.turn);
    let mut begun = begun.into_iter();
    // What would let the service begin, until it is its turn.
    let mut kept = Vec::new();
    let mut behind = 0;
    loop {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        // What has been read goes with what is there already: one write, and no part of what is found faulty with it.
        let first = begun.by_ref().take(2).enumerate().map(|(at, chunk)| chunks[at] = chunk).count();
        let more = match (first, body.is_over()) {
            (0, true) => break,
            (_, true) => 0,
            (0, false) => match inbox.next(&mut chunks).await {
                Ok(0) => return finish(to).await,
                Ok(count) => count,
                Err(end) => return Asked::Broken(end),
            },
            (first, false) => inbox.ready(&mut chunks[first..]),
        };
        let mut count = first + more;
        for at in first..count {
            let taken = match body.follow(&chunks[at], |content| incoming.content(content)) {
                Ok(taken) => taken,
                Err(fault) => return Asked::Fault(fault),
            };
            if taken < chunks[at].len() {
                inbox.keep_behind(&mut chunks[at..count], taken);
                count = at + 1;
                break;
            }
        }
        if incoming.content > most_body {
            return Asked::TooLong(most_body);
        }
        let length: usize = chunks[..count].iter().map(Bytes::len).sum();
        incoming.bytes += length as u64;
        let chunks = match &turn {
            Some(_) if incoming.is_whole() || body.is_over() => {
                behind += if kept.is_empty() { 0 } else { length };
                kept.extend_from_slice(&chunks[..count]);
                // What is never finished takes nobody's turn, and the service would begin before its end.
                if !body.is_over() {
                    if behind > BEHIND {
                        return Asked::Fault(Fault::Behind);
                    }
                    continue;
                }
                if let Some(turn) = turn.take()
                    && let Err(end) = in_line(turn, inbox, incoming, way).await
                {
                    return end;
                }
                &mut kept[..]
            }
            _ => &mut chunks[..count],
        };
        if let Err(end) = inbox.forward(chunks, to, way.meter).await {
            return Asked::Broken(end);
        }
        room = None;
    }
    drop(room);
    way.sent.notify_one();
    tokio::select! {
        biased;
        () = way.answered.notified() => Asked::Whole,
        end = inbox.watch(BEHIND) => match end {
            DownEnd::Finished if inbox.is_over() => finish(to).await,
            // It ends behind its next request.
            DownEnd::Finished => {
                way.answered.notified().await;
                Asked::Whole
            }
            end => Asked::Broken(end),
        }
    }
}

/// Waits for its turn, while the application may go. One that half-closes gives up, as it does with Ollama.
async fn in_line(turn: Turn, inbox: &mut Inbox, incoming: &mut Incoming, way: &Way<'_>) -> Result<(), Asked> {
    let since = Instant::now();
    let left = async {
        match inbox.watch(WAITING).await {
            // It ends behind its next request.
            DownEnd::Finished if inbox.has_more() => std::future::pending().await,
            end => end,
        }
    };
    let turn = tokio::select! {
        biased;
        () = way.answered.notified() => {
            way.answered.notify_one();
            if way.gone.load(Relaxed) {
                return Err(Asked::Gone);
            }
            // It has had its answer: whatever else it says starts nothing.
            None
        }
        turn = turn => Some(turn.map_err(Asked::NotNow)?),
        end = left => return Err(Asked::Left(end)),
    };
    incoming.queued = since.elapsed();
    *way.turn() = turn;
    Ok(())
}

async fn finish(to: &mut WriteHalf<'_>) -> Asked {
    match to.shutdown().await {
        Ok(()) => Asked::Finished,
        Err(_) => Asked::Broken(DownEnd::Aborted),
    }
}

/// From the service to the device: one answer, piece by piece as they come.
async fn answer(from: &ReadHalf<'_>, to: &mut Sending, outgoing: &mut Outgoing<'_>, way: &Way<'_>) -> Answered {
    let stopped = to.stopped();
    tokio::pin!(stopped);
    let mut whole = false;
    loop {
        if !whole && outgoing.tracker.is_complete() {
            whole = true;
            way.answered.notify_one();
        }
        tokio::select! {
            biased;
            () = way.sent.notified(), if whole => return Answered::Whole,
            ready = from.readable() => if ready.is_err() { return Answered::Aborted },
            stop = &mut stopped => return stop_of(stop.err()),
        }
        let mut buffer = Buffer::take();
        let n = match from.try_read(buffer.bytes()) {
            Ok(0) => {
                drop(way.turn().take());
                to.finish();
                return Answered::Closed;
            }
            Ok(_) if whole => return Answered::Aborted,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Answered::Aborted,
        };
        let (held, piece) = outgoing.tracker.pass(&buffer.bytes()[..n]);
        for piece in [held, piece] {
            if piece.is_empty() {
                continue;
            }
            outgoing.piece(piece);
            // Whoever takes its end slowly, or not at all, keeps nobody from the service.
            if outgoing.tracker.is_complete() {
                drop(way.turn().take());
            }
            let written = tokio::select! {
                biased;
                written = to.write_all(piece) => written,
                // An abort must not wait behind what flow control holds back.
                _ = from.ready(Interest::ERROR) => return Answered::Aborted,
            };
            match written {
                Ok(()) => way.meter.sent.fetch_add(piece.len() as u64, Relaxed),
                Err(WriteError::ConnectionLost(e)) => return Answered::Lost(e),
                Err(_) => return Answered::Stopped,
            };
        }
    }
}

fn stop_of(error: Option<StoppedError>) -> Answered {
    match error {
        Some(StoppedError::ConnectionLost(e)) => Answered::Lost(e),
        _ => Answered::Stopped,
    }
}
