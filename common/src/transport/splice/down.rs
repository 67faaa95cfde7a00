//! From the tunnel to TCP.

use std::{
    io::{self, IoSlice},
    sync::atomic::Ordering::Relaxed,
};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, VarInt};
use tokio::{io::AsyncWriteExt, net::tcp::WriteHalf};

use super::{Meter, Receiving, passed::Passed};

/// Bytes of the last chunk that are looked at again when all has been written.
const TAIL: usize = 8;
/// Chunks of a stream that go into one `writev`.
pub const CHUNKS: usize = 16;

/// How the direction from the tunnel to TCP ended.
#[derive(Debug)]
pub enum DownEnd {
    /// The end of the stream was read and passed on as FIN.
    Finished,
    /// TCP takes no more.
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

pub(super) async fn download(
    from: &mut Receiving,
    mut to: WriteHalf<'_>,
    passed: &Passed<'_>,
) -> DownEnd {
    loop {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let count = match from.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) => {
                return match to.shutdown().await {
                    Ok(()) => DownEnd::Finished,
                    Err(_) => DownEnd::Aborted,
                };
            }
            Err(e) => return e.into(),
        };
        passed.answered.store(true, Relaxed);
        chunks[..count].iter().for_each(|chunk| passed.down(chunk));
        // A copy, as the chunk may be a piece of much more.
        let last = tail(&chunks[count - 1]);
        if let Err(end) = write_all(&mut chunks[..count], &to, from, passed.meter).await {
            return end;
        }
        passed.down_done(&last);
    }
}

/// What tells the end of an answer.
fn tail(chunk: &[u8]) -> [u8; TAIL] {
    let mut tail = [0; TAIL];
    let len = chunk.len().min(TAIL);
    tail[TAIL - len..].copy_from_slice(&chunk[chunk.len() - len..]);
    tail
}

/// Writes chunks of a stream to TCP, several at once; an abort from the stream's other end does not
/// wait behind a reader that has stopped.
///
/// # Errors
/// When TCP takes no more, or the other end has aborted.
pub async fn write_all(
    chunks: &mut [Bytes],
    to: &WriteHalf<'_>,
    from: &mut Receiving,
    meter: &Meter,
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
                meter.received.fetch_add(n as u64, Relaxed);
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
                    join(&mut chunks[next..]);
                    joined = true;
                }
                writable(to, from).await?;
            }
            Err(_) => return Err(DownEnd::Aborted),
        }
    }
    Ok(())
}

/// Copies chunks that have to wait into the first of them: each is a piece of what came from the
/// network at once, and would keep up to 64 KiB of it.
fn join(chunks: &mut [Bytes]) {
    let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in &mut *chunks {
        joined.extend_from_slice(&std::mem::take(chunk));
    }
    if let Some(first) = chunks.first_mut() {
        *first = joined.freeze();
    }
}

/// Waits until TCP takes bytes again; an abort from the other end does not wait for a reader that
/// has stopped reading.
async fn writable(to: &WriteHalf<'_>, from: &mut Receiving) -> Result<(), DownEnd> {
    tokio::select! {
        biased;
        ready = to.writable() => ready.map_err(|_| DownEnd::Aborted),
        reset = from.received_reset() => match reset {
            Ok(Some(code)) => Err(DownEnd::Reset(code)),
            // All has been received, or will not be: what has been is still to be delivered, and
            // the next read says the rest.
            Ok(None) | Err(_) => to.writable().await.map_err(|_| DownEnd::Aborted),
        },
    }
}
