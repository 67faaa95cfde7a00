//! The system's UDP socket, for QUIC. An error of the system never ends a connection. The last one
//! is remembered, not logged.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
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

use super::{
    batch::{Batch, BatchStep, MOST_BYTES},
    handed_on::Inbox,
};

/// How long to wait for room in the send buffer when the system can't report when there is room.
const FULL_FOR: Duration = Duration::from_millis(1);

/// A UDP socket of the system.
///
/// quinn's own socket logs every error of the system, endlessly while the network is down, and
/// treats a refused batch as sent. quinn's own socket also wakes its task for each datagram that
/// the system has sent, and makes one more system call after each datagram that it received.
pub struct SystemSocket {
    /// Registered for readability only: registered for writability, it would wake the task for each
    /// datagram that the system has sent.
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The send buffer was full at the last attempt.
    is_full: AtomicBool,
    /// `errno` of the last attempt to send; 0 if it succeeded.
    error: AtomicI32,
    /// How many batches the system refused.
    refused: AtomicU64,
    /// Where to the last of them was.
    refused_to: Mutex<Option<IpAddr>>,
    outgoing: Mutex<Outgoing>,
    /// Where datagrams come from, once another process reads the socket.
    inbox: OnceLock<Inbox>,
}

/// Datagrams that are held back until the next batch comes.
#[derive(Default)]
struct Outgoing {
    batch: Batch,
    /// The task that reads from the socket. It sends what is held when nothing more is added.
    reader: Option<Waker>,
    /// What [`Batch::added`] returned when the reading task looked last.
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
            refused_to: Mutex::default(),
            outgoing: Mutex::default(),
            inbox: OnceLock::new(),
        }))
    }

    /// From now on another process reads the socket, and the datagrams for this one come from
    /// `inbox`. This process still sends by the socket. Only the first call counts.
    pub fn read_from(&self, inbox: Inbox) {
        let _ = self.inbox.set(inbox);
        if let Some(reader) = &self.outgoing().reader {
            reader.wake_by_ref();
        }
    }

    /// The error of the last attempt to send; `None` if it succeeded.
    pub fn send_error(&self) -> Option<io::Error> {
        match self.error.load(Relaxed) {
            0 => None,
            code => Some(io::Error::from_raw_os_error(code)),
        }
    }

    /// How many batches of datagrams (GSO) the system refused. Their datagrams were sent one by
    /// one.
    pub fn batches_refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Where to the last batch was that the system refused.
    pub fn refused_to(&self) -> Option<IpAddr> {
        *self.refused_to.lock().unwrap_or_else(PoisonError::into_inner)
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
        let to = transmit.destination.ip();
        *self.refused_to.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
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

    /// Sends a batch, in several calls if one does not take it; only a full buffer is an error.
    fn send_batch(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        if transmit.contents.len() <= MOST_BYTES || size > MOST_BYTES {
            return self.send_at_once(transmit);
        }
        let mut parts = transmit.contents.chunks(MOST_BYTES / size * size).map(|contents| {
            let segment_size = transmit.segment_size;
            self.send_at_once(&Transmit { contents, segment_size, ..*transmit })
        });
        parts.next().unwrap_or(Ok(()))?;
        // If there is no room for another part, the rest is lost, as in `send_at_once`.
        let _ = parts.all(|sent| sent.is_ok());
        Ok(())
    }

    /// Sends a batch in one call; only a full buffer is an error.
    fn send_at_once(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = match (self.send(transmit), transmit.segment_size) {
            (Err(e), Some(size))
                if matches!(Errno::from_io_error(&e), Some(Errno::IO | Errno::INVAL)) =>
            {
                match self.send_each(transmit, size) {
                    // The rest of the batch counts as lost: to send the whole batch again would
                    // repeat its first datagrams.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    sent => sent,
                }
            }
            (sent, _) => sent,
        };
        self.note(sent)
    }

    /// Remembers an error and treats the datagram as lost. Only a full send buffer is returned.
    fn note(&self, sent: io::Result<()>) -> io::Result<()> {
        let code = match &sent {
            Ok(()) => 0,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.is_full.store(true, Relaxed);
                return sent;
            }
            // QUIC searches for the longest datagram that fits (RFC 8899): one that is too long is
            // part of the search.
            Err(e) if Errno::from_io_error(e) == Some(Errno::MSGSIZE) => return Ok(()),
            Err(e) => e.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        };
        self.error.store(code, Relaxed);
        Ok(())
    }

    /// Sends everything that is held. On a full send buffer it stays held.
    fn send_held(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        if let Some(held) = outgoing.batch.held() {
            self.send_batch(&held)?;
            outgoing.batch.clear();
        }
        Ok(())
    }

    /// Sends what is held if nothing was added since the last call. Otherwise it wakes this task,
    /// so that it is called again soon.
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
            // If the send buffer is full, the next call of `try_send` sends this first.
            let _ = self.send_held(&mut outgoing);
        } else {
            outgoing.looked = added;
            cx.waker().wake_by_ref();
        }
    }

    /// Ends when the send buffer has room.
    async fn room(self: Arc<Self>) {
        let watched =
            self.io.get_ref().try_clone().and_then(|socket| watch(socket, Interest::WRITABLE));
        match &watched {
            Ok(socket) => drop(socket.writable().await),
            // The process has no descriptor left for a second handle.
            Err(_) => tokio::time::sleep(FULL_FOR).await,
        }
        self.is_full.store(false, Relaxed);
    }
}

/// Registers a socket with the runtime for readability or writability.
#[expect(
    deprecated,
    reason = "it is sound for a socket that is owned, and what replaces it is unsafe"
)]
fn watch(socket: UdpSocket, side: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, side)
}

impl AsFd for SystemSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.get_ref().as_fd()
    }
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
                    // The batch was copied to what is held: an error here would make QUIC send it
                    // again.
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
        if let Some(inbox) = self.inbox.get() {
            return inbox.poll_recv(cx, bufs, meta);
        }
        loop {
            let mut ready = std::task::ready!(self.io.poll_read_ready(cx))?;
            match self.state.recv(self.io.get_ref().into(), bufs, meta) {
                Ok(received) => {
                    // Fewer datagrams than there was room for: the socket is empty. Only Linux
                    // returns several at once.
                    if received < BATCH_SIZE.min(bufs.len()) {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                // An ICMP error about a datagram that was sent. This call took it out of the
                // socket, so the next call may return a datagram.
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
    /// Wakes the reading task, which sends what is held if nothing more is added.
    fn wake_reader(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        match &outgoing.reader {
            Some(reader) => reader.wake_by_ref(),
            // No task reads from this socket yet.
            None => drop(self.send_held(outgoing)),
        }
        Ok(())
    }
}

type WritableFuture = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Waits for room in the socket's send buffer.
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
