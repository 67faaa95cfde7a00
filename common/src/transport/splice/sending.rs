//! A stream's sending half that never looks complete when it is not.

use std::sync::Arc;

use proto::wire::Code;
use quinn::{SendStream, StoppedError, VarInt, WriteError};

use super::pipe::PipeSending;
use crate::transport::credit::Credit;

/// QUIC sends the data of the streams with the highest priority first. Prompts and tokens go before
/// what fills the path. Credit and probes, which keep the tunnel running, go before both.
const INTERACTIVE: i32 = 1;
const BULK: i32 = 0;

/// A stream's sending half. If it is dropped before its end, it resets the stream; quinn's own type
/// would finish it, so that a part would look complete.
pub struct Sending {
    way: Way,
    finished: bool,
}

enum Way {
    Quic(QuicSending),
    Pipe(PipeSending),
}

struct QuicSending {
    stream: SendStream,
    credit: Option<Arc<Credit>>,
    /// The credit that it has taken and not yet used, in bytes.
    share: usize,
    /// Its priority is that of bulk data.
    bulk: bool,
    /// How many bytes have been written.
    written: u64,
}

impl From<PipeSending> for Sending {
    fn from(pipe: PipeSending) -> Self {
        Self { way: Way::Pipe(pipe), finished: false }
    }
}

impl Sending {
    /// Wraps `stream`.
    pub fn new(stream: SendStream) -> Self {
        Self::quic(QuicSending { stream, credit: None, share: 0, bulk: true, written: 0 })
    }

    /// Wraps `stream`, of which nothing has been written, and sends no more than its share of `credit`.
    pub fn within(stream: SendStream, credit: &Arc<Credit>) -> Self {
        credit.begin(stream.id());
        // The only error is a stream that has ended.
        let _ = stream.set_priority(INTERACTIVE);
        let credit = Some(credit.clone());
        Self::quic(QuicSending { stream, credit, share: 0, bulk: false, written: 0 })
    }

    fn quic(stream: QuicSending) -> Self {
        Self { way: Way::Quic(stream), finished: false }
    }

    /// Writes all of `bytes`. Not cancellation safe: a part may have been written.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = self.write(rest).await?;
            rest = &rest[n..];
        }
        Ok(())
    }

    /// Writes as much of `bytes` as flow control allows, and returns how much.
    ///
    /// # Cancel safety
    /// Cancellation safe: if it is cancelled, nothing has been written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        match &mut self.way {
            Way::Quic(stream) => stream.write(bytes).await,
            Way::Pipe(pipe) => pipe.write(bytes).await,
        }
    }

    /// Ends this direction.
    pub fn finish(&mut self) {
        match &mut self.way {
            // An error only means that the stream has been reset or stopped already.
            Way::Quic(quic) => drop(quic.stream.finish()),
            Way::Pipe(pipe) => pipe.finish(),
        }
        self.finished = true;
    }

    /// Ends when the peer takes no more of this direction, or has received all of it. Cancellation
    /// safe.
    pub fn stopped(
        &self,
    ) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + Send + 'static {
        enum Stopped<Q, P> {
            Quic(Q),
            Pipe(P),
        }
        let stopped = match &self.way {
            Way::Quic(quic) => Stopped::Quic(quic.stream.stopped()),
            Way::Pipe(pipe) => Stopped::Pipe(pipe.stopped()),
        };
        async move {
            match stopped {
                Stopped::Quic(stopped) => stopped.await,
                Stopped::Pipe(stopped) => stopped.await,
            }
        }
    }

    /// Waits until the peer has received all of a finished direction. If the connection were closed
    /// before that, the last bytes could be lost.
    pub async fn acknowledged(&self) {
        let _ = self.stopped().await;
    }

    /// Ends this direction with a code, unless it is finished.
    pub fn reset(&mut self, code: Code) {
        if self.finished {
            return;
        }
        match &mut self.way {
            Way::Quic(quic) => drop(quic.stream.reset((code as u32).into())),
            Way::Pipe(pipe) => pipe.reset(),
        }
        self.finished = true;
    }
}

impl QuicSending {
    /// Waits for a share of the credit, or until the peer takes no more bytes or is lost.
    async fn may_send(&self, credit: &Credit, most: usize) -> Result<(usize, bool), WriteError> {
        let share = credit.take(self.stream.id(), most);
        tokio::select! {
            biased;
            share = share => Ok(share),
            end = self.stream.stopped() => Err(match end {
                Ok(Some(code)) => WriteError::Stopped(code),
                Ok(None) => WriteError::ClosedStream,
                Err(StoppedError::ConnectionLost(e)) => WriteError::ConnectionLost(e),
                Err(StoppedError::ZeroRttRejected) => WriteError::ZeroRttRejected,
            }),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        let Some(credit) = &self.credit else { return self.stream.write(bytes).await };
        if self.share == 0 {
            let (share, bulk) = self.may_send(credit, bytes.len()).await?;
            self.share = share;
            if bulk != self.bulk {
                self.bulk = bulk;
                let _ = self.stream.set_priority(if bulk { BULK } else { INTERACTIVE });
            }
        }
        let most = self.share.min(bytes.len());
        let id = VarInt::from(self.stream.id()).into_inner();
        let write = self.stream.write(&bytes[..most]);
        let n = if self.bulk {
            write.await?
        } else {
            credit.write_ahead(id, self.written, &bytes[..most], write).await?
        };
        self.share = self.share.saturating_sub(n);
        self.written += n as u64;
        Ok(n)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.reset(Code::Cut);
        if let Way::Quic(QuicSending { stream, credit: Some(credit), .. }) = &self.way {
            credit.end(stream.id());
        }
    }
}
