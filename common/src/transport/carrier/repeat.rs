//! A UDP socket that sends small datagrams a second time on links that lose packets.
//! [`super::redundancy`] decides which datagrams, and when.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use quinn::{
    AsyncUdpSocket, ConnectionStats, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use tokio::time::Sleep;

use super::{
    SystemSocket,
    interactive::CopyCounters,
    loss::PathCounts,
    redundancy::{Again, PathRepeats, ProtectedPath},
};

/// The most copies that may wait; further copies are not made.
const MOST_WAITING: usize = 1024;

impl From<&ConnectionStats> for PathCounts {
    fn from(stats: &ConnectionStats) -> Self {
        Self {
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            bytes: stats.udp_tx.bytes,
            window: stats.path.cwnd,
            round_trip: stats.path.rtt,
        }
    }
}

/// What has been sent a second time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repeated {
    /// Number of datagrams.
    pub datagrams: u64,
    /// Their bytes, without the headers of IP and UDP.
    pub bytes: u64,
}

impl std::ops::AddAssign for Repeated {
    fn add_assign(&mut self, more: Self) {
        self.datagrams += more.datagrams;
        self.bytes += more.bytes;
    }
}

impl std::ops::SubAssign for Repeated {
    fn sub_assign(&mut self, less: Self) {
        self.datagrams = self.datagrams.saturating_sub(less.datagrams);
        self.bytes = self.bytes.saturating_sub(less.bytes);
    }
}

/// The paths on which small datagrams are sent twice, and how many copies have been sent.
#[derive(Debug, Default)]
pub struct PacketRepeats {
    /// Whether any path is protected. It spares unprotected sockets the lock on `paths`.
    some: AtomicBool,
    paths: Mutex<HashMap<SocketAddr, PathRepeats>>,
    copies: Arc<CopyCounters>,
}

impl PacketRepeats {
    /// From now on, small datagrams are sent twice on the paths in `protected` and on no others.
    pub fn protect(&self, now: Instant, protected: &[ProtectedPath]) {
        if protected.is_empty() && !self.some.load(Relaxed) {
            return;
        }
        let mut paths = self.paths();
        let mut before = std::mem::take(&mut *paths);
        for path in before.values() {
            if !protected.iter().any(|it| path.is_of(&it.interactive)) {
                path.unprotect();
            }
        }
        for ProtectedPath { to, protection, interactive } in protected {
            interactive.count_in(&self.copies);
            let path = match before.remove(to) {
                Some(mut path) => {
                    path.set(now, *protection);
                    path
                }
                None => PathRepeats::new(now, *protection, interactive.clone()),
            };
            paths.insert(*to, path);
        }
        self.some.store(!paths.is_empty(), Relaxed);
    }

    /// How many datagrams to this address have been sent twice since it is protected, so that QUIC
    /// does not notice the loss of one copy.
    pub fn hidden_to(&self, to: SocketAddr) -> u64 {
        if !self.some.load(Relaxed) {
            return 0;
        }
        self.paths().get(&to).map_or(0, |path| path.hidden)
    }

    /// All copies that have been sent, on all paths.
    pub fn repeated(&self) -> Repeated {
        let CopyCounters { datagrams, bytes } = &*self.copies;
        Repeated { datagrams: datagrams.load(Relaxed), bytes: bytes.load(Relaxed) }
    }

    /// How many paths are protected.
    pub fn protected(&self) -> usize {
        self.paths().len()
    }

    /// `transmit` has been sent. Returns the datagrams of it that are sent again.
    fn sent<'a>(&self, transmit: &Transmit<'a>) -> Vec<(Again, &'a [u8])> {
        let mut paths = self.paths();
        let Some(path) = paths.get_mut(&transmit.destination) else { return Vec::new() };
        let len = transmit.contents.len();
        let segment = transmit.segment_size.unwrap_or(len).clamp(1, len.max(1));
        // Packets with a long header belong to the handshake (RFC 9000 section 17.2).
        if transmit.contents.first().is_none_or(|first| first & 0x80 != 0) {
            path.sent_in_handshake(len.div_ceil(segment));
            return Vec::new();
        }
        let again = path.sent(Instant::now(), len, segment);
        let datagrams = again.into_iter().zip(transmit.contents.chunks(segment));
        datagrams.filter_map(|(again, datagram)| Some((again?, datagram))).collect()
    }

    fn sent_again(&self, copy: &Copy) {
        self.copies.datagrams.fetch_add(1, Relaxed);
        self.copies.bytes.fetch_add(copy.contents.len() as u64, Relaxed);
        if let Some(path) = self.paths().get_mut(&copy.to) {
            path.sent_again(copy.again);
        }
    }

    fn paths(&self) -> MutexGuard<'_, HashMap<SocketAddr, PathRepeats>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A UDP socket that sends small datagrams twice on protected paths.
