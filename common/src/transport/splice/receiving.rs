//! A stream's receiving half that tells its sender how far it has been read.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, RecvStream, ResetError, VarInt};

use super::pipe::PipeReceiving;
use crate::transport::credit::Credit;

/// A stream's receiving half that tells its sender how far it has been read.
pub struct Receiving(Way);

enum Way {
    Quic(QuicReceiving),
    Pipe(PipeReceiving),
}

struct QuicReceiving {
    stream: RecvStream,
    /// `None` once nothing more is read.
    credit: Option<Arc<Credit>>,
}

impl From<PipeReceiving> for Receiving {
    fn from(pipe: PipeReceiving) -> Self {
        Self(Way::Pipe(pipe))
    }
}

impl Receiving {
    /// Wraps `stream`. `credit` is that of its connection.
    pub fn new(stream: RecvStream, credit: &Arc<Credit>) -> Self {
        Self(Way::Quic(QuicReceiving { stream, credit: Some(credit.clone()) }))
    }

    /// Reads what has arrived: at least one chunk, and at most as many as fit into `chunks`.
    /// Returns their number, or `None` at the end. Cancellation safe.
    ///
    /// # Errors
    /// When the peer has reset the stream, or the connection is lost.
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        match &mut self.0 {
            Way::Quic(quic) => {
                let count = quic.stream.read_chunks(chunks).await?;
                quic.note(chunks[..count.unwrap_or(0)].iter().map(Bytes::len).sum());
                Ok(count)
            }
            Way::Pipe(pipe) => {
                let Some(first) = pipe.read(usize::MAX).await? else { return Ok(None) };
                let mut count = 0;
                let ready = std::iter::once(first).chain(std::iter::from_fn(|| pipe.ready()));
                for (place, bytes) in chunks.iter_mut().zip(ready) {
                    *place = bytes;
                    count += 1;
                }
                Ok(Some(count))
            }
        }
    }

    /// Reads the next chunk, of at most `most` bytes; `None` at the end. Cancellation safe.
    ///
    /// # Errors
    /// As for [`Receiving::read_chunks`].
    pub async fn read_chunk(&mut self, most: usize) -> Result<Option<Bytes>, ReadError> {
        match &mut self.0 {
            Way::Quic(quic) => {
                let chunk = quic.stream.read_chunk(most, true).await?.map(|chunk| chunk.bytes);
                quic.note(chunk.as_ref().map_or(0, Bytes::len));
                Ok(chunk)
            }
            Way::Pipe(pipe) => pipe.read(most).await,
        }
    }

    /// Fills `bytes`. Not cancellation safe.
    ///
    /// # Errors
    /// As for [`Receiving::read_chunks`], or when the stream ends before `bytes` is full.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ReadExactError> {
        match &mut self.0 {
            Way::Quic(quic) => {
                quic.stream.read_exact(bytes).await?;
                quic.note(bytes.len());
            }
            Way::Pipe(pipe) => {
                let mut filled = 0;
                while filled < bytes.len() {
                    let Some(chunk) = pipe.read(bytes.len() - filled).await? else {
                        return Err(ReadExactError::FinishedEarly(filled));
                    };
                    bytes[filled..filled + chunk.len()].copy_from_slice(&chunk);
                    filled += chunk.len();
                }
            }
        }
        Ok(())
    }

    /// Waits for a reset. Returns `None` when no reset can arrive any more. Cancellation safe.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn received_reset(&mut self) -> Result<Option<VarInt>, ResetError> {
        match &mut self.0 {
            Way::Quic(quic) => quic.stream.received_reset().await,
            Way::Pipe(pipe) => pipe.received_reset().await,
        }
    }

    /// Tells the peer that this end reads no more of this direction. Does nothing if it has ended.
    pub fn stop(&mut self, code: VarInt) {
        match &mut self.0 {
            Way::Quic(quic) => {
                let _ = quic.stream.stop(code);
                quic.end();
            }
            Way::Pipe(pipe) => pipe.stop(),
        }
    }
}

impl QuicReceiving {
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

impl Drop for QuicReceiving {
    fn drop(&mut self) {
        self.end();
    }
}
