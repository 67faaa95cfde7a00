//! All UDP sockets of the server as one, so that a session may go on over another address of this
//! machine than the one that it began on.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// The most clients that each of the two halves of [`LastHeard`] remembers.
const REMEMBERED: usize = 4096;

/// Several UDP sockets as one.
///
/// QUIC sends what belongs to a connection from the address at which it began. Clients hear only the
/// address that they send to. So a client is answered from where it was heard last.
pub(crate) struct Sockets {
    sockets: Vec<Arc<dyn AsyncUdpSocket>>,
    addresses: Vec<SocketAddr>,
    last_heard: Mutex<LastHeard>,
    /// The socket that is asked first the next time.
    turn: AtomicUsize,
}

/// Where a client was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    socket: usize,
    /// The address of this machine that the client sends to, where the system says it.
    ip: Option<IpAddr>,
}

/// Where clients were heard last. Those that have been silent for long are forgotten.
#[derive(Debug, Default)]
struct LastHeard {
    young: HashMap<SocketAddr, Heard>,
    old: HashMap<SocketAddr, Heard>,
}

impl LastHeard {
    fn heard(&mut self, client: SocketAddr, heard: Heard) {
        self.young.insert(client, heard);
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
    }

    fn to(&self, client: SocketAddr) -> Option<Heard> {
        self.young.get(&client).or_else(|| self.old.get(&client)).copied()
    }
}

impl Sockets {
    /// Joins `sockets`.
    ///
    /// # Errors
    /// If the address of one is not known, or if there is none.
    pub(crate) fn new(sockets: Vec<Arc<dyn AsyncUdpSocket>>) -> io::Result<Self> {
        let addresses =
            sockets.iter().map(|socket| socket.local_addr()).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        Ok(Self { sockets, addresses, last_heard: Mutex::default(), turn: AtomicUsize::new(0) })
    }

    fn last_heard(&self) -> MutexGuard<'_, LastHeard> {
        self.last_heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How to send to `client` from `from`, the address that QUIC wants.
    fn answer_by(&self, client: SocketAddr, from: Option<IpAddr>) -> Heard {
        self.last_heard()
            .to(client)
            .unwrap_or_else(|| Heard { socket: first(&self.addresses, client, from), ip: from })
    }
}

/// The socket for a client that is not remembered.
fn first(addresses: &[SocketAddr], client: SocketAddr, from: Option<IpAddr>) -> usize {
    let is_at = |address: &SocketAddr| from == Some(address.ip());
    let of_its_family = |address: &SocketAddr| address.is_ipv4() == client.is_ipv4();
    let found = addresses.iter().position(is_at);
    found.or_else(|| addresses.iter().position(of_its_family)).unwrap_or(0)
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sockets({:?})", self.sockets)
    }
}

