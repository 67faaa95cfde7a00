//! What a device sends on one stream, with what has been read ahead of its turn.

use std::{collections::VecDeque, future::pending};

use bytes::Bytes;
use common::transport::splice::{CHUNKS, DownEnd, Meter, Receiving, write_all};
use proto::http1::head::{Fault, HeadReader};
use tokio::net::tcp::WriteHalf;

/// Read ahead at the most, in bytes, of what comes behind a request that runs.
pub(super) const BEHIND: usize = 16 * 1024;
/// And of a request that waits: enough to see behind one of ordinary size that its application has
/// gone.
pub(super) const WAITING: usize = 256 * 1024;

/// A shorter chunk is copied when it has to wait, to the one before it where there is room: it is a
/// piece of a buffer that may be much larger, and there may be as many as bytes.
const SHORT: usize = 4 * 1024;

/// How far the head of the next request has come.
pub(super) enum Head {
    /// Not to its end.
    More,
    /// To its end, the empty line included.
    Whole(Vec<u8>),
    /// There is none any more.
    None,
    /// It is none, and these bytes are its beginning.
    Fault(Fault, Vec<u8>),
}

/// The receiving half of a stream.
pub(super) struct Inbox {
    recv: Receiving,
    ahead: VecDeque<Bytes>,
    len: usize,
    finished: bool,
}

impl Inbox {
    pub(super) fn new(recv: Receiving) -> Self {
        Self { recv, ahead: VecDeque::new(), len: 0, finished: false }
    }

    /// The stream itself, when all is over; and whether all of it has come.
    pub(super) fn into_stream(self) -> (Receiving, bool) {
        (self.recv, self.finished)
    }

    /// The application has ended, and nothing of it is left.
    pub(super) fn is_over(&self) -> bool {
        self.finished && self.ahead.is_empty()
    }

    /// Something has been read ahead of its turn.
    pub(super) fn has_more(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The application has ended; something of it may be left.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// The next bytes; none if the application has ended. Cancellation safe.
    pub(super) async fn next(&mut self, chunks: &mut [Bytes; CHUNKS]) -> Result<usize, DownEnd> {
        let count = self.ready(chunks);
        if count > 0 || self.finished {
            return Ok(count);
        }
        let count = self.recv.read_chunks(chunks).await?;
        self.finished = count.is_none();
        Ok(count.unwrap_or(0))
    }

    /// Reads more of a head; what is behind it stays. Cancellation safe, if `reader` is kept.
    pub(super) async fn head(&mut self, reader: &mut HeadReader) -> Result<Head, DownEnd> {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let count = self.next(&mut chunks).await?;
        if count == 0 {
            return Ok(Head::None);
        }
        for at in 0..count {
            match reader.take(&chunks[at]) {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    self.keep_behind(&mut chunks[at..count], taken);
                    return Ok(Head::Whole(reader.finish()));
                }
                Err(fault) => {
                    let mut line = reader.finish();
                    line.extend_from_slice(&chunks[at]);
                    return Ok(Head::Fault(fault, line));
                }
            }
        }
        Ok(Head::More)
    }

    /// Of these chunks, what is behind the first `taken` bytes of the first has to wait.
    pub(super) fn keep_behind(&mut self, chunks: &mut [Bytes], taken: usize) {
        let first = chunks[0].split_off(taken);
        self.put_back(std::iter::once(first).chain(chunks[1..].iter().cloned()));
    }

    /// What has been read ahead, as far as there is room for it.
    pub(super) fn ready(&mut self, room: &mut [Bytes]) -> usize {
        let mut count = 0;
        for place in room {
            let Some(chunk) = self.ahead.pop_front() else { break };
            self.len -= chunk.len();
            *place = chunk;
            count += 1;
        }
        count
    }

    /// Bytes whose turn has not come.
    fn put_back(&mut self, chunks: impl DoubleEndedIterator<Item = Bytes>) {
        for chunk in chunks.rev().filter(|chunk| !chunk.is_empty()) {
            self.len += chunk.len();
            self.ahead.push_front(chunk);
        }
    }

    /// Reads ahead until the application ends. Cancellation safe.
    ///
    /// Behind more than `most` bytes only an abort is seen.
    pub(super) async fn watch(&mut self, most: usize) -> DownEnd {
        while !self.finished && self.len < most {
            match self.recv.read_chunk(most - self.len).await {
                Ok(Some(chunk)) => {
                    let bytes = chunk.bytes;
                    self.len += bytes.len();
                    keep(&mut self.ahead, bytes);
                }
                Ok(None) => self.finished = true,
                Err(e) => return e.into(),
            }
        }
        if self.finished {
            return DownEnd::Finished;
        }
        match self.recv.received_reset().await {
            Ok(Some(code)) => DownEnd::Reset(code),
            Err(quinn::ResetError::ConnectionLost(e)) => DownEnd::Lost(e),
            // All has been received, or will not be: reading on says which.
            Ok(None) | Err(_) => pending().await,
        }
    }

    /// Writes chunks to the service, in order and unchanged. Not cancellation safe.
    pub(super) async fn forward(
        &mut self,
        chunks: &mut [Bytes],
        to: &WriteHalf<'_>,
        meter: &Meter,
    ) -> Result<(), DownEnd> {
        write_all(chunks, to, &mut self.recv, meter).await
    }
}

/// Puts a chunk behind the others.
fn keep(ahead: &mut VecDeque<Bytes>, chunk: Bytes) {
    if chunk.len() >= SHORT {
        return ahead.push_back(chunk);
    }
    let last = ahead.pop_back_if(|last| last.len() + chunk.len() <= SHORT).map(Bytes::try_into_mut);
    match last {
        Some(Ok(mut last)) => {
            last.extend_from_slice(&chunk);
            ahead.push_back(last.freeze());
        }
        other => {
            ahead.extend(other.and_then(Result::err));
            ahead.push_back(Bytes::copy_from_slice(&chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_byte_by_byte_is_kept_in_few_pieces() {
        let mut ahead = VecDeque::new();
        let long = Bytes::from(vec![b'x'; SHORT]);
        let mut all = Vec::new();
        for i in 0..3 * SHORT {
            let chunk = if i == SHORT { long.clone() } else { Bytes::from(vec![i as u8]) };
            all.extend_from_slice(&chunk);
            keep(&mut ahead, chunk);
        }
        assert_eq!(ahead.iter().flatten().copied().collect::<Vec<_>>(), all);
        assert!(ahead.len() <= 5, "{}", ahead.len());
        // One that somebody else holds too is left as it is.
        let mut ahead: VecDeque<_> = [long.slice(..1)].into();
        keep(&mut ahead, Bytes::from_static(b"y"));
        assert_eq!(ahead, [&b"x"[..], b"y"]);
    }
}