///
/// Copies are sent from `poll_recv`. QUIC always polls the socket for datagrams, so no task of our
/// own is needed.
pub struct RepeatingSocket {
    inner: Arc<SystemSocket>,
    repeats: Arc<PacketRepeats>,
    /// Whether copies wait. It spares `poll_recv` the lock on `waiting`.
    some: AtomicBool,
    waiting: Mutex<PendingCopies>,
}

#[derive(Default)]
struct PendingCopies {
    /// Sorted by the time at which they are to be sent.
    copies: VecDeque<Copy>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The task that polls the socket.
    reader: Option<Waker>,
}

/// A datagram that is to be sent again.
struct Copy {
    again: Again,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
    from: Option<std::net::IpAddr>,
    contents: Box<[u8]>,
}

impl RepeatingSocket {
    /// Sends through `inner`; `repeats` decides which datagrams are sent twice.
    pub fn new(inner: Arc<SystemSocket>, repeats: Arc<PacketRepeats>) -> Self {
        Self { inner, repeats, some: AtomicBool::new(false), waiting: Mutex::default() }
    }

    /// The socket below this one.
    pub(super) fn system(&self) -> &Arc<SystemSocket> {
        &self.inner
    }

    /// The protected paths and the number of copies.
    pub(super) fn repeats(&self) -> &PacketRepeats {
        &self.repeats
    }

    fn waiting(&self) -> MutexGuard<'_, PendingCopies> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, again: Again, transmit: &Transmit<'_>, datagram: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.copies.len() >= MOST_WAITING {
            return;
        }
        let copy = Copy {
            again,
            to: transmit.destination,
            ecn: transmit.ecn,
            from: transmit.src_ip,
            contents: datagram.into(),
        };
        let place = waiting.copies.partition_point(|other| other.again.at <= again.at);
        waiting.copies.insert(place, copy);
        self.some.store(true, Relaxed);
        // This copy is due first: the reading task has to set its timer anew.
        if place == 0
            && let Some(reader) = waiting.reader.take()
        {
            reader.wake();
        }
    }

    /// Sends the copies that are due, and wakes this task when the next one is.
    fn send_copies(&self, cx: &mut Context<'_>) {
        let mut waiting = self.waiting();
        let now = Instant::now();
        while let Some(copy) = waiting.copies.pop_front_if(|copy| copy.again.at <= now) {
            let again = Transmit {
                destination: copy.to,
                ecn: copy.ecn,
                contents: &copy.contents,
                segment_size: None,
                src_ip: copy.from,
            };
            // A full send buffer means that a queue has formed: a copy would only make it longer.
            if self.inner.try_send(&again).is_ok() {
                self.repeats.sent_again(&copy);
            }
        }
        let Some(next) = waiting.copies.front().map(|copy| copy.again.at) else {
            self.some.store(false, Relaxed);
            waiting.timer = None;
            waiting.reader = Some(cx.waker().clone());
            return;
        };
        let timer =
            waiting.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next.into())));
        timer.as_mut().reset(next.into());
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        waiting.reader = Some(cx.waker().clone());
    }
}

impl fmt::Debug for RepeatingSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepeatingSocket({:?})", self.inner)
    }
}

impl AsyncUdpSocket for RepeatingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        if self.repeats.some.load(Relaxed) {
            for (again, datagram) in self.repeats.sent(transmit) {
                self.keep(again, transmit, datagram);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.repeats.some.load(Relaxed) || self.some.load(Relaxed) {
            self.send_copies(cx);
        }
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr, time::Duration};

    use super::{super::interactive::Protection, *};

