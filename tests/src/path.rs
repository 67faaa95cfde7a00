//! A UDP path that a test can cut, in user space: root is not needed.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{net::UdpSocket, task::JoinHandle};

/// A path to a server. Dropping it cuts it for good.
pub struct Path {
    /// The address that a client sends to.
    pub address: SocketAddr,
    state: Arc<PathState>,
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

/// How many datagrams a path records.
const RECORDED: usize = 4096;

/// What a path does with a datagram, and what it has seen.
struct PathState {
    cut: AtomicBool,
    /// Longer datagrams are dropped, in bytes.
    limit: AtomicUsize,
    /// So many of a hundred datagrams are dropped.
    loss: AtomicU64,
    /// Datagrams that have come, in both directions.
    came: AtomicU64,
    /// The longest datagram that was carried to the server, and to the client.
    longest: [AtomicUsize; 2],
}

impl PathState {
    fn carries(&self, direction: usize, len: usize) -> bool {
        // The numbers of the datagrams, mixed: each of a hundred outcomes is as likely as any other.
        let number = self.came.fetch_add(1, Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let is_lost = (number >> 33) % 100 < self.loss.load(Relaxed);
        let carries = !self.cut.load(Relaxed) && !is_lost && len <= self.limit.load(Relaxed);
        if carries {
            self.longest[direction].fetch_max(len, Relaxed);
        }
        carries
    }
}

impl Path {
    /// A path to `server`, with an address of its own. The server sees a separate client for each
    /// client of the path.
    pub async fn to(server: SocketAddr) -> Self {
        Self::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), server).await
    }

    /// Like [`Path::to`], with this address.
    pub async fn from(address: SocketAddr, server: SocketAddr) -> Self {
        Self::between(address, Ipv4Addr::LOCALHOST.into(), server).await
    }

    /// Like [`Path::from`]; the server sees the clients at `source`.
    pub async fn between(address: SocketAddr, source: IpAddr, server: SocketAddr) -> Self {
        let front = UdpSocket::bind(address).await.expect("a port");
        let address = front.local_addr().expect("an address");
        let state = Arc::new(PathState {
            cut: AtomicBool::new(false),
            limit: AtomicUsize::new(usize::MAX),
            loss: AtomicU64::new(0),
            came: AtomicU64::new(0),
            longest: Default::default(),
        });
        let recorded = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let record = recorded.clone();
        let task =
            tokio::spawn(carry(Arc::new(front), source, server, state.clone(), move |datagram| {
                let mut recorded = record.lock().expect("no panic");
                if recorded.len() < RECORDED {
                    recorded.push(datagram.to_vec());
                }
            }));
        Self { address, state, recorded, task }
    }

    /// The datagrams that clients have sent so far, as an eavesdropper could record them.
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        self.recorded.lock().expect("no panic").clone()
    }

    /// Drops every datagram from now on, in both directions.
    pub fn cut(&self) {
        self.state.cut.store(true, Relaxed);
    }

    /// Carries datagrams again.
    pub fn mend(&self) {
        self.state.cut.store(false, Relaxed);
    }

    /// Drops every datagram of more than `bytes` from now on, in both directions.
    pub fn limit(&self, bytes: usize) {
        self.state.limit.store(bytes, Relaxed);
    }

    /// Drops so many of a hundred datagrams from now on, in both directions.
    pub fn lose(&self, percent: u64) {
        self.state.loss.store(percent, Relaxed);
    }

    /// The length of the longest datagram that was carried to the server, and to the client.
    pub fn longest(&self) -> [usize; 2] {
        self.state.longest.each_ref().map(|longest| longest.load(Relaxed))
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    front: Arc<UdpSocket>,
    source: IpAddr,
    server: SocketAddr,
    state: Arc<PathState>,
    record: impl Fn(&[u8]),
) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = tokio::task::JoinSet::new();
    let mut datagram = vec![0; 65_536];
    loop {
        let Ok((n, client)) = front.recv_from(&mut datagram).await else { continue };
        if !state.carries(0, n) {
            continue;
        }
        record(&datagram[..n]);
        let socket = match clients.get(&client) {
            Some(socket) => socket.clone(),
            None => {
                let socket = Arc::new(UdpSocket::bind((source, 0)).await.expect("a port"));
                socket.connect(server).await.expect("connected");
                clients.insert(client, socket.clone());
                back.spawn(answers(socket.clone(), front.clone(), client, state.clone()));
                socket
            }
        };
        let _ = socket.send(&datagram[..n]).await;
    }
}

async fn answers(
    from: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    client: SocketAddr,
    state: Arc<PathState>,
) {
    let mut datagram = vec![0; 65_536];
    loop {
        // A server that is down for a while (ICMP) may come back.
        let Ok(n) = from.recv(&mut datagram).await else { continue };
        if state.carries(1, n) {
            let _ = front.send_to(&datagram[..n], client).await;
        }
    }
}
