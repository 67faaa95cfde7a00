//! From the device to the service: one request, each byte as soon as it may go.

use std::{sync::atomic::Ordering::Relaxed, time::Instant};

use bytes::Bytes;
use common::transport::splice::{CHUNKS, DownEnd};
use proto::http1::head::Fault;
use tokio::{io::AsyncWriteExt, net::tcp::WriteHalf};

use super::{Request, Way};
use crate::{
    gate::{
        inbox::{BEHIND, Inbox, WAITING},
        running::Incoming,
    },
    record::{NotNow, Turn},
};

/// How the device's direction ended.
pub(super) enum Asked {
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

/// From the device to the service: one request, and then whether the application is still there.
pub(super) async fn ask(
    inbox: &mut Inbox,
    to: &mut WriteHalf<'_>,
    request: Request<'_>,
    incoming: &mut Incoming,
    way: &Way<'_>,
) -> Asked {
    let Request { begun, mut room, mut body, ticket, .. } = request;
    let (most_body, mut turn) = (ticket.most_body.unwrap_or(u64::MAX), ticket.turn);
    let mut begun = begun.into_iter();
    // Where nobody waits, nothing is kept back.
    if !ticket.waits
        && let Some(turn) = turn.take()
        && let Err(end) = in_line(turn, inbox, incoming, way).await
    {
        return end;
    }
    let mut kept = Kept::default();
    loop {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        // What has been read goes with what is there already: one write, and no part of what is
        // found faulty with it.
        let first =
            begun.by_ref().take(2).enumerate().map(|(at, chunk)| chunks[at] = chunk).count();
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
        incoming.bytes += chunks[..count].iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let forwarded = match turn {
            Some(_) if !body.is_over() && incoming.is_whole() => match kept.add(&chunks[..count]) {
                Ok(()) => continue,
                Err(fault) => return Asked::Fault(fault),
            },
            Some(its) if body.is_over() => {
                turn = None;
                if let Err(fault) = kept.add(&chunks[..count]) {
                    return Asked::Fault(fault);
                }
                if let Err(end) = in_line(its, inbox, incoming, way).await {
                    return end;
                }
                inbox.forward(&mut std::mem::take(&mut kept).take(), to, way.meter).await
            }
            _ => inbox.forward(&mut chunks[..count], to, way.meter).await,
        };
        if let Err(end) = forwarded {
            return Asked::Broken(end);
        }
        incoming.forwarded(body.is_over());
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

/// What would let the service begin, until it is its turn. The service needs no more than the end
/// of the JSON object, and what is never finished takes nobody's turn: so that waits for the
/// request's end, and the request's end for the turn.
#[derive(Default)]
struct Kept {
    chunks: Vec<Bytes>,
    /// What came later, in a buffer of its own: pieces may be as small as a byte.
    behind: Vec<u8>,
}

impl Kept {
    fn add(&mut self, chunks: &[Bytes]) -> Result<(), Fault> {
        if self.chunks.is_empty() {
            self.chunks.extend_from_slice(chunks);
            return Ok(());
        }
        chunks.iter().for_each(|chunk| self.behind.extend_from_slice(chunk));
        if self.behind.len() > BEHIND { Err(Fault::Behind) } else { Ok(()) }
    }

    fn take(self) -> Vec<Bytes> {
        let mut all = self.chunks;
        all.push(self.behind.into());
        all
    }
}

/// Waits for its turn, while the application may go. One that half-closes gives up, as it does with
/// Ollama.
async fn in_line(
    turn: Turn,
    inbox: &mut Inbox,
    incoming: &mut Incoming,
    way: &Way<'_>,
) -> Result<(), Asked> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_kept_in_order_and_is_not_endless() {
        let mut kept = Kept::default();
        let long = Bytes::from(vec![b'x'; 2 * BEHIND]);
        kept.add(std::slice::from_ref(&long)).expect("it came at once");
        for _ in 0..BEHIND {
            kept.add(&[Bytes::from_static(b"y")]).expect("a little behind it");
        }
        assert_eq!(kept.add(&[Bytes::from_static(b"z")]), Err(Fault::Behind));
        let all = kept.take();
        assert_eq!((all[0].len(), all[1].len(), all.len()), (2 * BEHIND, BEHIND + 1, 2));
        assert!(all[0] == long && all[1].ends_with(b"yz"));
    }
}
