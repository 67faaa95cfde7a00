//! What a device sends on one stream, and the memory that it takes until it is forwarded.

use std::future::pending;

use bytes::Bytes;
use common::transport::splice::{DownEnd, Receiving};
use proto::http1::head::{Fault, HeadReader};

use super::{
    budget::{Full, Share},
    exchange::BATCH,
    read_ahead::ReadAhead,
};

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
    /// There is no memory for it.
    Full,
}

/// The receiving half of a stream.
pub(super) struct DeviceStream<'a> {
    pub(super) recv: Receiving,
    pub(super) ahead: ReadAhead,
    /// The memory that it takes: for all that has been read, and has not been forwarded.
    pub(super) room: Share<'a>,
}

impl<'a> DeviceStream<'a> {
    pub(super) fn new(recv: Receiving, room: Share<'a>) -> Self {
        Self { recv, ahead: ReadAhead::default(), room }
    }

    /// The stream itself, when all is over; and whether all of it has come.
    pub(super) fn into_stream(self) -> (Receiving, bool) {
        (self.recv, self.ahead.finished)
    }

    /// The next bytes; none if the application has ended. Cancellation safe.
    pub(super) async fn next(&mut self) -> Result<Vec<Bytes>, DownEnd> {
        if let Some(chunk) = self.ahead.pop() {
            return Ok(std::iter::once(chunk)
                .chain(std::iter::from_fn(|| self.ahead.pop()))
                .collect());
        }
        if self.ahead.finished {
            return Ok(Vec::new());
        }
        let mut chunks: [Bytes; BATCH] = std::array::from_fn(|_| Bytes::new());
        let count = self.recv.read_chunks(&mut chunks).await?;
        self.ahead.finished = count.is_none();
        Ok(chunks.into_iter().take(count.unwrap_or(0)).collect())
    }

    /// Reads more of a head; what is behind it stays. Cancellation safe, if `reader` is kept.
    pub(super) async fn head(&mut self, reader: &mut HeadReader) -> Result<Head, DownEnd> {
        // Before more is read there has to be memory for what is there.
        if self.room.grow(reader.len() + self.ahead.len()).await == Err(Full) {
            return Ok(Head::Full);
        }
        let mut chunks = self.next().await?;
        if chunks.is_empty() {
            return Ok(Head::None);
        }
        for at in 0..chunks.len() {
            match reader.take(&chunks[at]) {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    self.put_back(&mut chunks, at, taken);
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

    /// Of these chunks, what is behind the first `taken` bytes of the one at `at` has to wait.
    pub(super) fn put_back(&mut self, chunks: &mut Vec<Bytes>, at: usize, taken: usize) {
        let rest = chunks[at].split_off(taken);
        self.ahead.put_back(std::iter::once(rest).chain(chunks.drain(at + 1..)));
    }

    /// Reads ahead until the application ends. Behind more than `most` bytes, or more than there is
    /// memory for, only a reset or a loss is seen. Cancellation safe.
    pub(super) async fn watch(&mut self, held: usize, most: usize) -> DownEnd {
        while !self.ahead.finished
            && self.ahead.len() < most
            && self.room.try_grow(held + self.ahead.len()).is_ok()
        {
            match self.recv.read_chunk(most - self.ahead.len()).await {
                Ok(Some(chunk)) => self.ahead.push(chunk.bytes),
                Ok(None) => self.ahead.finished = true,
                Err(e) => return e.into(),
            }
        }
        if self.ahead.finished {
            return DownEnd::Finished;
        }
        match self.recv.received_reset().await {
            Ok(Some(code)) => DownEnd::Reset(code),
            Err(quinn::ResetError::ConnectionLost(e)) => DownEnd::Lost(e),
            // All has been received, or will not be: reading on says which.
            Ok(None) | Err(_) => pending().await,
        }
    }
}
