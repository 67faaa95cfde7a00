//! A stream's receiving half that tells its sender how far it has been read.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use quinn::{ReadError, ReadExactError, RecvStream, ResetError, VarInt};

use super::pipe::PipeReceiving;
use crate::transport::{copies::Early, credit::Credit};

/// A stream's receiving half that tells its sender how far it has been read.
pub struct Receiving(Way);

enum Way {
    Quic(QuicReceiving),
    Pipe(PipeReceiving),
}

struct QuicReceiving {
    stream: RecvStream,
    /// How many bytes the stream itself has brought.
    streamed: u64,
    /// What copies bring before the stream does.
    early: Arc<Early>,
    /// `None` once nothing more is read.
    credit: Option<Arc<Credit>>,
}

impl From<PipeReceiving> for Receiving {
    fn from(pipe: PipeReceiving) -> Self {
        Self(Way::Pipe(pipe))
    }
}

impl Receiving {
    /// Wraps `stream`, of which nothing has been read. `credit` is that of its connection.
    pub fn new(stream: RecvStream, credit: &Arc<Credit>) -> Self {
        let early = credit.arrivals().begin(stream.id());
        Self(Way::Quic(QuicReceiving { stream, streamed: 0, early, credit: Some(credit.clone()) }))
    }

    /// Reads what has arrived: at least one chunk, and at most as many as fit into `chunks`.
    /// Returns their number, or `None` at the end. Cancellation safe.
    ///
    /// # Errors
    /// When the peer has reset the stream, or the connection is lost.
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        match &mut self.0 {
            Way::Quic(quic) => quic.read_chunks(chunks).await,
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
            Way::Quic(quic) => quic.read_chunk(most).await,
            Way::Pipe(pipe) => pipe.read(most).await,
        }
    }

    /// Fills `bytes`. Not cancellation safe.
    ///
    /// # Errors
    /// As for [`Receiving::read_chunks`], or when the stream ends before `bytes` is full.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ReadExactError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let Some(chunk) = self.read_chunk(bytes.len() - filled).await? else {
                return Err(ReadExactError::FinishedEarly(filled));
            };
            bytes[filled..filled + chunk.len()].copy_from_slice(&chunk);
            filled += chunk.len();
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
    async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        if chunks.is_empty() {
            return Ok(Some(0));
        }
        loop {
            tokio::select! {
                biased;
                read = self.stream.read_chunks(chunks) => {
                    let Some(count) = read? else { return Ok(None) };
                    let left = self.without_known(&mut chunks[..count]);
                    if left > 0 {
                        return Ok(Some(left));
                    }
                }
                early = self.early.next(usize::MAX) => {
                    chunks[0] = early;
                    return Ok(Some(1));
                }
            }
        }
    }

    async fn read_chunk(&mut self, most: usize) -> Result<Option<Bytes>, ReadError> {
        loop {
            tokio::select! {
                biased;
                read = self.stream.read_chunk(most, true) => {
                    let Some(chunk) = read? else { return Ok(None) };
                    let mut chunk = [chunk.bytes];
                    if self.without_known(&mut chunk) > 0 {
                        let [chunk] = chunk;
                        return Ok(Some(chunk));
                    }
                }
                early = self.early.next(most) => return Ok(Some(early)),
            }
        }
    }

    /// The stream has brought `chunks`: removes what the reader has from copies. Returns how many
    /// chunks are left, at the beginning.
    fn without_known(&mut self, chunks: &mut [Bytes]) -> usize {
        let total = chunks.iter().map(Bytes::len).sum();
        self.note(total);
        let delivered = self.early.delivered();
        let mut known = usize::try_from(delivered - self.streamed).unwrap_or(usize::MAX).min(total);
        self.streamed += total as u64;
        if self.streamed > delivered {
            self.early.deliver(self.streamed);
        }
        let mut first = 0;
        while first < chunks.len() && known >= chunks[first].len() {
            known -= chunks[first].len();
            first += 1;
        }
        chunks.rotate_left(first);
        let left = chunks.len() - first;
        if left > 0 {
            chunks[0].advance(known);
        }
        left
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
            credit.arrivals().end(self.stream.id());
            credit.reads_no_more(self.stream.id());
        }
    }
}

impl Drop for QuicReceiving {
    fn drop(&mut self) {
        self.end();
    }
}
