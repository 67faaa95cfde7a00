//! A stream's receiving half that tells its sender how far it has been read.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Chunk, ReadError, ReadExactError, RecvStream, ResetError, VarInt};

use crate::transport::credit::Credit;

/// A stream's receiving half that tells its sender how far it has been read.
pub struct Receiving {
    stream: RecvStream,
    /// `None` once nothing more is read.
    credit: Option<Arc<Credit>>,
}

impl Receiving {
    /// Wraps `stream`. `credit` is that of its connection.
    pub fn new(stream: RecvStream, credit: &Arc<Credit>) -> Self {
        Self { stream, credit: Some(credit.clone()) }
    }

    /// Reads what has arrived: at least one chunk, and at most as many as fit into `chunks`.
    /// Returns their number, or `None` at the end. Cancellation safe.
    ///
    /// # Errors
    /// When the peer has reset the stream, or the connection is lost.
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        let count = self.stream.read_chunks(chunks).await?;
        self.note(chunks[..count.unwrap_or(0)].iter().map(Bytes::len).sum());
        Ok(count)
    }

    /// Reads the next chunk, of at most `most` bytes; `None` at the end. Cancellation safe.
    ///
    /// # Errors
    /// As for [`Receiving::read_chunks`].
    pub async fn read_chunk(&mut self, most: usize) -> Result<Option<Chunk>, ReadError> {
        let chunk = self.stream.read_chunk(most, true).await?;
        self.note(chunk.as_ref().map_or(0, |chunk| chunk.bytes.len()));
        Ok(chunk)
    }

    /// Fills `bytes`. Not cancellation safe.
    ///
    /// # Errors
    /// As for [`Receiving::read_chunks`], or when the stream ends before `bytes` is full.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ReadExactError> {
        self.stream.read_exact(bytes).await?;
        self.note(bytes.len());
        Ok(())
    }

    /// Waits for a reset. Returns `None` when no reset can arrive any more. Cancellation safe.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn received_reset(&mut self) -> Result<Option<VarInt>, ResetError> {
        self.stream.received_reset().await
    }

    /// Tells the peer that this end reads no more of this direction. Does nothing if it has ended.
    pub fn stop(&mut self, code: VarInt) {
        let _ = self.stream.stop(code);
        self.end();
    }

    fn note(&self, bytes: usize) {
        if let Some(credit) = &self.credit
            && bytes > 0
        {
            credit.has_read(self.stream.id(), bytes);
        }
    }

    fn end(&mut self) {
        if let Some(credit) = self.credit.take() {
            credit.reads_no_more(self.stream.id());
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.end();
    }
}
