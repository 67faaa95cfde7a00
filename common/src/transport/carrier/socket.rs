//! The system's UDP socket, for QUIC: an error never ends anything, and is remembered instead of
//! logged.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState},
};
use rustix::io::Errno;
use tokio::io::{Interest, unix::AsyncFd};

/// A full buffer is looked at again after this time if it can't be waited for.
const FULL_FOR: Duration = Duration::from_millis(1);

/// A UDP socket of the system.
///
/// quinn's own logs each error of the system as it is, for ever while a network is away, takes a
/// batch that was refused for sent, is woken once more for each datagram that has left, and asks
/// once more after each that has come.
pub struct SystemSocket {
    /// Only its readable side is watched: the writable one would wake us for each datagram that the
    /// system has let go.
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The buffer for sending was full.
    is_full: AtomicBool,
    /// Why the last datagram could not be sent; 0 if it could.
    error: AtomicI32,
}

impl SystemSocket {
    /// Takes charge of a non-blocking socket. Must be called within a runtime.
    ///
    /// # Errors
    /// If the system can't do with it what QUIC needs.
    pub fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Arc::new(Self {
            io: watch(socket, Interest::READABLE)?,
            state,
            is_full: AtomicBool::new(false),
            error: AtomicI32::new(0),
        }))
    }

    /// Why nothing can be sent at present, if the system says so.
    pub fn send_error(&self) -> Option<io::Error> {
        match self.error.load(Relaxed) {
            0 => None,
            code => Some(io::Error::from_raw_os_error(code)),
        }
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.try_send(self.io.get_ref().into(), transmit)
    }

    /// Sends the datagrams of a batch one by one: some network cards do not take batches, and say so
    /// only when they get one (EIO, EINVAL).
    fn send_each(&self, transmit: &Transmit<'_>, size: usize) -> io::Result<()> {
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
                    // What did not fit is lost: all of it again would be the same again.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    sent => sent,
                }
            }
            (sent, _) => sent,
        };
        self.note(sent)
    }

    /// What becomes of an error: only a full buffer is told, all else is as good as lost on the way.
    fn note(&self, sent: io::Result<()>) -> io::Result<()> {
        let code = match &sent {
            Ok(()) => 0,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.is_full.store(true, Relaxed);
                return sent;
            }
            // QUIC seeks how long a datagram may be (RFC 8899): one that is too long is no trouble.
            Err(e) if Errno::from_io_error(e) == Some(Errno::MSGSIZE) => return Ok(()),
            Err(e) => e.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        };
        self.error.store(code, Relaxed);
        Ok(())
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
        self.send_batch(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
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

type Waiting = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Waits for room in the socket's buffer, each on its own.
struct Writable {
    socket: Arc<SystemSocket>,
    waiting: Option<Waiting>,
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
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use quinn::udp::EcnCodepoint;

    use super::*;

    fn transmit(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }
    }

    async fn system() -> Arc<SystemSocket> {
        SystemSocket::new(socket()).expect("a socket")
    }

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.set_nonblocking(true).expect("non-blocking");
        socket
    }

    #[tokio::test]
    async fn what_can_not_be_sent_is_remembered_until_something_can() {
        let (system, peer) = (system().await, socket());
        // From a loopback address nothing leaves the machine (EINVAL).
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 9));
        system.try_send(&transmit(elsewhere, b"lost")).expect("swallowed");
        assert!(system.send_error().is_some());
        let there = peer.local_addr().expect("an address");
        // Longer than a datagram can be: QUIC tries lengths, and that is no trouble.
        system.try_send(&transmit(there, &[0; 70_000])).expect("swallowed");
        assert!(system.send_error().is_some(), "nothing has been sent since");
        system.try_send(&transmit(there, b"here")).expect("sent");
        assert!(system.send_error().is_none());
    }

    #[tokio::test]
    async fn the_datagrams_of_a_refused_batch_go_one_by_one() {
        let (system, peer) = (system().await, socket());
        let batch = Transmit {
            ecn: Some(EcnCodepoint::Ect0),
            segment_size: Some(2),
            ..transmit(peer.local_addr().expect("an address"), b"aabbc")
        };
        system.send_each(&batch, 2).expect("sent");
        let mut datagram = [0; 8];
        for expected in [&b"aa"[..], b"bb", b"c"] {
            let (n, _) = peer.recv_from(&mut datagram).expect("received");
            assert_eq!(&datagram[..n], expected);
        }
    }

    /// Reads until `count` datagrams have come, as QUIC does.
    async fn receive(system: &SystemSocket, mut count: usize) {
        while count > 0 {
            let mut buffers = [[0; 64]; BATCH_SIZE];
            let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let mut meta = [RecvMeta::default(); BATCH_SIZE];
            let received = poll_fn(|cx| system.poll_recv(cx, &mut slices, &mut meta)).await;
            count -= received.expect("no error");
        }
    }

    #[tokio::test]
    async fn however_many_datagrams_come_all_are_read_and_the_next_is_heard() {
        let (system, peer) = (system().await, socket());
        let there = system.local_addr().expect("an address");
        for count in [1, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 3 * BATCH_SIZE, 1] {
            for _ in 0..count {
                peer.send_to(b"datagram", there).expect("sent");
            }
            let all = tokio::time::timeout(Duration::from_secs(30), receive(&system, count)).await;
            all.unwrap_or_else(|_| panic!("{count} datagrams are not read"));
        }
    }

    #[tokio::test]
    async fn a_full_buffer_is_waited_for_by_each_who_sends() {
        let system = system().await;
        system.is_full.store(true, Relaxed);
        let mut pollers = [system.clone().create_io_poller(), system.clone().create_io_poller()];
        for poller in &mut pollers {
            poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.expect("no error");
        }
        assert!(!system.is_full.load(Relaxed));
    }
}
