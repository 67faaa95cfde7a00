//! A stream that is not QUIC's: two bounded queues of bytes between whoever reads and writes
//! [`Sending`](super::Sending) and [`Receiving`](super::Receiving), and a task that moves the bytes
//! over a connection of another kind.
//!
//! FIN, RST and back-pressure mean what they mean on a QUIC stream. A reset overtakes the bytes
//! that wait in the queue: a cut is never delayed by a slow reader.

use bytes::Bytes;
use proto::wire::Code;
use quinn::{ReadError, ResetError, StoppedError, VarInt, WriteError};
use tokio::sync::{mpsc, watch};

/// The longest piece in a queue, in bytes.
pub const PIECE: usize = 16 * 1024;
/// The most pieces in a queue.
const PIECES: usize = 4;

/// How the connection behind a pipe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It is open.
    Open,
    /// It was reset, or has failed.
    Broken,
    /// All that was sent was delivered, and it was closed in order.
    Closed,
}

/// What its task is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Move bytes; when the queue has ended, end the connection in order.
    Move,
    /// Reset the connection now.
    Reset,
}

/// The task's side of a pipe.
pub struct Outside {
    /// Takes what the connection receives. Dropping it is the FIN.
    pub received: mpsc::Sender<Bytes>,
    /// Has what the connection is to send; its end is the FIN.
    pub to_send: mpsc::Receiver<Bytes>,
    /// Says how the connection is. Dropping it while it is open breaks it.
    pub connection: watch::Sender<Connection>,
    /// Changes to [`Order::Reset`] at most once.
    pub order: watch::Receiver<Order>,
}

/// A pipe: the halves for a [`Sending`](super::Sending) and a [`Receiving`](super::Receiving), and
/// the other side.
pub fn pipe() -> (PipeSending, PipeReceiving, Outside) {
    let (received, from_outside) = mpsc::channel(PIECES);
    let (to_outside, to_send) = mpsc::channel(PIECES);
    let (connection, state) = watch::channel(Connection::Open);
    let (orders, order) = watch::channel(Order::Move);
    (
        PipeSending { queue: Some(to_outside), orders, state: state.clone() },
        PipeReceiving { queue: from_outside, rest: Bytes::new(), state },
        Outside { received, to_send, connection, order },
    )
}

/// Ends when the connection is no longer open.
async fn ended(mut state: watch::Receiver<Connection>) -> Connection {
    match state.wait_for(|state| *state != Connection::Open).await {
        Ok(state) => *state,
        // The task is gone.
        Err(_) => Connection::Broken,
    }
}

fn aborted() -> VarInt {
    VarInt::from_u32(Code::Aborted as u32)
}

/// The sending half of a pipe.
pub struct PipeSending {
    /// `None` when it was finished or reset.
    queue: Option<mpsc::Sender<Bytes>>,
    orders: watch::Sender<Order>,
    state: watch::Receiver<Connection>,
}

impl PipeSending {
    /// As [`Sending::write`](super::Sending::write). Cancellation safe.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        let Some(queue) = &self.queue else { return Err(WriteError::ClosedStream) };
        tokio::select! {
            biased;
            place = queue.reserve() => {
                let n = bytes.len().min(PIECE);
                place.map_err(|_| WriteError::Stopped(aborted()))?.send(Bytes::copy_from_slice(&bytes[..n]));
                Ok(n)
            }
            _ = ended(self.state.clone()) => Err(WriteError::Stopped(aborted())),
        }
    }

    pub(super) fn finish(&mut self) {
        self.queue = None;
    }

    pub(super) fn reset(&mut self) {
        self.orders.send_replace(Order::Reset);
        self.queue = None;
    }

    /// As [`Sending::stopped`](super::Sending::stopped).
    pub(super) fn stopped(
        &self,
    ) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + Send + 'static {
        let state = self.state.clone();
        async move { Ok((ended(state).await == Connection::Broken).then(aborted)) }
    }
}

/// The receiving half of a pipe.
pub struct PipeReceiving {
    queue: mpsc::Receiver<Bytes>,
    /// What was taken from the queue and not read.
    rest: Bytes,
    state: watch::Receiver<Connection>,
}

