//! From the service to the device: one answer, piece by piece as they come.

use std::{io, sync::atomic::Ordering::Relaxed};

use common::transport::splice::{Buffer, Sending};
use quinn::{ConnectionError, StoppedError, WriteError};
use tokio::{io::Interest, net::tcp::ReadHalf};

use super::Way;
use crate::gate::running::Outgoing;

/// How the service's direction ended.
pub(super) enum Answered {
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

/// From the service to the device: one answer, piece by piece as they come.
pub(super) async fn answer(
    from: &ReadHalf<'_>,
    to: &mut Sending,
    outgoing: &mut Outgoing<'_>,
    way: &Way<'_>,
) -> Answered {
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
