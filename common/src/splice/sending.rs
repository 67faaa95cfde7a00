//! A stream's sending half that never looks complete when it is not.

use quinn::{SendStream, StoppedError, VarInt, WriteError};

use crate::wire::Code;

/// A stream's sending half that resets when it is dropped before its end: quinn's own would finish,
/// and look complete.
pub struct Sending {
    stream: SendStream,
    finished: bool,
}

impl Sending {
    /// Takes charge of `stream`.
    pub fn new(stream: SendStream) -> Self {
        Self { stream, finished: false }
    }

    /// Writes all of `bytes`. Not cancellation safe: a part may have been written.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.stream.write_all(bytes).await
    }

    /// The end of this direction.
    pub fn finish(&mut self) {
        // The only error is a stream that has ended otherwise already.
        let _ = self.stream.finish();
        self.finished = true;
    }

    /// Ends when the peer takes no more of this direction, or has all of it. Cancellation safe.
    pub fn stopped(
        &self,
    ) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + Send + 'static {
        self.stream.stopped()
    }

    /// Waits until the peer has all of a finished direction: before that, closing the connection
    /// would lose its tail.
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
    }
}
