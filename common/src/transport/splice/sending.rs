//! A stream's sending half that never looks complete when it is not.

use std::sync::Arc;

use proto::wire::Code;
use quinn::{SendStream, StoppedError, VarInt, WriteError};

use crate::transport::credit::Credit;

/// QUIC sends the data of the streams with the highest priority first. Prompts and tokens go before
/// what fills the path. Credit and probes, which keep the tunnel running, go before both.
const INTERACTIVE: i32 = 1;
const BULK: i32 = 0;

/// A stream's sending half. If it is dropped before its end, it resets the stream; quinn's own type
/// would finish it, so that a part would look complete.
pub struct Sending {
    stream: SendStream,
    finished: bool,
    credit: Option<Arc<Credit>>,
    /// The credit that it has taken and not yet used, in bytes.
    share: usize,
    /// Its priority is that of bulk data.
    bulk: bool,
}

impl Sending {
    /// Wraps `stream`.
    pub fn new(stream: SendStream) -> Self {
        Self { stream, finished: false, credit: None, share: 0, bulk: true }
    }

    /// Wraps `stream`, and sends no more than its share of `credit`.
    pub fn within(stream: SendStream, credit: &Arc<Credit>) -> Self {
        credit.begin(stream.id());
        // The only error is a stream that has ended.
        let _ = stream.set_priority(INTERACTIVE);
        Self { stream, finished: false, credit: Some(credit.clone()), share: 0, bulk: false }
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

    /// Writes as much of `bytes` as flow control allows, and returns how much.
    ///
    /// # Cancel safety
    /// Cancellation safe: if it is cancelled, nothing has been written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        let Some(credit) = &self.credit else { return self.stream.write(bytes).await };
        if self.share == 0 {
            let (share, bulk) = self.may_send(credit, bytes.len()).await?;
            self.share = share;
            if bulk != self.bulk {
                self.bulk = bulk;
                let _ = self.stream.set_priority(if bulk { BULK } else { INTERACTIVE });
            }
        }
        let write = self.stream.write(&bytes[..self.share.min(bytes.len())]);
        let n = if self.bulk { write.await? } else { credit.ahead(write).await? };
        self.share = self.share.saturating_sub(n);
        Ok(n)
    }

    /// Ends this direction.
    pub fn finish(&mut self) {
        // An error only means that the stream has been reset or stopped already.
        let _ = self.stream.finish();
        self.finished = true;
    }

    /// Ends when the peer takes no more of this direction, or has received all of it. Cancellation
    /// safe.
    pub fn stopped(
        &self,
    ) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + Send + 'static {
        self.stream.stopped()
    }

    /// Waits until the peer has received all of a finished direction. If the connection were closed
    /// before that, the last bytes could be lost.
    pub async fn acknowledged(&self) {
        let _ = self.stream.stopped().await;
    }

    /// Ends this direction with a code, unless it is finished.
    pub fn reset(&mut self, code: Code) {
        if !self.finished {
            let _ = self.stream.reset((code as u32).into());
            self.finished = true;
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.reset(Code::Cut);
        if let Some(credit) = &self.credit {
            credit.end(self.stream.id());
        }
    }
}
