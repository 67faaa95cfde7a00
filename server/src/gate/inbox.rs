//! What a device sends on one stream, with what has been read ahead of its turn.

use std::{collections::VecDeque, future::pending};

use bytes::Bytes;
use common::splice::{CHUNKS, DownEnd, Meter, write_all};
use quinn::RecvStream;
use tokio::net::tcp::WriteHalf;

/// Read ahead at the most, in bytes, of what comes behind a request that runs.
pub(super) const BEHIND: usize = 16 * 1024;
/// And of a request that waits: enough to see behind one of ordinary size that its application has gone.
pub(super) const WAITING: usize = 256 * 1024;

/// The receiving half of a stream.
pub(super) struct Inbox {
    recv: RecvStream,
    ahead: VecDeque<Bytes>,
    len: usize,
    finished: bool,
}

impl Inbox {
    pub(super) fn new(recv: RecvStream) -> Self {
        Self { recv, ahead: VecDeque::new(), len: 0, finished: false }
    }

    /// The stream itself, when all is over; and whether all of it has come.
    pub(super) fn into_stream(self) -> (RecvStream, bool) {
        (self.recv, self.finished)
    }

    /// The application has ended, and nothing of it is left.
    pub(super) fn is_over(&self) -> bool {
        self.finished && self.ahead.is_empty()
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
    pub(super) fn put_back(&mut self, chunks: impl DoubleEndedIterator<Item = Bytes>) {
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
            match self.recv.read_chunk(most - self.len, true).await {
                Ok(Some(chunk)) => {
                    self.len += chunk.bytes.len();
                    self.ahead.push_back(chunk.bytes);
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
    pub(super) async fn forward(&mut self, chunks: &mut [Bytes], to: &WriteHalf<'_>, meter: &Meter) -> Result<(), DownEnd> {
        write_all(chunks, to, &mut self.recv, meter).await
    }
}
