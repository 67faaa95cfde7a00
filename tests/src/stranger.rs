//! What a stranger could have obtained and could try, at a server with one honest device and a
//! service that counts its connections.

use std::{
    io::Read,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use client::{dial, profile::Profile};
use common::transport::{self, frame, tls};
use proto::{
    identity::DeviceId,
    knock::KnockKey,
    wire::{ALPN_TUNNEL, Code, Greeting, Hello, SERVER_NAME, StreamHead},
};
use quinn::{
    Connection, ConnectionError, Endpoint, ReadError, ReadToEndError,
    crypto::rustls::QuicClientConfig,
};
use rcgen::KeyPair;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use server::Ca;
use time::OffsetDateTime;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, UdpSocket},
};

use crate::{
    credentials::{self, certified},
    ollama::seeded_bytes,
    raw,
    state_files::profile,
    world::{Device, SOON, Up, World},
};

/// How long a test waits for an answer that must not come. The server was proved to have handled
/// the packets before, so this only has to cover the way back.
const QUIET: Duration = Duration::from_millis(300);

/// What the service sends to everyone who reaches it.
pub const WELCOME: &[u8] = b"this is the service\n";

/// A service that sends [`WELCOME`] and counts its connections.
pub struct Service {
    pub address: SocketAddr,
    /// How many connections have reached it.
    pub reached: Arc<AtomicUsize>,
    _task: tokio::task::JoinSet<()>,
}

impl Service {
    /// Starts it on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, reached) =
            (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
        let mut task = tokio::task::JoinSet::new();
        let count = reached.clone();
        task.spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                let _ = tcp.write_all(WELCOME).await;
            }
        });
        Self { address, reached, _task: task }
    }
}

/// A server with one honest device, a service that counts, and everything that a stranger could
/// have obtained.
pub struct Gate {
    pub world: World,
    /// The service behind the server.
    pub service: Service,
    /// The server's UDP address.
    pub address: SocketAddr,
    pub device: Device,
    /// The profile of the honest device.
    pub profile: Profile,
}

impl Gate {
    /// Starts everything with the programs in the file `this`.
    pub async fn start(this: &str) -> Self {
        let service = Service::start().await;
        let upstream = format!("tcp://{}", service.address);
        let world = World::in_front_of(this, &upstream).await;
        let address = world.address().await;
        let device = world.device("laptop").await;
        let profile = profile(&device);
        Self { world, service, address, device, profile }
    }

    /// The knock key of the honest device.
    pub fn knock_key(&self) -> KnockKey {
        self.profile.enrolled.knock_key.clone()
    }

    /// The honest device's id.
    pub fn id(&self) -> DeviceId {
        self.profile.enrolled.device_id
    }

    /// The server's CA itself, which only the owner of the server's state has.
    pub fn ca(&self) -> Ca {
        Ca::open(&self.world.state()).expect("the authority")
    }

    /// A certificate of the server's CA that no honest server would issue now, and its key.
    pub fn issued(&self, id: DeviceId, key: &KeyPair, at: OffsetDateTime) -> Arc<CertifiedKey> {
        certified(vec![credentials::issued(&self.ca(), id, key, at)], key)
    }

    /// Tries to reach the service with the tunnel's knock and protocol.
    pub async fn attempt(&self, identity: Option<Arc<CertifiedKey>>) -> Outcome {
        attempt(self.address, &self.profile, identity, &[ALPN_TUNNEL], &self.knock_key()).await
    }

    /// Asserts that nothing has reached the service so far, and that the honest device reaches it.
    pub async fn assert_shut_and_still_working(&self) {
        assert_eq!(self.service.reached.load(SeqCst), 0, "a stranger has reached the service");
        let mut up = self.device.up(&[]).await;
        assert_served(&up).await;
        assert_eq!(self.service.reached.load(SeqCst), 1);
        assert!(!self.world.aditd.log().contains("defect"), "{}", self.world.aditd.log());
        up.adit.kill().await;
    }
}

/// Asserts that the service is reached through this tunnel.
pub async fn assert_served(up: &Up) {
    let mut tcp = raw::connect(up.address).await;
    assert_eq!(raw::read_exactly(&mut tcp, WELCOME.len()).await, WELCOME);
}

/// TLS as our client does it, except for what a stranger may choose.
pub fn crypto(
    profile: &Profile,
    identity: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
) -> QuicClientConfig {
    let roots = tls::roots(profile.ca().expect("a CA")).expect("roots");
    let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    QuicClientConfig::try_from(config).expect("QUIC")
}

/// The result of an attempt.
#[derive(Debug)]
pub enum Outcome {
    /// The server sent its greeting.
    In(Connection),
    /// The server refused it, or did not answer.
    Out(ConnectionError),
}

impl Outcome {
    /// The code with which the server ended it: of TLS, of QUIC, or of our protocol.
    #[track_caller]
    pub fn code(&self) -> u64 {
        match self {
            Self::Out(ConnectionError::ConnectionClosed(close)) => close.error_code.into(),
            Self::Out(ConnectionError::ApplicationClosed(close)) => close.error_code.into_inner(),
            other => panic!("the server did not refuse it: {other:?}"),
        }
    }
}