impl PipeReceiving {
    /// The next bytes, at most `most`; `None` at the end. Cancellation safe.
    pub(super) async fn read(&mut self, most: usize) -> Result<Option<Bytes>, ReadError> {
        if self.rest.is_empty() {
            match self.queue.recv().await {
                Some(bytes) => self.rest = bytes,
                None if *self.state.borrow() == Connection::Broken
                    || self.state.has_changed().is_err()
                        && *self.state.borrow() == Connection::Open =>
                {
                    return Err(ReadError::Reset(aborted()));
                }
                None => return Ok(None),
            }
        }
        Ok(Some(self.rest.split_to(most.min(self.rest.len()))))
    }

    /// What has come already, without waiting.
    pub(super) fn ready(&mut self) -> Option<Bytes> {
        if !self.rest.is_empty() {
            return Some(std::mem::take(&mut self.rest));
        }
        self.queue.try_recv().ok()
    }

    /// As [`Receiving::received_reset`](super::Receiving::received_reset). Cancellation safe.
    pub(super) async fn received_reset(&mut self) -> Result<Option<VarInt>, ResetError> {
        Ok((ended(self.state.clone()).await == Connection::Broken).then(aborted))
    }

    pub(super) fn stop(&mut self) {
        self.queue.close();
        while self.queue.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Receiving, Sending},
        *,
    };

    #[tokio::test]
    async fn bytes_pass_in_both_directions_and_an_end_comes_after_them() {
        let (send, recv, mut outside) = pipe();
        let (mut send, mut recv) = (Sending::from(send), Receiving::from(recv));
        send.write_all(b"one").await.expect("written");
        send.finish();
        assert_eq!(outside.to_send.recv().await.as_deref(), Some(&b"one"[..]));
        assert_eq!(outside.to_send.recv().await, None);
        assert_eq!(*outside.order.borrow(), Order::Move, "an end is no reset");
        outside.received.send(Bytes::from_static(b"abc")).await.expect("open");
        drop(outside.received);
        assert_eq!(recv.read_chunk(2).await.expect("read").expect("some"), "ab");
        assert_eq!(recv.read_chunk(2).await.expect("read").expect("some"), "c");
        assert!(recv.read_chunk(2).await.expect("the end").is_none());
        outside.connection.send_replace(Connection::Closed);
        send.acknowledged().await;
        assert_eq!(recv.received_reset().await, Ok(None));
    }

    #[tokio::test]
    async fn a_half_that_is_dropped_before_its_end_resets_the_connection() {
        let (send, _recv, outside) = pipe();
        drop(Sending::from(send));
        assert_eq!(*outside.order.borrow(), Order::Reset);
    }

    #[tokio::test]
    async fn a_broken_connection_is_a_reset_of_both_directions() {
        let (send, recv, outside) = pipe();
        let (mut send, mut recv) = (Sending::from(send), Receiving::from(recv));
        let stopped = send.stopped();
        outside.received.try_send(Bytes::from_static(b"last")).expect("room");
        outside.connection.send_replace(Connection::Broken);
        assert_eq!(stopped.await, Ok(Some(aborted())));
        assert_eq!(recv.received_reset().await, Ok(Some(aborted())));
        assert_eq!(recv.read_chunk(9).await.expect("read").expect("some"), "last");
        drop(outside.received);
        assert_eq!(recv.read_chunk(9).await, Err(ReadError::Reset(aborted())));
        let full = vec![0; 1 << 20];
        assert_eq!(send.write_all(&full).await, Err(WriteError::Stopped(aborted())));
    }

    #[tokio::test]
    async fn a_task_that_is_gone_without_a_word_has_broken_the_connection() {
        let (send, recv, outside) = pipe();
        let (send, mut recv) = (Sending::from(send), Receiving::from(recv));
        drop(outside);
        assert_eq!(send.stopped().await, Ok(Some(aborted())));
        assert_eq!(recv.read_chunk(9).await, Err(ReadError::Reset(aborted())));
    }
}
