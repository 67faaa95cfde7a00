//! A UDP socket as a carrier.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Instant,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    InteractiveData, LOCAL, Marks, PacketRepeats, ProtectedPath, Protection, RECEIVE_SEGMENTS,
    REMOTE, Repeated, RepeatingSocket, SystemSocket,
};

/// A UDP socket to one address.
pub struct UdpCarrier {
    inner: Arc<RepeatingSocket>,
    real: SocketAddr,
    heard: AtomicBool,
    marks: Mutex<Marks>,
    /// Whether the last datagram was sent with a mark.
    marked: AtomicBool,
}

impl UdpCarrier {
    /// Sends to `real` and receives from it alone, with ECN marks or without.
    ///
    /// # Errors
    /// If the system does not support what QUIC needs of the socket.
    pub fn new(
        socket: std::net::UdpSocket,
        real: SocketAddr,
        marks: Marks,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            inner: Arc::new(RepeatingSocket::new(SystemSocket::new(socket)?, Arc::default())),
            real,
            heard: AtomicBool::new(false),
            marks: Mutex::new(marks),
            marked: AtomicBool::new(false),
        }))
    }

    /// Whether it sends no ECN marks because packets with them were not answered.
    pub fn is_unmarked(&self) -> bool {
        *self.lock() == Marks::Without
    }

    /// Whether its packets carry ECN marks.
    pub fn has_marks(&self) -> bool {
        self.marked.load(Relaxed)
    }

    /// Why the system cannot send at the moment, if so.
    pub fn send_error(&self) -> Option<io::Error> {
        self.inner.system().send_error()
    }

    /// Sends small datagrams twice from now on, or no longer, and larger ones that carry what the
    /// connection has written to `interactive` streams.
    pub fn protect(&self, protection: Option<Protection>, interactive: &Arc<InteractiveData>) {
        let (to, interactive) = (self.real, interactive.clone());
        let path = protection.map(|protection| ProtectedPath { to, protection, interactive });
        self.repeats().protect(Instant::now(), path.as_slice());
    }

    /// How many datagrams have been sent twice since it is protected, so that QUIC does not notice
    /// the loss of one copy.
    pub fn hidden(&self) -> u64 {
        self.repeats().hidden_to(self.real)
    }

    /// What it has sent twice so far.
    pub fn repeated(&self) -> Repeated {
        self.repeats().repeated()
    }

    fn repeats(&self) -> &PacketRepeats {
        self.inner.repeats()
    }

    /// How many batches of datagrams (GSO) the system refused: they went one by one.
    pub fn batches_refused(&self) -> u64 {
        self.inner.system().batches_refused()
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a datagram has arrived over it.
    pub fn has_heard(&self) -> bool {
        self.heard.load(Relaxed)
    }
}

impl fmt::Debug for UdpCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UdpCarrier({})", self.real)
    }
}

impl AsyncUdpSocket for UdpCarrier {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let marked = self.lock().send(Instant::now(), transmit.ecn.is_some());
        self.marked.store(marked, Relaxed);
        let real = Transmit {
            destination: self.real,
            ecn: transmit.ecn.filter(|_| marked),
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: None,
        };
        // An error (no route, no interface) counts as a lost datagram.
        self.inner.try_send(&real)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Ok(received) = std::task::ready!(self.inner.poll_recv(cx, bufs, meta)) else {
            return Poll::Pending;
        };
        for meta in &mut meta[..received] {
            // Datagrams from other addresses are dropped.
            if meta.addr != self.real {
                meta.len = 0;
            } else if !self.heard.swap(true, Relaxed) {
                self.lock().heard(Instant::now());
            }
            meta.addr = REMOTE;
            meta.dst_ip = None;
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LOCAL)
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
