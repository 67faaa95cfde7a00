//! A UDP socket as a carrier.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{LOCAL, RECEIVE_SEGMENTS, REMOTE};

/// A UDP socket to one address.
pub struct UdpCarrier {
    inner: Arc<dyn AsyncUdpSocket>,
    real: SocketAddr,
    heard: AtomicBool,
}

impl UdpCarrier {
    /// Sends to and hears `real` alone.
    pub fn new(socket: std::net::UdpSocket, real: SocketAddr) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            inner: TokioRuntime.wrap_udp_socket(socket)?,
            real,
            heard: AtomicBool::new(false),
        }))
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

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
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
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                    ) => {}
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
