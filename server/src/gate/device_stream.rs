//! The bytes that a device sends on one stream, and the memory that they take until they are
//! forwarded.

use std::future::pending;

use bytes::Bytes;
use common::transport::splice::{DownEnd, Receiving};
use proto::http1::head::{Fault, HeadReader};

use super::{
    budget::{BudgetExhausted, Share},
    exchange::BATCH,
    read_ahead::ReadAhead,
};

/// What was read of the next request's head.
pub(super) enum Head {
    /// Not all of it yet.
    More,
    /// All of it, with the empty line.
    Whole(Vec<u8>),
    /// The device has ended the stream: there is no next request.
    None,
    /// The bytes are not a valid head; they are returned too.
    Fault(Fault, Vec<u8>),
    /// There is no memory for the head.
    Full,
}

pub(super) struct DeviceStream<'a> {
    pub(super) recv: Receiving,
    pub(super) ahead: ReadAhead,
    /// Memory for all bytes that were read and not forwarded.
    pub(super) memory: Share<'a>,
}

impl<'a> DeviceStream<'a> {
    pub(super) fn new(recv: Receiving, memory: Share<'a>) -> Self {
        Self { recv, ahead: ReadAhead::default(), memory }
    }

    /// The stream itself, and whether all of it was received.
    pub(super) fn into_stream(self) -> (Receiving, bool) {
        (self.recv, self.ahead.finished)
    }

    /// The stream itself, and the bytes that were read ahead.
    pub(super) fn into_parts(mut self) -> (Receiving, Vec<Bytes>) {
        let ahead = std::iter::from_fn(|| self.ahead.pop()).collect();
        (self.recv, ahead)
    }

    /// The next bytes; empty if the application has ended the stream.
    ///
    /// # Cancel safety
    /// Cancel safe.
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

    /// Reads more of a head; bytes after the head are kept.
    ///
    /// # Cancel safety
    /// Cancel safe if `reader` is kept.
    pub(super) async fn head(&mut self, reader: &mut HeadReader) -> Result<Head, DownEnd> {
        // Memory for the bytes that are there must be granted before more is read.
        if self.memory.grow(reader.len() + self.ahead.len()).await == Err(BudgetExhausted) {
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

    /// Puts chunks back that wait: those after the first `taken` bytes of the chunk at `at`.
    pub(super) fn put_back(&mut self, chunks: &mut Vec<Bytes>, at: usize, taken: usize) {
        let rest = chunks[at].split_off(taken);
        self.ahead.put_back(std::iter::once(rest).chain(chunks.drain(at + 1..)));
    }

    /// Reads ahead until the application ends the stream. After more than `most` bytes, or more
    /// than there is memory for, only a reset or a loss is noticed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn watch(&mut self, held: usize, most: usize) -> DownEnd {
        while !self.ahead.finished
            && self.ahead.len() < most
            && self.memory.try_grow(held + self.ahead.len()).is_ok()
        {
            match self.recv.read_chunk(most - self.ahead.len()).await {
                Ok(Some(chunk)) => self.ahead.push(chunk),
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
            // Everything was received, or nothing more will come; the next read reports which.
            Ok(None) | Err(_) => pending().await,
        }
    }
}