impl AsyncUdpSocket for Sockets {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let pollers = self.sockets.iter().map(|socket| socket.clone().create_io_poller());
        Box::pin(AllWritable(pollers.collect()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let by = self.answer_by(transmit.destination, transmit.src_ip);
        self.sockets[by.socket].try_send(&Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: by.ip,
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (turn, count) = (self.turn.load(Relaxed), self.sockets.len());
        for socket in (turn..turn + count).map(|at| at % count) {
            let Poll::Ready(received) = self.sockets[socket].poll_recv(cx, bufs, meta) else {
                continue;
            };
            // The others come first then, so that a busy one does not keep them from being heard.
            self.turn.store((socket + 1) % count, Relaxed);
            if let Ok(received) = received {
                let mut last_heard = self.last_heard();
                // Those that were dropped have no length.
                for meta in meta[..received].iter().filter(|meta| meta.len > 0) {
                    last_heard.heard(meta.addr, Heard { socket, ip: meta.dst_ip });
                }
            }
            return Poll::Ready(received);
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addresses[0])
    }

    fn max_transmit_segments(&self) -> usize {
        self.sockets.iter().map(|socket| socket.max_transmit_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.sockets.iter().map(|socket| socket.max_receive_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.sockets.iter().any(|socket| socket.may_fragment())
    }
}

/// Waits until every socket has room: which one is next is not known.
#[derive(Debug)]
struct AllWritable(Vec<Pin<Box<dyn UdpPoller>>>);

impl UdpPoller for AllWritable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for poller in &mut self.0 {
            std::task::ready!(poller.as_mut().poll_writable(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, task::Waker};

    use super::*;

    /// A socket from which datagrams of one byte are received, from these clients.
    #[derive(Debug)]
    struct Fake {
        address: SocketAddr,
        comes: Mutex<VecDeque<SocketAddr>>,
        sent: Mutex<Vec<(SocketAddr, Option<IpAddr>)>>,
    }

    impl Fake {
        fn new(address: &str, comes: &[SocketAddr]) -> Arc<Self> {
            let comes = Mutex::new(comes.iter().copied().collect());
            Arc::new(Self { address: at(address), comes, sent: Mutex::default() })
        }

        fn sent(&self) -> Vec<(SocketAddr, Option<IpAddr>)> {
            std::mem::take(&mut self.sent.lock().expect("no panic"))
        }
    }

    #[derive(Debug)]
    struct Ready;

    impl UdpPoller for Ready {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncUdpSocket for Fake {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Ready)
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            self.sent.lock().expect("no panic").push((transmit.destination, transmit.src_ip));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            let Some(addr) = self.comes.lock().expect("no panic").pop_front() else {
                return Poll::Pending;
            };
            let dst_ip = Some(self.address.ip());
            meta[0] = RecvMeta { addr, len: 1, stride: 1, ecn: None, dst_ip };
            Poll::Ready(Ok(1))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(self.address)
        }
    }

    fn at(address: &str) -> SocketAddr {
        address.parse().expect("an address")
    }

    fn receive(sockets: &Sockets) -> Option<SocketAddr> {
        let (mut buffer, mut meta) = ([0; 9], [RecvMeta::default()]);
        let mut context = Context::from_waker(Waker::noop());
        match sockets.poll_recv(&mut context, &mut [IoSliceMut::new(&mut buffer)], &mut meta) {
            Poll::Ready(received) => (received.expect("no error") == 1).then_some(meta[0].addr),
            Poll::Pending => None,
        }
    }

    fn send(sockets: &Sockets, to: SocketAddr, from: &str) {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: b".",
            segment_size: None,
            src_ip: Some(from.parse().expect("an address")),
        };
        sockets.try_send(&transmit).expect("sent");
    }

    #[test]
    fn a_client_is_answered_from_where_it_was_heard_last() {
        let [near, far] = [at("10.0.0.9:7"), at("192.0.2.9:7")];
        let (one, other) = (Fake::new("10.0.0.1:1", &[near]), Fake::new("192.0.2.1:1", &[near]));
        let six = Fake::new("[fd00::1]:1", &[]);
        let sockets = Sockets::new(vec![one.clone(), other.clone(), six.clone()]).expect("sockets");
        receive(&sockets);
        send(&sockets, near, "10.0.0.1");
        assert_eq!(one.sent(), [(near, Some("10.0.0.1".parse().expect("ip")))]);
        receive(&sockets);
        send(&sockets, near, "10.0.0.1");
        assert_eq!(other.sent(), [(near, Some("192.0.2.1".parse().expect("ip")))]);
        // Where it is not known: by the address that QUIC wants, else by the family.
        send(&sockets, far, "192.0.2.1");
        send(&sockets, at("[fd00::9]:7"), "::");
        assert_eq!((one.sent().len(), other.sent().len(), six.sent().len()), (0, 1, 1));
        send(&sockets, far, "203.0.113.1");
        assert_eq!(one.sent().len(), 1);
    }

    #[test]
    fn a_busy_socket_does_not_keep_another_from_being_heard() {
        let clients = ["10.0.0.9:1", "10.0.0.9:2"].map(at);
        let busy = Fake::new("10.0.0.1:1", &[clients[0]; 9]);
        let sockets = Sockets::new(vec![busy, Fake::new("192.0.2.1:1", &[clients[1]; 2])]);
        let sockets = sockets.expect("sockets");
        let heard: Vec<_> =
            (0..5).filter_map(|_| receive(&sockets)).map(|from| from.port()).collect();
        assert_eq!(heard, [1, 2, 1, 2, 1]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut last_heard = LastHeard::default();
        let heard = Heard { socket: 1, ip: None };
        for port in 1..=u16::MAX {
            let from = SocketAddr::from(([192, 0, 2, 1], port));
            last_heard.heard(from, heard);
            assert_eq!(last_heard.to(from), Some(heard));
        }
        assert!(last_heard.young.len() + last_heard.old.len() <= 2 * REMEMBERED);
    }
}
