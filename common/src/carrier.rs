//! Carriers: what brings a connection's datagrams to the server. To QUIC a change of carrier is a change of address
//! (RFC 9000 section 9), so a running answer survives it.
//!
//! Each carrier is a socket for quinn with the same made-up remote address, whatever is really behind it. A carrier never fails:
//! a dead one swallows datagrams as a dead network does, because an error would end the connection.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
};

/// The address that a client's connection is made to, in the range that is routed nowhere (RFC 6666).
pub const REMOTE: SocketAddr = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1), 1, 0, 0));
const LOCAL: SocketAddr = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2), 1, 0, 0));
/// quinn sizes its receive buffer once, for the first socket that it gets: all carriers have to promise the same.
const RECEIVE_SEGMENTS: usize = 64;
/// Bytes that wait for a stream before QUIC is asked to wait: small, as this is a queue in front of every token.
const OUT_LIMIT: usize = 256 * 1024;
/// Datagrams that wait for QUIC.
const IN_LIMIT: usize = 1024;
/// The longest datagram in a frame.
const MAX_DATAGRAM: usize = u16::MAX as usize;

/// A UDP socket to one address.
pub struct UdpCarrier {
    inner: Arc<dyn AsyncUdpSocket>,
    real: SocketAddr,
    heard: AtomicBool,
}

impl UdpCarrier {
    /// Sends to and hears `real` alone.
    pub fn new(socket: std::net::UdpSocket, real: SocketAddr) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { inner: TokioRuntime.wrap_udp_socket(socket)?, real, heard: AtomicBool::new(false) }))
    }

    /// Whether a datagram has come by it.
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
        let real = Transmit {
            destination: self.real,
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: None,
        };
        match self.inner.try_send(&real) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(e),
            // No route, no interface: as good as lost on the way.
            _ => Ok(()),
        }
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        loop {
            match std::task::ready!(self.inner.poll_recv(cx, bufs, meta)) {
                Ok(received) => {
                    for meta in &mut meta[..received] {
                        // Whoever else speaks to this port is not heard.
                        if meta.addr == self.real {
                            self.heard.store(true, Relaxed);
                        } else {
                            meta.len = 0;
                        }
                        meta.addr = REMOTE;
                        meta.dst_ip = None;
                    }
                    return Poll::Ready(Ok(received));
                }
                // A port that was unreachable a moment ago (ICMP): the next datagram may do better.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => {}
                Err(_) => return Poll::Pending,
            }
        }
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

/// QUIC datagrams over a reliable byte stream, each as a length of two bytes, big-endian, and itself.
pub struct StreamCarrier {
    queues: Mutex<Queues>,
    /// Something is to be written.
    written: Notify,
    dead: AtomicBool,
    heard: AtomicBool,
}

#[derive(Default)]
struct Queues {
    out: BytesMut,
    /// Who waits for room in `out`.
    writers: Vec<Waker>,
    arrived: VecDeque<Bytes>,
    reader: Option<Waker>,
}

impl StreamCarrier {
    /// A carrier over `read` and `write`. The future moves its bytes and ends when the stream does; dropping it is the carrier's death.
    pub fn new<R, W>(read: R, write: W) -> (Arc<Self>, impl Future<Output = io::Error> + Send)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        Self::after(std::future::ready(Ok((read, write))))
    }

    /// Like [`StreamCarrier::new`], over a stream that is still being opened: what is sent meanwhile waits.
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

    /// Whether a datagram has come by it.
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
                // As in a socket's buffer: what does not fit is lost, and QUIC sees to it.
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

/// Marks a carrier dead and lets go of all who wait for it.
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

/// Takes one framed datagram from the front of `bytes`, if all of it is there.
pub fn next_datagram(bytes: &mut BytesMut) -> Option<Bytes> {
    let len = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    if bytes.len() < 2 + len {
        return None;
    }
    bytes.advance(2);
    Some(bytes.split_to(len).freeze())
}

/// Appends one framed datagram.
pub fn frame_datagram(out: &mut BytesMut, datagram: &[u8]) {
    debug_assert!(datagram.len() <= MAX_DATAGRAM);
    out.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
    out.extend_from_slice(datagram);
}

impl fmt::Debug for StreamCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamCarrier")
    }
}

impl AsyncUdpSocket for StreamCarrier {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
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
        for datagram in transmit.contents.chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1)) {
            frame_datagram(&mut queues.out, datagram);
        }
        drop(queues);
        self.written.notify_one();
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let mut queues = self.lock();
        let mut received = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(datagram) = queues.arrived.pop_front() else { break };
            // One that is longer than any of ours is not ours: it is shortened here and fails QUIC's authentication.
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
struct Room(Arc<StreamCarrier>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queues = self.0.lock();
        if queues.out.len() < OUT_LIMIT || self.0.dead.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        queues.writers.push(cx.waker().clone());
        Poll::Pending
    }
}

