//! The streams of one command or forwarded connection in an SSH session.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use common::machine::report::harmless;
use russh::{Channel, ChannelMsg, ChannelReadHalf, client::Msg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::SshSession;
use crate::ssh::bounds::Patience;

/// Bytes of a command's standard error that are kept to say why it failed.
const KEPT: usize = 4096;

/// The standard streams of a command, or a forwarded connection.
pub(crate) struct Piped {
    /// Output of the command, or bytes from the connection.
    pub(crate) read: Reading,
    /// Input of the command, or bytes to the connection.
    pub(crate) write: Box<dyn AsyncWrite + Send + Unpin>,
}

/// Reads a channel. The last bytes of a command's standard error are kept.
pub(crate) struct Reading {
    half: ChannelReadHalf,
    left: Bytes,
    said: Vec<u8>,
    code: Option<u32>,
    over: bool,
    /// Is told when something arrives.
    waiting: Option<Arc<Patience>>,
    /// The sessions below this channel.
    keep: Vec<SshSession>,
}

impl Piped {
    pub(super) fn new(channel: Channel<Msg>) -> Self {
        let (half, write) = channel.split();
        let read = Reading {
            half,
            left: Bytes::new(),
            said: Vec::new(),
            code: None,
            over: false,
            waiting: None,
            keep: Vec::new(),
        };
        Self { read, write: Box::new(Box::pin(write.make_writer())) }
    }

    /// Keeps the sessions below this channel alive as long as it is read.
    pub(crate) fn over(mut self, sessions: Vec<SshSession>) -> Self {
        self.read.keep = sessions;
        self
    }
}

impl Reading {
    /// Extends the deadline of `patience` whenever something arrives.
    pub(crate) fn tells(&mut self, patience: &Arc<Patience>) {
        self.waiting = Some(patience.clone());
    }

    /// Stops extending the deadline.
    pub(crate) fn tells_nobody(&mut self) {
        self.waiting = None;
    }

    /// Reads to the end. Returns the exit code, if there is one, and the text of standard error.
    pub(crate) async fn end(&mut self) -> (Option<u32>, String) {
        while !self.over {
            self.next().await;
            self.left.clear();
        }
        (self.code, harmless(String::from_utf8_lossy(&self.said).trim_end()))
    }

    async fn next(&mut self) {
        let message = self.half.wait().await;
        if let (Some(patience), Some(ChannelMsg::Data { .. } | ChannelMsg::ExtendedData { .. })) =
            (&self.waiting, &message)
        {
            patience.again();
        }
        match message {
            Some(ChannelMsg::Data { data }) => self.left = data,
            Some(ChannelMsg::ExtendedData { data, .. }) => {
                self.said.extend_from_slice(&data);
                let excess = self.said.len().saturating_sub(KEPT);
                self.said.drain(..excess);
            }
            Some(ChannelMsg::ExitStatus { exit_status }) => self.code = Some(exit_status),
            Some(ChannelMsg::Failure) | None => self.over = true,
            _ => {}
        }
    }
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.left.is_empty() && !self.over {
            ready!(pin!(self.next()).poll(cx));
        }
        let n = self.left.len().min(buf.remaining());
        buf.put_slice(&self.left[..n]);
        self.left.advance(n);
        Poll::Ready(Ok(()))
    }
}
