//! Streams that nobody reads, beside one that is read: they take at most their share of the
//! tunnel's window.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tests::{
    raw,
    timing::usual_or_long,
    world::{SOON, Up, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::PROGRAM;

/// How much one peer can leave unread at the other, in KiB; see `common::transport`.
const WINDOW_KIB: u64 = 68 << 10;
/// Additional memory per stream, on either side, in KiB: buffers, and the rest of the packets that
/// held the unread bytes.
const STREAM_KIB: u64 = 256;
/// How close to its former size the memory must return, in KiB: some pages still hold something
/// else.
const RETURNED_KIB: u64 = 24 << 10;
/// Small socket buffers, so that unread bytes wait in the tunnel.
const KERNEL_BUFFER: u32 = 4096;

/// The first byte of a connection, which tells the service what to do.
const FILL: u8 = b'f';
const DEAF: u8 = b'd';
const ECHO: u8 = b'e';

/// A service that sends endlessly, reads nothing, or echoes.
struct Service {
    address: SocketAddr,
    /// How many bytes it has sent.
    sent: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Service {
    fn start() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(KERNEL_BUFFER).expect("a small buffer");
        socket.set_send_buffer_size(KERNEL_BUFFER).expect("a small buffer");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let listener = socket.listen(1024).expect("a listener");
        let (address, sent) =
            (listener.local_addr().expect("an address"), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, sent.clone()));
        Self { address, sent, _tasks: tasks }
    }
}

async fn serve(listener: TcpListener, sent: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut tcp, _)) = listener.accept().await else { return };
        let sent = sent.clone();
        connections.spawn(async move {
            match tcp.read_u8().await {
                Ok(FILL) => {
                    while let Ok(n) = tcp.write(&[7; 16 << 10]).await {
                        sent.fetch_add(n as u64, Relaxed);
                    }
                }
                Ok(DEAF) => std::future::pending().await,
                _ => {
                    let (mut read, mut write) = tcp.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                }
            }
        });
    }
}

async fn connect(up: &Up, first: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(KERNEL_BUFFER).expect("a small buffer");
    socket.set_send_buffer_size(KERNEL_BUFFER).expect("a small buffer");
    let mut app = tokio::time::timeout(SOON, socket.connect(up.address))
        .await
        .expect("in time")
        .expect("a listener");
    app.write_all(&[first]).await.expect("sent");
    app
}

/// Waits until no more bytes move.
async fn settled(moved: &AtomicU64) {
    let settled = async {
        let mut before = None;
        loop {
            let now = moved.load(Relaxed);
            if before == Some(now) {
                return;
            }
            before = Some(now);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(2 * SOON, settled).await.expect("streams that are not read stall");
}

/// Exchanges small messages and a large one on a new connection.
async fn live(up: &Up) {
    let mut app = raw::connect(up.address).await;
    app.write_all(&[ECHO]).await.expect("sent");
    for round in 0..100u8 {
        app.write_all(&[round; 1000]).await.expect("sent");
        assert_eq!(raw::read_exactly(&mut app, 1000).await, [round; 1000]);
    }
    let large: Vec<u8> = (0..1 << 20).map(|i: u32| i as u8).collect();
    let (mut read, mut write) = app.split();
    let mut back = vec![0; large.len()];
    let both = async { tokio::join!(write.write_all(&large), read.read_exact(&mut back)) };
    let (written, read) = tokio::time::timeout(SOON, both).await.expect("in time");
    written.and(read.map(drop)).expect("there and back");
    assert!(back == large, "other bytes came back");
}

async fn beside_stalled_streams(first: u8, streams: usize) {
    let service = Service::start();
    let flag = format!("tcp://{}", service.address);
    let world = World::in_front_of(PROGRAM, &flag).await;
    let up = world.up("laptop").await;
    live(&up).await;
    let before = (up.adit.rss(), world.aditd.rss());

    let written = Arc::<AtomicU64>::default();
    let (mut stalled, mut writers) = (Vec::new(), JoinSet::new());
    for _ in 0..streams {
        let mut app = connect(&up, first).await;
        if first == FILL {
            stalled.push(app);
            continue;
        }
        let written = written.clone();
        writers.spawn(async move {
            while let Ok(n) = app.write(&[7; 16 << 10]).await {
                written.fetch_add(n as u64, Relaxed);
            }
        });
    }
    live(&up).await;
    settled(if first == FILL { &service.sent } else { &written }).await;
    live(&up).await;

    let most = WINDOW_KIB + streams as u64 * STREAM_KIB;
    for (process, before, after) in
        [("adit", before.0, up.adit.rss()), ("aditd", before.1, world.aditd.rss())]
    {
        let grown = after.saturating_sub(before);
        assert!(grown < most, "{process} has grown by {grown} KiB, more than {most}");
    }
    // The memory goes back to the system. (Bytes of an upload wait for the service until it ends.)
    drop((stalled, writers, service));
    world.aditd.rss_until(|rss| rss < before.1 + RETURNED_KIB).await;
    up.adit.rss_until(|rss| rss < before.0 + RETURNED_KIB).await;
    up.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_leave_a_live_stream_its_credit() {
    beside_stalled_streams(FILL, usual_or_long(200, 1000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_uploads_leave_a_live_stream_its_credit() {
    beside_stalled_streams(DEAF, usual_or_long(200, 1000)).await;
}