/// The server's end of a [`StreamCarrier`]: copies its datagrams to and from the UDP address of a server on this machine, until the stream ends.
pub async fn relay<R, W>(mut read: R, mut write: W, server: SocketAddr) -> io::Error
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let socket = match crate::transport::any_socket(server).and_then(tokio::net::UdpSocket::from_std) {
        Ok(socket) => socket,
        Err(e) => return e,
    };
    if let Err(e) = socket.connect(server).await {
        return e;
    }
    let inward = async {
        let mut bytes = BytesMut::with_capacity(1 << 17);
        loop {
            while let Some(datagram) = next_datagram(&mut bytes) {
                // A server that is not there for a moment is a lost datagram.
                let _ = socket.send(&datagram).await;
            }
            bytes.reserve(1 << 17);
            match read.read_buf(&mut bytes).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(e) => return e,
            }
        }
    };
    let outward = async {
        let (mut datagram, mut batch) = (vec![0; MAX_DATAGRAM], BytesMut::new());
        loop {
            let Ok(n) = socket.recv(&mut datagram).await else { continue };
            frame_datagram(&mut batch, &datagram[..n]);
            while batch.len() < OUT_LIMIT / 2
                && let Ok(n) = socket.try_recv(&mut datagram)
            {
                frame_datagram(&mut batch, &datagram[..n]);
            }
            let written = async {
                write.write_all(&batch).await?;
                write.flush().await
            };
            if let Err(e) = written.await {
                return e;
            }
            batch.clear();
        }
    };
    tokio::select! { end = inward => end, end = outward => end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_out_of_a_stream_wherever_it_is_broken() {
        let mut wire = BytesMut::new();
        for datagram in [&b"one"[..], b"", &[7; 1452]] {
            frame_datagram(&mut wire, datagram);
        }
        for cut in 0..wire.len() {
            let (mut first, rest) = (BytesMut::from(&wire[..cut]), &wire[cut..]);
            let mut read: Vec<Bytes> = std::iter::from_fn(|| next_datagram(&mut first)).collect();
            first.extend_from_slice(rest);
            read.extend(std::iter::from_fn(|| next_datagram(&mut first)));
            assert_eq!(read, [&b"one"[..], b"", &[7; 1452]], "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_dead_stream_swallows_what_is_sent_and_never_fails() {
        let (near, far) = tokio::io::duplex(64);
        let (read, write) = tokio::io::split(near);
        let (carrier, moving) = StreamCarrier::new(read, write);
        drop(far);
        moving.await;
        let transmit = Transmit { destination: REMOTE, ecn: None, contents: &[1; 5000], segment_size: Some(1000), src_ip: None };
        for _ in 0..1000 {
            carrier.try_send(&transmit).expect("swallowed");
        }
    }

    #[tokio::test]
    async fn datagrams_pass_a_stream_and_a_relay_and_come_back() {
        let echo = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let server = echo.local_addr().expect("an address");
        let (near, far) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(far);
        let relayed = tokio::spawn(relay(read, write, server));
        let (read, write) = tokio::io::split(near);
        let (carrier, moving) = StreamCarrier::new(read, write);
        let moved = tokio::spawn(moving);
        let transmit = Transmit { destination: REMOTE, ecn: None, contents: b"aaabb", segment_size: Some(3), src_ip: None };
        carrier.try_send(&transmit).expect("sent");
        let mut datagram = [0; 16];
        for expected in [&b"aaa"[..], b"bb"] {
            let (n, from) = echo.recv_from(&mut datagram).await.expect("received");
            assert_eq!(&datagram[..n], expected);
            echo.send_to(&datagram[..n], from).await.expect("sent");
        }
        let mut got = Vec::new();
        while got.len() < 2 {
            let mut buffers = [[0; 64]; 2];
            let (lens, n) = {
                let mut slices = buffers.each_mut().map(|b| IoSliceMut::new(b));
                let mut meta = [RecvMeta::default(); 2];
                let n = std::future::poll_fn(|cx| carrier.poll_recv(cx, &mut slices, &mut meta)).await.expect("received");
                assert!(meta[..n].iter().all(|m| m.addr == REMOTE));
                (meta.map(|m| m.len), n)
            };
            got.extend((0..n).map(|i| buffers[i][..lens[i]].to_vec()));
        }
        assert_eq!(got, [b"aaa".to_vec(), b"bb".to_vec()]);
        relayed.abort();
        moved.abort();
    }
}
