//! From the tunnel to TCP.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, VarInt};
use tokio::{io::AsyncWriteExt, net::tcp::WriteHalf};

use super::{ByteCounters, Receiving, passed::Passed};

/// The most chunks of a stream in one `writev`.
const CHUNKS: usize = 16;

/// How the direction from the tunnel to TCP ended.
#[derive(Debug)]
pub enum DownEnd {
    /// The end of the stream was read and passed on as FIN.
    Finished,
    /// The TCP peer takes no more bytes.
    Aborted,
    /// The tunnel's other end reset the stream.
    Reset(VarInt),
    /// The connection was lost.
    Lost(ConnectionError),
}

impl From<ReadError> for DownEnd {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code),
            ReadError::ConnectionLost(e) => Self::Lost(e),
            _ => Self::Aborted,
        }
    }
}

/// Moves bytes until this direction ends. `None` if the other end has left (`taken_leave`) while no
/// request was under way, or before a byte of its answer: then the application has not been told.
pub(super) async fn download(
    from: &mut Receiving,
    mut to: WriteHalf<'_>,
    passed: &Passed<'_>,
    taken_leave: impl Future<Output = bool>,
) -> Option<DownEnd> {
    tokio::pin!(taken_leave);
    loop {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let count = match from.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) => {
                let is_left = passed.may_go_on() || passed.waits_for_answer();
                if is_left && is_so_now(taken_leave.as_mut()).await {
                    return None;
                }
                return Some(match to.shutdown().await {
                    Ok(()) => DownEnd::Finished,
                    Err(_) => DownEnd::Aborted,
                });
            }
            Err(e) => return Some(e.into()),
        };
        chunks[..count].iter().for_each(|chunk| passed.down(chunk));
        if let Err(end) = write_all(&mut chunks[..count], &to, from, passed.counters).await {
            return Some(end);
        }
        passed.down_done();
    }
}

/// Whether `known` is ready now, with `true`.
async fn is_so_now(known: Pin<&mut impl Future<Output = bool>>) -> bool {
    tokio::select! {
        biased;
        known = known => known,
        () = std::future::ready(()) => false,
    }
}

/// Writes chunks of a stream to TCP, several at once. Returns on a reset of the stream even while
/// the TCP peer does not read.
///
/// # Errors
/// If TCP takes no more bytes, or the other end has reset the stream.
pub(super) async fn write_all(
    chunks: &mut [Bytes],
    to: &WriteHalf<'_>,
    from: &mut Receiving,
    counters: &ByteCounters,
) -> Result<(), DownEnd> {
    let (mut next, mut joined) = (0, false);
    while next < chunks.len() {
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        let count = CHUNKS.min(chunks.len() - next);
        for (slice, chunk) in slices.iter_mut().zip(&chunks[next..]) {
            *slice = IoSlice::new(chunk);
        }
        match to.try_write_vectored(&slices[..count]) {
            Ok(mut n) => {
                counters.received.fetch_add(n as u64, Relaxed);
                while next < chunks.len() && n >= chunks[next].len() {
                    n -= chunks[next].len();
                    chunks[next] = Bytes::new();
                    next += 1;
                }
                if n > 0 {
                    chunks[next].advance(n);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !joined {
                    join_chunks(&mut chunks[next..]);
                    joined = true;
                }
                writable(to, from).await?;
            }
            Err(_) => return Err(DownEnd::Aborted),
        }
    }
    Ok(())
}

/// Copies chunks that have to wait into one. Each chunk is part of a receive buffer, and would keep
/// all of it (up to 64 KiB) allocated.
pub fn join_chunks(chunks: &mut [Bytes]) {
    let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in &mut *chunks {
        joined.extend_from_slice(&std::mem::take(chunk));
    }
    if let Some(first) = chunks.first_mut() {
        *first = joined.freeze();
    }
}

/// Waits until TCP takes bytes again, or until the other end resets the stream.
async fn writable(to: &WriteHalf<'_>, from: &mut Receiving) -> Result<(), DownEnd> {
    tokio::select! {
        biased;
        ready = to.writable() => ready.map_err(|_| DownEnd::Aborted),
        reset = from.received_reset() => match reset {
            Ok(Some(code)) => Err(DownEnd::Reset(code)),
            // No reset can arrive any more. Bytes that were received are still delivered; the next
            // read returns the end or the error.
            Ok(None) | Err(_) => to.writable().await.map_err(|_| DownEnd::Aborted),
        },
    }
}
