//! A byte stream as a carrier.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
};

use super::{LOCAL, OUT_LIMIT, RECEIVE_SEGMENTS, REMOTE, frame_datagram, next_datagram};

/// The most datagrams that wait for QUIC.
const IN_LIMIT: usize = 1024;

/// QUIC datagrams over a reliable byte stream: each is a length of two bytes (big-endian) and the
/// datagram.
pub struct StreamCarrier {
    queues: Mutex<Queues>,
    /// Notified when there are bytes to write.
    written: Notify,
    dead: AtomicBool,
    heard: AtomicBool,
}

#[derive(Default)]
struct Queues {
    out: BytesMut,
    /// The tasks that wait for room in `out`.
    writers: Vec<Waker>,
    arrived: VecDeque<Bytes>,
    reader: Option<Waker>,
}

impl StreamCarrier {
    /// A carrier over `read` and `write`. The future moves its bytes, and ends when the stream
    /// ends. Dropping the future makes the carrier dead.
    pub fn new<R, W>(read: R, write: W) -> (Arc<Self>, impl Future<Output = io::Error> + Send)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        Self::after(std::future::ready(Ok((read, write))))
    }

    /// Like [`StreamCarrier::new`], over a stream that is still being opened. Datagrams wait until
    /// it is open.
    pub fn after<R, W>(
        opening: impl Future<Output = io::Result<(R, W)>> + Send,
    ) -> (Arc<Self>, impl Future<Output = io::Error> + Send)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let carrier = Arc::new(Self {
            queues: Mutex::default(),
            written: Notify::new(),
            dead: AtomicBool::new(false),
            heard: AtomicBool::new(false),
        });
        let moved = carrier.clone();
        let moving = async move {
            let guard = Death(moved.clone());
            let (read, write) = match opening.await {
                Ok(halves) => halves,
                Err(e) => return e,
            };
            let end = tokio::select! { end = moved.read_from(read) => end, end = moved.write_to(write) => end };
            drop(guard);
            end
        };
        (carrier, moving)
    }

    /// Whether a datagram has arrived over it.
    pub fn has_heard(&self) -> bool {
        self.heard.load(Relaxed)
    }

    async fn read_from(&self, mut from: impl AsyncRead + Unpin) -> io::Error {
        let mut bytes = BytesMut::with_capacity(1 << 17);
        loop {
            match from.read_buf(&mut bytes).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(e) => return e,
            }
            let mut queues = self.lock();
            while let Some(datagram) = next_datagram(&mut bytes) {
                self.heard.store(true, Relaxed);
                // As in a socket's buffer, datagrams that do not fit are lost. QUIC sends their
                // contents again.
                if queues.arrived.len() < IN_LIMIT {
                    queues.arrived.push_back(datagram);
                }
            }
            if let Some(reader) = queues.reader.take() {
                reader.wake();
            }
            drop(queues);
            bytes.reserve(1 << 17);
        }
    }

    async fn write_to(&self, mut to: impl AsyncWrite + Unpin) -> io::Error {
        let mut batch = BytesMut::new();
        loop {
            let waiting = {
                let mut queues = self.lock();
                std::mem::swap(&mut queues.out, &mut batch);
                std::mem::take(&mut queues.writers)
            };
            waiting.into_iter().for_each(Waker::wake);
            if batch.is_empty() {
                self.written.notified().await;
                continue;
            }
            let done = async {
                to.write_all(&batch).await?;
                to.flush().await
            };
            if let Err(e) = done.await {
                return e;
            }
            batch.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a carrier as dead when it is dropped, and wakes all tasks that wait for it.
struct Death(Arc<StreamCarrier>);

impl Drop for Death {
    fn drop(&mut self) {
        self.0.dead.store(true, Relaxed);
        let waiting = {
            let mut queues = self.0.lock();
            queues.out.clear();
            std::mem::take(&mut queues.writers)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for StreamCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamCarrier")
    }
}

impl AsyncUdpSocket for StreamCarrier {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritablePoller(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut queues = self.lock();
        if self.dead.load(Relaxed) {
            return Ok(());
        }
        if queues.out.len() >= OUT_LIMIT {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // One call may hold several datagrams, all but the last of the same size.
        for datagram in transmit
            .contents
            .chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1))
        {
            frame_datagram(&mut queues.out, datagram);
        }
        drop(queues);
        self.written.notify_one();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queues = self.lock();
        let mut received = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(datagram) = queues.arrived.pop_front() else { break };
            // A datagram that is too long is not ours. It is cut here, so QUIC's authentication
            // rejects it.
            let len = datagram.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr: REMOTE, len, stride: len.max(1), ecn: None, dst_ip: None };
            received += 1;
        }
        if received > 0 {
            return Poll::Ready(Ok(received));
        }
        queues.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LOCAL)
    }

    fn max_transmit_segments(&self) -> usize {
        10
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for room in a carrier's queue.
#[derive(Debug)]
struct WritablePoller(Arc<StreamCarrier>);

impl UdpPoller for WritablePoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queues = self.0.lock();
        if queues.out.len() < OUT_LIMIT || self.0.dead.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        if !queues.writers.iter().any(|writer| writer.will_wake(cx.waker())) {
            queues.writers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_stream_swallows_what_is_sent_and_never_fails() {
        let (near, far) = tokio::io::duplex(64);
        let (read, write) = tokio::io::split(near);
        let (carrier, moving) = StreamCarrier::new(read, write);
        drop(far);
        moving.await;
        let transmit = Transmit {
            destination: REMOTE,
            ecn: None,
            contents: &[1; 5000],
            segment_size: Some(1000),
            src_ip: None,
        };
        for _ in 0..1000 {
            carrier.try_send(&transmit).expect("swallowed");
        }
    }
}
