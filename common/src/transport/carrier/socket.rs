//! The system's UDP socket, for QUIC. An error never ends a connection, and is remembered instead
//! of logged.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState},
};
use rustix::io::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use super::batch::{Batch, BatchStep};

/// A full buffer is looked at again after this time if it can't be waited for.
const FULL_FOR: Duration = Duration::from_millis(1);

/// A UDP socket of the system.
///
/// quinn's own socket logs every error of the system, endlessly while the network is down, and
/// treats a refused batch as sent. It is woken again for each datagram that was sent, and makes one
/// more system call after each that was received.
pub struct SystemSocket {
    /// Only readability is watched: writability would wake this task for each datagram that the
    /// system has sent.
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The buffer for sending was full.
    is_full: AtomicBool,
    /// Why the last datagram could not be sent; 0 if it could.
    error: AtomicI32,
    /// Batches that the system refused.
    refused: AtomicU64,
    outgoing: Mutex<Outgoing>,
}

/// Datagrams that wait for the next batch.
#[derive(Default)]
struct Outgoing {
    batch: Batch,
    /// The task that reads from the socket. It sends a batch to which nothing more is added.
    reader: Option<Waker>,
    /// [`Batch::added`] when the reader looked last.
    looked: u64,
}

impl SystemSocket {
    /// Wraps a non-blocking socket. Must be called within a runtime.
    ///
    /// # Errors
    /// If the system does not support what QUIC needs of it.
    pub fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Arc::new(Self {
            io: watch(socket, Interest::READABLE)?,
            state,
            is_full: AtomicBool::new(false),
            error: AtomicI32::new(0),
            refused: AtomicU64::new(0),
            outgoing: Mutex::default(),
        }))
    }

    /// Why the system cannot send at the moment, if so.
    pub fn send_error(&self) -> Option<io::Error> {
        match self.error.load(Relaxed) {
            0 => None,
            code => Some(io::Error::from_raw_os_error(code)),
        }
    }

    /// How many batches of datagrams (GSO) the system refused: they went one by one.
    pub fn batches_refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.try_send(self.io.get_ref().into(), transmit)
    }

    /// Sends the datagrams of a batch one by one. Some network cards do not support batches, and
    /// report that only when they get one (EIO, EINVAL).
    fn send_each(&self, transmit: &Transmit<'_>, size: usize) -> io::Result<()> {
        self.refused.fetch_add(1, Relaxed);
        for contents in transmit.contents.chunks(size.max(1)) {
            self.send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: None,
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    /// Sends a batch; only a full buffer is an error.
    fn send_batch(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = match (self.send(transmit), transmit.segment_size) {
            (Err(e), Some(size))
                if matches!(Errno::from_io_error(&e), Some(Errno::IO | Errno::INVAL)) =>
            {
                match self.send_each(transmit, size) {
                    // The rest of the batch is lost: sending all of it again would repeat the first
                    // part.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    sent => sent,
                }
            }
            (sent, _) => sent,
        };
        self.note(sent)
    }

    /// Turns errors into lost datagrams, except a full buffer, which is reported.
    fn note(&self, sent: io::Result<()>) -> io::Result<()> {
        let code = match &sent {
            Ok(()) => 0,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.is_full.store(true, Relaxed);
                return sent;
            }
            // QUIC searches for the longest datagram (RFC 8899), so one that is too long is not an
            // error.
            Err(e) if Errno::from_io_error(e) == Some(Errno::MSGSIZE) => return Ok(()),
            Err(e) => e.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        };
        self.error.store(code, Relaxed);
        Ok(())
    }

    /// Sends what is held, if anything is.
    fn send_held(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        if let Some(held) = outgoing.batch.held() {
            self.send_batch(&held)?;
            outgoing.batch.clear();
        }
        Ok(())
    }

    /// Sends what is held if nothing was added since the last look; otherwise looks again soon.
    fn look_at_held(&self, cx: &Context<'_>) {
        let mut outgoing = self.outgoing();
        if outgoing.reader.as_ref().is_none_or(|reader| !reader.will_wake(cx.waker())) {
            outgoing.reader = Some(cx.waker().clone());
        }
        if outgoing.batch.held().is_none() {
            return;
        }
        let added = outgoing.batch.added();
        if added == outgoing.looked {
            // If the buffer is full, whoever sends next sends this first.
            let _ = self.send_held(&mut outgoing);
        } else {
            outgoing.looked = added;
            cx.waker().wake_by_ref();
        }
    }

    /// Ends when the buffer for sending has room.
    async fn room(self: Arc<Self>) {
        let watched =
            self.io.get_ref().try_clone().and_then(|socket| watch(socket, Interest::WRITABLE));
        match &watched {
            Ok(socket) => drop(socket.writable().await),
            // There are no more descriptors.
            Err(_) => tokio::time::sleep(FULL_FOR).await,
        }
        self.is_full.store(false, Relaxed);
    }
}

/// Watches one side of a socket.
#[expect(
    deprecated,
    reason = "it is sound for a socket that is owned, and what replaces it is unsafe"
)]
fn watch(socket: UdpSocket, side: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, side)
}

impl fmt::Debug for SystemSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SystemSocket({:?})", self.local_addr())
    }
}

impl AsyncUdpSocket for SystemSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut outgoing = self.outgoing();
        loop {
            match outgoing.batch.add(transmit, self.state.max_gso_segments()) {
                BatchStep::SendIt => return self.send_batch(transmit),
                BatchStep::SendHeldFirst => self.send_held(&mut outgoing)?,
                BatchStep::SendHeld => {
                    // It has been taken: QUIC must not be told to send it again.
                    return match self.send_held(&mut outgoing) {
                        Ok(()) => Ok(()),
                        Err(_) => self.wake_reader(&mut outgoing),
                    };
                }
                BatchStep::Hold => return self.wake_reader(&mut outgoing),
            }
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.look_at_held(cx);
        loop {
            let mut ready = std::task::ready!(self.io.poll_read_ready(cx))?;
            match self.state.recv(self.io.get_ref().into(), bufs, meta) {
                Ok(received) => {
                    // Fewer than it could have been: the socket is empty. Only Linux takes several.
                    if received < BATCH_SIZE.min(bufs.len()) {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                // An error of something that was sent (ICMP), which is taken out of the socket by
                // this: the next datagram may do better.
                Err(_) => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl SystemSocket {
    /// Something is held: the reader sends it if nobody else does.
    fn wake_reader(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        match &outgoing.reader {
            Some(reader) => reader.wake_by_ref(),
            // Nobody reads yet.
            None => drop(self.send_held(outgoing)),
        }
        Ok(())
    }
}

type WritableFuture = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Waits for room in the socket's buffer.
struct Writable {
    socket: Arc<SystemSocket>,
    waiting: Option<WritableFuture>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writable")
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() && !self.socket.is_full.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let socket = self.socket.clone();
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(socket.room()));
        std::task::ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
