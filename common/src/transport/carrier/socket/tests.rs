//! What becomes of datagrams at the system's socket.

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
    assert_eq!(system.batches_refused(), 1);
    assert_eq!(system.refused_to(), Some(batch.destination.ip()));
    let mut datagram = [0; 8];
    for expected in [&b"aa"[..], b"bb", b"c"] {
        let (n, _) = peer.recv_from(&mut datagram).expect("received");
        assert_eq!(&datagram[..n], expected);
    }
}

#[tokio::test]
async fn a_batch_that_is_too_much_for_one_call_goes_in_several() {
    let (system, peer) = (system().await, socket());
    let to = peer.local_addr().expect("an address");
    for (size, len) in [(16_384, 5 * 16_384), (16_384, 4 * 16_384 + 1), (30_000, 70_000)] {
        let contents: Vec<u8> = (0..len).map(|i| (i / size) as u8).collect();
        system
            .try_send(&Transmit { segment_size: Some(size), ..transmit(to, &contents) })
            .expect("sent");
        let mut datagram = vec![0; 1 << 16];
        for expected in contents.chunks(size) {
            let (n, _) = peer.recv_from(&mut datagram).expect("received");
            assert!(datagram[..n] == *expected, "{n} bytes, {} expected", expected.len());
        }
    }
    assert_eq!(system.batches_refused(), 0);
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

/// Full batches, as QUIC hands them over.
const MTU: usize = 100;
const FULL: [u8; 10 * MTU] = [1; 10 * MTU];

fn full(destination: SocketAddr) -> Transmit<'static> {
    Transmit { segment_size: Some(MTU), ..transmit(destination, &FULL) }
}

/// Polls the reader once; how many times it was woken before.
fn read(system: &SystemSocket, woken: &Woken) -> bool {
    let mut buffer = [0; 2000];
    let (mut bufs, mut meta) = ([IoSliceMut::new(&mut buffer)], [RecvMeta::default()]);
    let waker = Waker::from(woken.0.clone());
    system.poll_recv(&mut Context::from_waker(&waker), &mut bufs, &mut meta).is_ready()
}

struct Flag(AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

struct Woken(Arc<Flag>);

impl Woken {
    fn new() -> Self {
        Self(Arc::new(Flag(AtomicBool::new(false))))
    }

    fn take(&self) -> bool {
        self.0.0.swap(false, Relaxed)
    }
}

/// How many datagrams have come.
fn arrived(peer: &UdpSocket) -> usize {
    let mut datagram = [0; 2000];
    std::iter::from_fn(|| peer.recv(&mut datagram).ok()).count()
}

#[tokio::test]
async fn a_full_batch_waits_until_the_reader_has_looked_twice() {
    let (system, peer, woken) = (system().await, socket(), Woken::new());
    let there = peer.local_addr().expect("an address");
    assert!(!read(&system, &woken));
    system.try_send(&full(there)).expect("held");
    assert!(woken.take(), "the reader is to look");
    assert!(!read(&system, &woken) && woken.take(), "and once more");
    system.try_send(&full(there)).expect("held");
    assert!(!read(&system, &woken) && woken.take(), "as more has come");
    assert_eq!(arrived(&peer), 0);
    assert!(!read(&system, &woken));
    assert_eq!(arrived(&peer), 20);
    assert!(!read(&system, &woken) && !woken.take(), "nothing is held");
}

#[tokio::test]
async fn what_is_short_does_not_wait_and_takes_what_waits_along() {
    let (system, peer, woken) = (system().await, socket(), Woken::new());
    let there = peer.local_addr().expect("an address");
    assert!(!read(&system, &woken));
    for before in 0..=3 {
        for short in [
            transmit(there, b"token"),
            Transmit { segment_size: Some(MTU), ..transmit(there, &FULL[..50]) },
        ] {
            for _ in 0..before {
                system.try_send(&full(there)).expect("held");
            }
            system.try_send(&short).expect("sent");
            assert_eq!(arrived(&peer), 10 * before + 1);
        }
    }
}

#[tokio::test]
async fn a_batch_to_somebody_else_does_not_get_lost_nor_lose_another() {
    let (system, peers, woken) = (system().await, [socket(), socket()], Woken::new());
    assert!(!read(&system, &woken));
    for peer in &peers {
        system.try_send(&full(peer.local_addr().expect("an address"))).expect("held");
    }
    assert_eq!(peers.each_ref().map(arrived), [10, 0]);
    while woken.take() {
        assert!(!read(&system, &woken));
    }
    assert_eq!(arrived(&peers[1]), 10);
}
