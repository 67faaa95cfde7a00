//! From TCP into the tunnel.

use std::io;

use quinn::{ConnectionError, StoppedError, WriteError};
use tokio::{io::Interest, net::tcp::ReadHalf};

use super::{
    Sending,
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

pub(super) async fn upload(from: &ReadHalf<'_>, to: &mut Sending, passed: &Passed<'_>) -> UpEnd {
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
            passed.up(&buffer.0[..n]);
            let written = tokio::select! {
                biased;
                written = to.write_all(&buffer.0[..n]) => written,
                // An RST must be seen even while flow control holds bytes back.
                _ = from.ready(Interest::ERROR) => return UpEnd::Aborted,
            };
            match written {
                Ok(()) => passed.up_done(n),
                Err(WriteError::ConnectionLost(e)) => return UpEnd::Lost(e),
                Err(_) => return UpEnd::Stopped,
            }
            if n < BUFFER {
                break;
            }
        }
    }
}