    fn socket() -> std::net::UdpSocket {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.set_nonblocking(true).expect("non-blocking");
        socket
    }

    /// Polls the socket, as QUIC does, until a datagram of one byte arrives.
    async fn poll(socket: &RepeatingSocket) {
        loop {
            let (mut buffer, mut meta) = ([0; 2048], [RecvMeta::default()]);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = poll_fn(|cx| socket.poll_recv(cx, &mut slices, &mut meta)).await;
            if received.expect("no error") > 0 && meta[0].len == 1 {
                return;
            }
        }
    }

    /// Sends the datagrams of `sent`, and returns what arrives, in the order of arrival.
    async fn arrived(repeats: &Arc<PacketRepeats>, protect: bool, sent: &[&[u8]]) -> Vec<Vec<u8>> {
        let peer = tokio::net::UdpSocket::from_std(socket()).expect("a socket");
        let to = peer.local_addr().expect("an address");
        let system = SystemSocket::new(socket()).expect("a socket");
        let repeating = RepeatingSocket::new(system, repeats.clone());
        let after = Duration::from_millis(3);
        let round_trip = 10 * after;
        let protection = Protection { after, round_trip, budget: 1_000_000, loss: 0.01 };
        let path = ProtectedPath { to, protection, interactive: Arc::default() };
        repeats.protect(Instant::now(), [path].get(..protect.into()).expect("one"));
        let (mut arrived, mut buffer) = (Vec::new(), [0; 2048]);
        let here = repeating.local_addr().expect("an address");
        let exchange = async {
            for datagram in sent {
                // Contents that are not all the same byte are sent as a batch of two datagrams.
                let half = datagram.len() / 2;
                let is_batch = datagram[..half] != datagram[datagram.len() - half..];
                let transmit = Transmit {
                    destination: to,
                    ecn: None,
                    contents: datagram,
                    segment_size: is_batch.then_some(half),
                    src_ip: None,
                };
                let mut room = repeating.inner.clone().create_io_poller();
                poll_fn(|cx| room.as_mut().poll_writable(cx)).await.expect("room");
                repeating.try_send(&transmit).expect("sent");
            }
            // Copies of earlier datagrams arrive before this one.
            while repeating.some.load(Relaxed) {
                tokio::task::yield_now().await;
            }
            repeating.inner.try_send(&Transmit {
                destination: to,
                ecn: None,
                contents: b".",
                segment_size: None,
                src_ip: None,
            })
        };
        let answer = async {
            loop {
                let n = peer.recv(&mut buffer).await.expect("received");
                if n == 1 {
                    peer.send_to(b".", here).await.expect("sent");
                    return;
                }
                arrived.push(buffer[..n].to_vec());
            }
        };
        let (sent, (), ()) = tokio::join!(exchange, answer, poll(&repeating));
        sent.expect("sent");
        arrived
    }

    #[tokio::test]
    async fn a_small_datagram_comes_twice_and_no_other_does() {
        let repeats = Arc::<PacketRepeats>::default();
        let (token, full, handshake) = ([1; 100], [2; 1400], [0xc3; 100]);
        let (batch, tokens) = ([[3; 1400], [4; 1400]].concat(), [[5; 100], [6; 100]].concat());
        let sent = [&full[..], &token, &batch, &handshake, &tokens];
        let mut came = arrived(&repeats, true, &sent).await;
        let later = came.split_off(came.len() - 3);
        assert_eq!(later, [&token[..], &[5; 100], &[6; 100]], "a little later");
        let once = [&full[..], &token, &[3; 1400], &[4; 1400], &handshake, &[5; 100], &[6; 100]];
        assert_eq!(came, once);
        assert_eq!(repeats.repeated(), Repeated { datagrams: 3, bytes: 300 });
        assert_eq!(repeats.protected(), 1);
    }

    #[tokio::test]
    async fn on_a_clean_link_nothing_comes_twice() {
        let repeats = Arc::<PacketRepeats>::default();
        let token = [1; 100];
        assert_eq!(arrived(&repeats, false, &[&token, &token]).await, [&token[..], &token]);
        assert_eq!(repeats.repeated(), Repeated::default());
        assert_eq!(repeats.protected(), 0);
    }
}
