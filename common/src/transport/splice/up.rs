//! From TCP into the tunnel.

use std::io;

use quinn::{ConnectionError, StoppedError, WriteError};
use tokio::{io::Interest, net::tcp::ReadHalf};

use super::{
    Kept, Sending,
    buffer::{BUFFER, Buffer},
    passed::Passed,
};

/// How this direction ended.
pub(super) enum UpEnd {
    /// FIN was read, and the stream was finished.
    Finished,
    /// The other end takes no more of this direction.
    Stopped,
    /// TCP was aborted (RST).
    Aborted,
    Lost(ConnectionError),
}

/// Moves bytes until this direction ends; before all others those that are sent `again`.
pub(super) async fn upload(
    again: Option<Kept>,
    from: &ReadHalf<'_>,
    to: &mut Sending,
    passed: &Passed<'_>,
) -> UpEnd {
    if let Some(again) = again
        && let Err(end) = pass(again.bytes(), from, to, passed).await
    {
        return end;
    }
    let stopped = to.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            ready = from.readable() => if ready.is_err() { return UpEnd::Aborted },
            stop = &mut stopped => return match stop {
                Err(StoppedError::ConnectionLost(e)) => UpEnd::Lost(e),
                _ => UpEnd::Stopped,
            },
        }
        let mut buffer = Buffer::take();
        loop {
            let n = match buffer.read(from.as_ref()) {
                Ok(0) => {
                    passed.up_ended();
                    to.finish();
                    return UpEnd::Finished;
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return UpEnd::Aborted,
            };
            if let Err(end) = pass(&buffer.0[..n], from, to, passed).await {
                return end;
            }
            if n < BUFFER {
                break;
            }
        }
    }
}

/// Passes these bytes on.
async fn pass(
    bytes: &[u8],
    from: &ReadHalf<'_>,
    to: &mut Sending,
    passed: &Passed<'_>,
) -> Result<(), UpEnd> {
    passed.up(bytes);
    let written = tokio::select! {
        biased;
        written = to.write_all(bytes) => written,
        // An abort must not wait behind what flow control holds back.
        _ = from.ready(Interest::ERROR) => return Err(UpEnd::Aborted),
    };
    match written {
        Ok(()) => passed.up_done(bytes.len()),
        Err(WriteError::ConnectionLost(e)) => return Err(UpEnd::Lost(e)),
        Err(_) => return Err(UpEnd::Stopped),
    }
    Ok(())
}