/// Knocks with `knock_key`, does the handshake, and at once sends the greeting and asks for the service,
/// as an honest device would.
pub async fn attempt(
    to: SocketAddr,
    profile: &Profile,
    identity: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
    knock_key: &KnockKey,
) -> Outcome {
    let config =
        dial::config(crypto(profile, identity, alpn), knock_key, proto::wire::IDLE_TIMEOUT);
    let endpoint = Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0))).expect("an endpoint");
    let connecting =
        endpoint.connect_with(config.quic, to, SERVER_NAME).expect("a connection begins");
    let connection =
        match tokio::time::timeout(SOON, connecting).await.expect("an answer of some kind") {
            Ok(connection) => connection,
            Err(e) => return Outcome::Out(e),
        };
    let greeted = async {
        let mut send = connection.open_uni().await.ok()?;
        let version = "stranger".to_owned();
        frame::write(&mut send, &Greeting { version, epoch: None, follows_ca: false })
            .await
            .ok()?;
        let (mut ask, _answer) = connection.open_bi().await.ok()?;
        let head = StreamHead::Forward("ollama".parse().expect("a name")).encode();
        ask.write_all(&[&head[..], b"let me in"].concat()).await.ok()?;
        let mut hello = connection.accept_uni().await.ok()?;
        frame::read::<Hello>(&mut hello).await.ok()
    };
    if tokio::time::timeout(SOON, greeted).await.expect("an answer of some kind").is_some() {
        return Outcome::In(connection);
    }
    Outcome::Out(tokio::time::timeout(SOON, connection.closed()).await.expect("the end"))
}

/// Opens a stream with these first bytes; returns what came back until its end, or the code of its
/// reset.
pub async fn ask(connection: &Connection, first: &[u8]) -> Result<Vec<u8>, Code> {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    // The server may have decided after the first bytes.
    let _ = send.write_all(first).await;
    let _ = send.finish();
    match tokio::time::timeout(SOON, recv.read_to_end(1 << 20)).await.expect("in time") {
        Ok(bytes) => Ok(bytes),
        Err(ReadToEndError::Read(ReadError::Reset(code))) => {
            Err(Code::from_number(code.into_inner()).expect("a code of ours"))
        }
        Err(e) => panic!("{e}"),
    }
}

/// A socket from which a stranger sends, and to which nothing may come back.
pub struct Stranger {
    pub socket: UdpSocket,
}

impl Stranger {
    /// A new socket that sends to this server.
    pub async fn facing(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).await.expect("a socket");
        socket.connect(server).await.expect("connected");
        Self { socket }
    }

    pub async fn send(&self, datagram: &[u8]) {
        self.socket.send(datagram).await.expect("sent");
    }

    /// Asserts that nothing has come back, some time after the packets were handled.
    pub async fn assert_heard_nothing(&self, after: &str) {
        let mut answer = [0; 2048];
        if let Ok(received) = tokio::time::timeout(QUIET, self.socket.recv(&mut answer)).await {
            let n = received.expect("the port is open");
            panic!("{n} bytes came back after {after}: {:02x?}", &answer[..n.min(32)]);
        }
    }
}

/// The first datagrams of a real QUIC client with this connection ID: its ClientHello.
pub async fn first_flight(crypto: QuicClientConfig, dst_cid: &[u8]) -> Vec<Vec<u8>> {
    let sink = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let id = quinn_proto::ConnectionId::new(dst_cid);
    config
        .transport_config(transport::settings(
            0,
            proto::wire::IDLE_TIMEOUT,
            transport::USUAL_DATAGRAM,
        ))
        .initial_dst_cid_provider(Arc::new(move || id));
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("an endpoint");
    let to = sink.local_addr().expect("an address");
    let _connecting = endpoint.connect_with(config, to, SERVER_NAME).expect("a connection begins");
    let mut flight = Vec::new();
    // With a post-quantum key share it needs two datagrams.
    while flight.len() < 2 {
        let mut datagram = vec![0; 2048];
        let n = tokio::time::timeout(SOON, sink.recv(&mut datagram))
            .await
            .expect("in time")
            .expect("received");
        datagram.truncate(n);
        flight.push(datagram);
    }
    flight
}

/// A first packet that is valid as far as a server can see before it decrypts it (RFC 9000 section
/// 17.2.2).
pub fn sealed(first_byte: u8, version: u32, dst_cid: &[u8], token: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![first_byte];
    packet.extend_from_slice(&version.to_be_bytes());
    packet.push(dst_cid.len() as u8);
    packet.extend_from_slice(dst_cid);
    packet.extend_from_slice(&[8, 1, 2, 3, 4, 5, 6, 7, 8]);
    packet.extend_from_slice(&(0x4000 | token.len() as u16).to_be_bytes());
    packet.extend_from_slice(token);
    let left = 1200usize.saturating_sub(packet.len() + 2).max(64);
    packet.extend_from_slice(&(0x4000 | left as u16).to_be_bytes());
    packet.extend_from_slice(&rest[..left]);
    packet
}

/// Bytes that depend only on `seed`.
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    seeded_bytes(seed).read_exact(&mut bytes).expect("endless");
    bytes
}
