//! What those meet who have no business here: silence if they have no knock, a refusal if they have no certificate, and never the service.

use std::{
    io::Read,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use client::{
    dial,
    profile::{Place, Profile},
};
use common::{
    door::DoorKey,
    frame,
    identity::{Certificate, DeviceId},
    invitation::Invitation,
    process::unix_now,
    tls, transport,
    wire::{
        ALPN_ENROLL, ALPN_TUNNEL, Code, EnrollAnswer, EnrollRefusal, EnrollRequest, Greeting, Hello, RenewAnswer, SERVER_NAME,
        StreamHead,
    },
};
use data_encoding::BASE64;
use quinn::{Connection, ConnectionError, Endpoint, ReadError, ReadToEndError, crypto::rustls::QuicClientConfig};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use server::ca::{Ca, DeviceKey};
use tests::{
    ollama::{Options, seeded_bytes},
    raw, skip,
    world::{Device, SOON, Up, World},
};
use time::OffsetDateTime;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, UdpSocket},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
/// Looked at after the server has proved that it works off what it gets, so this only has to cover the way back.
const QUIET: Duration = Duration::from_millis(300);
const WELCOME: &[u8] = b"this is the service\n";

// The alerts of RFC 8446 section 6, as QUIC carries them (RFC 9001 section 4.8).
const UNSUPPORTED_CERTIFICATE: u64 = 0x100 + 43;
const CERTIFICATE_REVOKED: u64 = 0x100 + 44;
const CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
const UNKNOWN_CA: u64 = 0x100 + 48;
const DECRYPT_ERROR: u64 = 0x100 + 51;
const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// A service that says who it is and counts those who have reached it.
struct Service {
    address: SocketAddr,
    reached: Arc<AtomicUsize>,
    _task: tokio::task::JoinSet<()>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, reached) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
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

/// A server with one honest device, a service that counts, and everything that a stranger could have got hold of.
struct Gate {
    world: World,
    service: Service,
    address: SocketAddr,
    device: Device,
    profile: Profile,
}

impl Gate {
    async fn start() -> Self {
        let service = Service::start().await;
        let upstream = format!("tcp://{}", service.address);
        let world = World::start_with(PROGRAM, Options::default(), &["--upstream", &upstream]).await;
        let address = world.address().await;
        let device = world.device("laptop").await;
        let profile = profile(&device);
        Self { world, service, address, device, profile }
    }

    fn door(&self) -> DoorKey {
        self.profile.enrolled.door_key.clone()
    }

    fn id(&self) -> DeviceId {
        self.profile.enrolled.device_id
    }

    /// The authority itself, as only the owner of the server's state has it.
    fn ca(&self) -> Ca {
        Ca::open(&self.world.state()).expect("the authority")
    }

    /// A certificate of the server's own authority that no honest server would issue now, and the key for it.
    fn issued(&self, id: DeviceId, key: &KeyPair, at: OffsetDateTime) -> Arc<CertifiedKey> {
        let device_key = DeviceKey::from_spki(&key.subject_public_key_info()).expect("a key");
        let issued =
            self.ca().issue_device(id, &device_key, at, std::time::Duration::from_secs(30 * 86_400)).expect("a certificate");
        certified(vec![issued.certificate], key)
    }

    /// Tries to get in and to the service with the tunnel's knock and protocol.
    async fn attempt(&self, identity: Option<Arc<CertifiedKey>>) -> Outcome {
        attempt(self.address, &self.profile, identity, &[ALPN_TUNNEL], &self.door()).await
    }

    /// That nothing has reached the service so far, and that the honest device does.
    async fn assert_shut_and_still_working(&self) {
        assert_eq!(self.service.reached.load(SeqCst), 0, "a stranger has reached the service");
        let mut up = self.device.up(&[]).await;
        assert_served(&up).await;
        assert_eq!(self.service.reached.load(SeqCst), 1);
        assert!(!self.world.aditd.log().contains("defect"), "{}", self.world.aditd.log());
        up.adit.kill().await;
    }
}

async fn assert_served(up: &Up) {
    let mut tcp = raw::connect(up.address).await;
    assert_eq!(raw::read_exactly(&mut tcp, WELCOME.len()).await, WELCOME);
}

fn profile(device: &Device) -> Profile {
    Place::new(&device.dir, "default".parse().expect("a name")).read().expect("a profile")
}

fn private_key(device: &Device) -> KeyPair {
    let stored = std::fs::read(device.dir.join("servers/default/identity.json")).expect("an identity");
    let stored: serde_json::Value = serde_json::from_slice(&stored).expect("JSON");
    KeyPair::from_pem(stored["private_key"].as_str().expect("a key")).expect("a key")
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Arc::new(CertifiedKey::from_der(chain, key, &tls::provider()).expect("a certificate and its key"))
}

/// TLS as a client of ours does it, but for what a stranger may choose.
fn crypto(profile: &Profile, identity: Option<Arc<CertifiedKey>>, alpn: &[&[u8]]) -> QuicClientConfig {
    let roots = tls::roots(profile.ca().expect("a CA")).expect("roots");
    let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    QuicClientConfig::try_from(config).expect("QUIC")
}

/// What became of an attempt.
#[derive(Debug)]
enum Outcome {
    /// The server said hello.
    In(Connection),
    /// The server refused it, or was silent.
    Out(ConnectionError),
}

impl Outcome {
    /// The code with which the server ended it: of TLS or of QUIC, or our own.
    #[track_caller]
    fn code(&self) -> u64 {
        match self {
            Self::Out(ConnectionError::ConnectionClosed(close)) => close.error_code.into(),
            Self::Out(ConnectionError::ApplicationClosed(close)) => close.error_code.into_inner(),
            other => panic!("the server did not refuse it: {other:?}"),
        }
    }
}

/// Knocks with `door`, shakes hands, and at once greets and asks for the service, as if all were well.
async fn attempt(
    to: SocketAddr,
    profile: &Profile,
    identity: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
    door: &DoorKey,
) -> Outcome {
    let config = dial::config(crypto(profile, identity, alpn), door, transport::IDLE_TIMEOUT);
    let endpoint = Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0))).expect("an endpoint");
    let connecting = endpoint.connect_with(config, to, SERVER_NAME).expect("a connection begins");
    let connection = match tokio::time::timeout(SOON, connecting).await.expect("an answer of some kind") {
        Ok(connection) => connection,
        Err(e) => return Outcome::Out(e),
    };
    let greeted = async {
        let mut send = connection.open_uni().await.ok()?;
        let version = "stranger".to_owned();
        frame::write(&mut send, &Greeting { version }).await.ok()?;
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

/// A socket from which a stranger sends, and to which nothing may come back.
struct Stranger {
    socket: UdpSocket,
}

impl Stranger {
    async fn facing(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).await.expect("a socket");
        socket.connect(server).await.expect("connected");
        Self { socket }
    }

    async fn send(&self, datagram: &[u8]) {
        self.socket.send(datagram).await.expect("sent");
    }

    async fn assert_heard_nothing(&self, after: &str) {
        let mut answer = [0; 2048];
        if let Ok(received) = tokio::time::timeout(QUIET, self.socket.recv(&mut answer)).await {
            let n = received.expect("the port is open");
            panic!("{n} bytes came back after {after}: {:02x?}", &answer[..n.min(32)]);
        }
    }
}

/// The first flight of a real QUIC client with this connection ID: the datagrams of its ClientHello.
async fn first_flight(crypto: QuicClientConfig, dst_cid: &[u8]) -> Vec<Vec<u8>> {
    let sink = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let id = quinn_proto::ConnectionId::new(dst_cid);
    config.transport_config(transport::settings(0, transport::IDLE_TIMEOUT)).initial_dst_cid_provider(Arc::new(move || id));
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("an endpoint");
    let to = sink.local_addr().expect("an address");
    let _connecting = endpoint.connect_with(config, to, SERVER_NAME).expect("a connection begins");
    let mut flight = Vec::new();
    // With a post-quantum key share it is two datagrams.
    while flight.len() < 2 {
        let mut datagram = vec![0; 2048];
        let n = tokio::time::timeout(SOON, sink.recv(&mut datagram)).await.expect("in time").expect("received");
        datagram.truncate(n);
        flight.push(datagram);
    }
    flight
}

/// A first packet that is well-formed as far as a server can tell before it has opened it (RFC 9000 section 17.2.2).
fn sealed(first_byte: u8, version: u32, dst_cid: &[u8], token: &[u8], rest: &[u8]) -> Vec<u8> {
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

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    seeded_bytes(seed).read_exact(&mut bytes).expect("endless");
    bytes
}

/// Sends all of these, then lets the honest device prove that the server has worked them off, and listens for an answer.
async fn assert_no_answer(what: &str, gate: &Gate, up: &Up, datagrams: &[Vec<u8>]) {
    let stranger = Stranger::facing(gate.address).await;
    for datagram in datagrams {
        stranger.send(datagram).await;
    }
    assert_served(up).await;
    stranger.assert_heard_nothing(what).await;
}

#[tokio::test]
async fn no_datagram_of_a_stranger_is_ever_answered() {
    let gate = Gate::start().await;
    let up = gate.device.up(&[]).await;
    let noise = random(1, 4096);

    let garbage: Vec<_> = (0..400).map(|i| random(i, 1 + (i as usize * 37) % 1472)).collect();
    assert_no_answer("garbage", &gate, &up, &garbage).await;
    assert_no_answer("empty datagrams", &gate, &up, &vec![Vec::new(); 20]).await;

    let short: Vec<_> = (0..256u64)
        .map(|i| {
            let mut packet = random(1000 + i, 30 + i as usize * 5);
            packet[0] = 0x40 | packet[0] & 0x3f;
            packet
        })
        .collect();
    assert_no_answer("packets of connections that never were", &gate, &up, &short).await;

    let stranger = || crypto(&gate.profile, None, &[ALPN_TUNNEL]);
    let genuine = first_flight(stranger(), &random(7, 20)).await;
    assert!(genuine.iter().all(|datagram| datagram.len() >= 1200), "{:?}", genuine.iter().map(Vec::len).collect::<Vec<_>>());
    let mut versions = Vec::new();
    for version in [0, 2, 0x0a0a_0a0a, 0x0a1a_2a3a, 0x6b33_43cf, 0xff00_001d, 0xbaba_baba, 0xffff_ffffu32] {
        for cid in [8, 20] {
            versions.push(sealed(0xc0, version, &random(9, cid), &[], &noise));
        }
        let mut other = genuine[0].clone();
        other[1..5].copy_from_slice(&version.to_be_bytes());
        versions.push(other);
    }
    assert_no_answer("versions that the server doesn't speak", &gate, &up, &versions).await;

    let mut lengths = Vec::new();
    for cid in [0, 1, 7, 8, 9, 19, 20] {
        lengths.extend(first_flight(stranger(), &random(11, cid)).await);
    }
    for cid in [0, 4, 7, 8, 20, 21, 64, 255] {
        // What comes after the header looks different to the server each time: all four values of its reserved bits come up.
        lengths.extend((0..16).map(|i| sealed(0xc0 | i, 1, &random(13, cid), &[], &noise[usize::from(i)..])));
    }
    assert_no_answer("first packets with connection IDs of all lengths", &gate, &up, &lengths).await;

    let mut tokens = Vec::new();
    for len in [1, 16, 60, 100, 300] {
        for cid in [0, 8, 20] {
            tokens.extend((0..16).map(|i| sealed(0xc0 | i, 1, &random(15, cid), &random(17, len), &noise[usize::from(i)..])));
        }
    }
    assert_no_answer("first packets with tokens that the server didn't give", &gate, &up, &tokens).await;

    let kinds: Vec<_> = [0xd0, 0xe0, 0xf0, 0x80, 0x90, 0xff]
        .into_iter()
        .flat_map(|first| [8, 20].map(|cid| sealed(first, 1, &random(19, cid), &[], &noise)))
        .collect();
    assert_no_answer("long packets of every other kind", &gate, &up, &kinds).await;

    let other_server = DoorKey::generate();
    let knocks = first_flight(stranger(), &other_server.knock()).await;
    assert_no_answer("a knock with another server's key", &gate, &up, &knocks).await;
    let mut almost = gate.door().knock();
    almost[19] ^= 1;
    assert_no_answer("a knock that is wrong by one bit", &gate, &up, &first_flight(stranger(), &almost).await).await;

    // All of this would have shown: with the right knock there is an answer.
    let knock = Stranger::facing(gate.address).await;
    for datagram in first_flight(stranger(), &gate.door().knock()).await {
        knock.send(&datagram).await;
    }
    let answered = tokio::time::timeout(SOON, knock.socket.recv(&mut [0; 2048])).await;
    assert!(answered.expect("an answer").expect("received") > 0);
    assert!(!gate.world.aditd.log().contains("defect"), "{}", gate.world.aditd.log());
}

#[tokio::test]
async fn a_flood_of_first_packets_is_not_answered_and_the_tunnel_goes_on() {
    let gate = Gate::start().await;
    let up = gate.device.up(&[]).await;
    let noise = random(1, 4096);
    let stranger = Stranger::facing(gate.address).await;
    for round in 0..8u64 {
        for i in 0..512 {
            stranger.send(&sealed(0xc0 | (i % 16) as u8, 1, &random(round << 16 | i, 20), &[], &noise)).await;
        }
        assert_served(&up).await;
    }
    stranger.assert_heard_nothing("a flood").await;
    assert_eq!(gate.service.reached.load(SeqCst), 8);
}

#[tokio::test]
async fn a_real_client_without_a_knock_is_met_with_silence_whatever_it_offers() {
    let gate = Gate::start().await;
    let invitation: Invitation = gate.world.invite("guest").await.parse().expect("a code");
    let identity = gate.profile.certified_key().expect("an identity");
    let mut attempts = tokio::task::JoinSet::new();
    for (identity, alpn) in [(Some(identity), ALPN_TUNNEL), (None, ALPN_TUNNEL), (None, ALPN_ENROLL), (None, b"h3")] {
        let mut config = quinn::ClientConfig::new(Arc::new(crypto(&gate.profile, identity, &[alpn])));
        let mut impatient = quinn::TransportConfig::default();
        impatient.max_idle_timeout(Some(Duration::from_secs(3).try_into().expect("a time")));
        config.transport_config(Arc::new(impatient));
        let to = gate.address;
        attempts.spawn(async move {
            let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("an endpoint");
            endpoint.connect_with(config, to, SERVER_NAME).expect("a connection begins").await
        });
    }
    // The honest device is served all the while.
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    while let Some(ended) = attempts.join_next().await {
        let ended = ended.expect("no panic");
        assert!(matches!(ended, Err(ConnectionError::TimedOut)), "{ended:?}");
    }
    // The invitation would have let one in all the time.
    assert!(matches!(enroll(&invitation, &invitation.secret.token(), csr_of(&new_key())).await, EnrollAnswer::Enrolled(_)));
}

#[tokio::test]
async fn who_has_a_knock_but_no_certificate_is_refused() {
    let gate = Gate::start().await;
    assert_eq!(gate.attempt(None).await.code(), CERTIFICATE_REQUIRED);
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_whatever_it_calls_itself() {
    let gate = Gate::start().await;
    // The same product, so the same names in its CA.
    let other = gate.world.scratch("other");
    std::fs::create_dir(&other).expect("a directory");
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    let other = Ca::open(&other).expect("another authority");
    let key = private_key(&gate.device);
    let device_key = DeviceKey::from_spki(&key.subject_public_key_info()).expect("a key");
    let now = OffsetDateTime::now_utc();
    let foreign = other
        .issue_device(gate.id(), &device_key, now, std::time::Duration::from_secs(30 * 86_400))
        .expect("a certificate")
        .certificate;
    let chain = vec![foreign.clone(), other.certificate().clone()];
    for chain in [vec![foreign], chain] {
        let code = gate.attempt(Some(certified(chain, &key))).await.code();
        assert!(matches!(code, UNKNOWN_CA | DECRYPT_ERROR), "{code}");
    }

    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(gate.id().to_uri().try_into().expect("a URI"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let by_itself = params.self_signed(&key).expect("a certificate").der().clone();
    assert_eq!(gate.attempt(Some(certified(vec![by_itself], &key))).await.code(), UNKNOWN_CA);
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_device_cannot_make_certificates_for_others() {
    let gate = Gate::start().await;
    let victim = gate.world.device("victim").await;
    let key = new_key();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(profile(&victim).enrolled.device_id.to_uri().try_into().expect("a URI"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let own = CertificateDer::from(BASE64.decode(gate.profile.enrolled.certificate.as_bytes()).expect("base64"));
    let as_issuer = Issuer::from_ca_cert_der(&own, private_key(&gate.device)).expect("an issuer");
    let forged = params.signed_by(&key, &as_issuer).expect("a certificate").der().clone();
    let code = gate.attempt(Some(certified(vec![forged, own], &key))).await.code();
    assert!(matches!(code, UNKNOWN_CA | UNSUPPORTED_CERTIFICATE | 0x12a | 0x12e), "{code:#x}");
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_certificate_that_is_long_past_its_end_or_not_yet_begun_is_refused() {
    let gate = Gate::start().await;
    let key = private_key(&gate.device);
    let now = OffsetDateTime::now_utc();
    for days in [-(30 + 91), -365, -3650, 2, 365] {
        let identity = gate.issued(gate.id(), &key, now + time::Duration::days(days));
        assert_eq!(gate.attempt(Some(identity)).await.code(), CERTIFICATE_EXPIRED, "issued {days} days from now");
    }
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn a_certificate_that_has_just_ended_is_good_for_its_renewal_and_nothing_else() {
    let gate = Gate::start().await;
    let key = private_key(&gate.device);
    let ended = gate.issued(gate.id(), &key, OffsetDateTime::now_utc() - time::Duration::days(31));
    let outcome = gate.attempt(Some(ended)).await;
    let Outcome::In(connection) = outcome else { panic!("{outcome:?}") };
    assert_eq!(ask(&connection, &StreamHead::Forward("ollama".parse().expect("a name")).encode()).await, Err(Code::Expired));
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&StreamHead::Renew.encode()).await.expect("sent");
    send.finish().expect("finished");
    let renewed: RenewAnswer = tokio::time::timeout(SOON, frame::read(&mut recv)).await.expect("in time").expect("an answer");
    let renewed = BASE64.decode(renewed.certificate.as_bytes()).expect("base64");
    let read = Certificate::from_der(&renewed).expect("a certificate");
    assert_eq!(read.device, Some(gate.id()));
    assert!(read.not_after > unix_now());
    // Other streams of another, new connection: the renewed certificate is as good as any.
    drop(connection);
    assert!(matches!(gate.attempt(Some(certified(vec![renewed.into()], &key))).await, Outcome::In(_)));
}

/// Opens a stream with these first bytes; what came back until its end, or the code of its reset.
async fn ask(connection: &Connection, first: &[u8]) -> Result<Vec<u8>, Code> {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    // The server may have judged by the first bytes.
    let _ = send.write_all(first).await;
    let _ = send.finish();
    match tokio::time::timeout(SOON, recv.read_to_end(1 << 20)).await.expect("in time") {
        Ok(bytes) => Ok(bytes),
        Err(ReadToEndError::Read(ReadError::Reset(code))) => Err(Code::from_number(code.into_inner()).expect("a code of ours")),
        Err(e) => panic!("{e}"),
    }
}

#[tokio::test]
async fn the_servers_own_certificate_is_no_devices() {
    let gate = Gate::start().await;
    let read = |name: &str| std::fs::read(gate.world.state().join(name)).expect(name);
    let key = KeyPair::from_pem(&String::from_utf8(read("server.key")).expect("text")).expect("a key");
    let certificate = CertificateDer::from_pem_slice(&read("server.crt")).expect("a certificate");
    let code = gate.attempt(Some(certified(vec![certificate], &key))).await.code();
    assert_eq!(code, UNSUPPORTED_CERTIFICATE);
    // Nor is the authority's, though it vouches for itself.
    let key = KeyPair::from_pem(&String::from_utf8(read("ca.key")).expect("text")).expect("a key");
    let certificate = CertificateDer::from_pem_slice(&read("ca.crt")).expect("a certificate");
    let outcome = gate.attempt(Some(certified(vec![certificate], &key))).await;
    assert!(matches!(outcome, Outcome::Out(ConnectionError::ConnectionClosed(_))), "{outcome:?}");
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn who_was_revoked_or_forgotten_or_never_enrolled_is_refused() {
    let gate = Gate::start().await;
    let now = OffsetDateTime::now_utc();
    for (name, commands) in [("revoked", &["revoke"][..]), ("forgotten", &["revoke", "forget"])] {
        let device = gate.world.device(name).await;
        let identity = profile(&device).certified_key().expect("an identity");
        assert!(matches!(gate.attempt(Some(identity.clone())).await, Outcome::In(_)), "{name} was let in before");
        for command in commands {
            assert_eq!(gate.world.aditd(&["device", command, name]).await.code, Some(0));
        }
        assert_eq!(gate.attempt(Some(identity)).await.code(), CERTIFICATE_REVOKED, "{name}");
        let renewed = gate.issued(profile(&device).enrolled.device_id, &private_key(&device), now);
        assert_eq!(gate.attempt(Some(renewed)).await.code(), CERTIFICATE_REVOKED, "{name}, with a newer certificate");
    }
    let reached = gate.service.reached.swap(0, SeqCst);
    assert_eq!(reached, 2, "each reached the service once, while it was allowed");

    let key = new_key();
    let unknown = gate.issued(DeviceId::generate(), &key, now);
    assert_eq!(gate.attempt(Some(unknown)).await.code(), CERTIFICATE_REVOKED, "an id that is in no register");
    let stolen_name = gate.issued(gate.id(), &key, now);
    assert_eq!(gate.attempt(Some(stolen_name)).await.code(), CERTIFICATE_REVOKED, "an enrolled id with another key");
    let not_a_device = {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let ca_key = std::fs::read_to_string(gate.world.state().join("ca.key")).expect("a key");
        let issuer =
            Issuer::from_ca_cert_der(gate.ca().certificate(), KeyPair::from_pem(&ca_key).expect("a key")).expect("an issuer");
        params.signed_by(&key, &issuer).expect("a certificate").der().clone()
    };
    assert_eq!(gate.attempt(Some(certified(vec![not_a_device], &key))).await.code(), CERTIFICATE_REVOKED, "no id at all");
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn each_knock_opens_one_door_and_each_door_speaks_one_protocol() {
    let gate = Gate::start().await;
    let invitation: Invitation = gate.world.invite("guest").await.parse().expect("a code");
    let (tunnel, guest) = (gate.door(), invitation.secret.door_key());
    let identity = || gate.profile.certified_key().ok();
    for (what, identity, alpn, door) in [
        ("another protocol", identity(), &[&b"h3"[..]][..], &tunnel),
        ("a later version", identity(), &[b"adit/2"], &tunnel),
        ("no protocol", identity(), &[], &tunnel),
        ("enrollment by the tunnel's door", None, &[ALPN_ENROLL], &tunnel),
        ("enrollment by the tunnel's door, with a certificate", identity(), &[ALPN_ENROLL], &tunnel),
        ("the tunnel by an invitation's door", identity(), &[ALPN_TUNNEL], &guest),
    ] {
        let outcome = attempt(gate.address, &gate.profile, identity, alpn, door).await;
        assert_eq!(outcome.code(), NO_APPLICATION_PROTOCOL, "{what}");
    }
    // Of two that it offers, each door takes its own.
    let both = attempt(gate.address, &gate.profile, None, &[ALPN_ENROLL, ALPN_TUNNEL], &tunnel).await;
    assert_eq!(both.code(), CERTIFICATE_REQUIRED);
    let both = attempt(gate.address, &gate.profile, identity(), &[ALPN_TUNNEL, ALPN_ENROLL], &guest).await;
    assert!(matches!(both, Outcome::Out(_)), "{both:?}");
    gate.assert_shut_and_still_working().await;
    // None of it has used the invitation up.
    assert!(matches!(enroll(&invitation, &invitation.secret.token(), csr_of(&new_key())).await, EnrollAnswer::Enrolled(_)));
}

fn csr_of(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).expect("a CSR").der().to_vec()
}

async fn at_enrollment(invitation: &Invitation) -> Connection {
    let config =
        dial::config(tls::enroll_client(invitation.ca).expect("TLS"), &invitation.secret.door_key(), transport::IDLE_TIMEOUT);
    dial::dial(&config, &invitation.addresses, None).await.expect("the enrollment door").connection
}

async fn enroll(invitation: &Invitation, token: &[u8], csr: Vec<u8>) -> EnrollAnswer {
    let connection = at_enrollment(invitation).await;
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let request = EnrollRequest { token: BASE64.encode(token), csr: BASE64.encode(&csr) };
    frame::write(&mut send, &request).await.expect("sent");
    tokio::time::timeout(SOON, frame::read(&mut recv)).await.expect("in time").expect("an answer")
}

#[tokio::test]
async fn a_request_that_asks_for_an_authority_and_anothers_name_gets_a_plain_certificate() {
    let gate = Gate::start().await;
    let invitation: Invitation = gate.world.invite("hostile").await.parse().expect("a code");
    let key = new_key();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![
        SanType::URI(gate.id().to_uri().try_into().expect("a URI")),
        SanType::DnsName(SERVER_NAME.try_into().expect("a name")),
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    let csr = params.serialize_request(&key).expect("a CSR").der().to_vec();
    let EnrollAnswer::Enrolled(enrolled) = enroll(&invitation, &invitation.secret.token(), csr).await else { panic!("refused") };
    assert_ne!(enrolled.device_id, gate.id());
    assert_eq!(enrolled.device.as_str(), "hostile");
    let der = BASE64.decode(enrolled.certificate.as_bytes()).expect("base64");
    let (_, parsed) = X509Certificate::from_der(&der).expect("a certificate");
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().expect("extensions").expect("a usage").value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any, "{usage:?}");
    let usage = parsed.key_usage().expect("extensions").expect("a usage").value;
    assert!(!usage.key_cert_sign(), "{usage:?}");
    let names = parsed.subject_alternative_name().expect("extensions").expect("names");
    assert_eq!(names.value.general_names, [GeneralName::URI(&enrolled.device_id.to_uri())]);
}

#[tokio::test]
async fn an_enrollment_that_is_nonsense_is_refused_and_leaves_the_invitation_good() {
    let gate = Gate::start().await;
    let invitation: Invitation = gate.world.invite("guest").await.parse().expect("a code");
    let token = invitation.secret.token();
    let key = new_key();
    let mut tampered = csr_of(&key);
    let last = tampered.len() - 3;
    tampered[last] ^= 1;
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    for (what, csr) in [
        ("no request", Vec::new()),
        ("garbage", random(1, 300)),
        ("a wrong signature", tampered),
        ("another kind of key", csr_of(&ed25519)),
        ("another curve", csr_of(&p384)),
        ("a request cut short", csr_of(&key)[..60].to_vec()),
    ] {
        let answer = enroll(&invitation, &token, csr).await;
        assert!(matches!(answer, EnrollAnswer::Refused(EnrollRefusal::BadRequest)), "{what}: {answer:?}");
    }
    for token in [&[][..], &[0; 32], &random(3, 2000)] {
        let answer = enroll(&invitation, token, csr_of(&key)).await;
        assert!(matches!(answer, EnrollAnswer::Refused(EnrollRefusal::Closed)), "{answer:?}");
    }
    // Not even the form of a request: beyond every bound, no JSON, the way to the service, and the end at once.
    let service = StreamHead::Forward("ollama".parse().expect("a name")).encode();
    for first in [&[0xff; 64][..], b"\0\0\0\x04nope", &[&service[..], b"GET / HTTP/1.1\r\n\r\n"].concat(), b""] {
        let connection = at_enrollment(&invitation).await;
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        send.write_all(first).await.expect("sent");
        send.finish().expect("finished");
        let answer: EnrollAnswer = tokio::time::timeout(SOON, frame::read(&mut recv)).await.expect("in time").expect("an answer");
        assert!(matches!(answer, EnrollAnswer::Refused(EnrollRefusal::BadRequest)), "{answer:?}");
        // And then it is over: there is no second stream to try something else on.
        tokio::time::timeout(SOON, connection.closed()).await.expect("the end");
    }
    gate.assert_shut_and_still_working().await;
    assert!(matches!(enroll(&invitation, &token, csr_of(&key)).await, EnrollAnswer::Enrolled(_)));
    let listed = gate.world.aditd(&["device", "list", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(listed["devices"].as_array().expect("devices").len(), 2, "{listed}");
}

#[tokio::test]
async fn a_device_that_talks_nonsense_on_its_streams_hurts_only_those() {
    let gate = Gate::start().await;
    let outcome = gate.attempt(gate.profile.certified_key().ok()).await;
    let Outcome::In(connection) = outcome else { panic!("{outcome:?}") };
    let head = |name: &str| StreamHead::Forward(name.parse().expect("a name")).encode();
    for (what, first, code) in [
        ("an unknown kind", &b"\x09\x00"[..], Code::Protocol),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n", Code::Protocol),
        ("a length beyond the bound", b"\x01\xff", Code::Protocol),
        ("no name", b"\x01\x00", Code::Protocol),
        ("a name that is none", b"\x01\x03../", Code::Protocol),
        ("bytes that are no text", b"\x01\x02\xff\xfe", Code::Protocol),
        ("half a head and the end", b"\x01\x06oll", Code::Protocol),
        ("nothing and the end", b"", Code::Protocol),
        ("a service that isn't there", &head("postgres"), Code::UnknownService),
        ("a service that almost is", &head("Ollama"), Code::UnknownService),
    ] {
        assert_eq!(ask(&connection, first).await, Err(code), "{what}");
    }
    let hung: Vec<_> = {
        let mut hung = Vec::new();
        for i in 0..100 {
            let (mut send, recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&head("ollama")[..1 + i % 7]).await.expect("sent");
            hung.push((send, recv));
        }
        hung
    };
    let reached = gate.service.reached.load(SeqCst);
    assert_eq!(ask(&connection, &head("ollama")).await.as_deref(), Ok(WELCOME));
    assert_eq!(gate.service.reached.load(SeqCst), reached + 1);
    assert!(connection.close_reason().is_none());
    drop(hung);
}

#[tokio::test]
async fn a_device_whose_greeting_is_nonsense_is_told_that_they_do_not_understand_each_other() {
    let gate = Gate::start().await;
    for greeting in [&[0xff; 16][..], b"\0\0\0\x02{}", b"\0\0\0\x04nope", b""] {
        let identity = gate.profile.certified_key().expect("an identity");
        let config = dial::config(crypto(&gate.profile, Some(identity), &[ALPN_TUNNEL]), &gate.door(), transport::IDLE_TIMEOUT);
        let dialed = dial::dial(&config, &[gate.address.to_string()], None).await.expect("a connection");
        let mut send = dialed.connection.open_uni().await.expect("a stream");
        send.write_all(greeting).await.expect("sent");
        send.finish().expect("finished");
        let end = tokio::time::timeout(SOON, dialed.connection.closed()).await.expect("the end");
        assert_eq!(Outcome::Out(end).code(), Code::Protocol as u64);
    }
    gate.assert_shut_and_still_working().await;
}

#[tokio::test]
async fn handshakes_that_never_finish_are_dropped_and_an_honest_device_gets_in() {
    let mut gate = Gate::start().await;
    let mut strangers = Vec::new();
    for _ in 0..80 {
        // One half of a ClientHello, with a knock of somebody who was enrolled once.
        let half = first_flight(crypto(&gate.profile, None, &[ALPN_TUNNEL]), &gate.door().knock()).await.remove(0);
        let stranger = Stranger::facing(gate.address).await;
        stranger.send(&half).await;
        strangers.push(stranger);
    }
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    gate.world.aditd.says("gave up a handshake that took too long").await;
    let gave_up = gate.world.aditd.log().matches("gave up a handshake that took too long").count();
    assert!((1..=64).contains(&gave_up), "{gave_up} of the 64 that may be under way:\n{}", gate.world.aditd.log());
    drop(strangers);
}

/// An address of this machine that is not loopback.
fn own_address() -> Option<std::net::Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent; the documentation's network (RFC 5737) stands for "anywhere".
    socket.connect("203.0.113.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

async fn try_to_serve(world: &World, flags: &[&str]) -> tests::process::Ended {
    let state = world.scratch("another");
    let args = [&["serve", "--state-dir", state.to_str().expect("a path")], flags].concat();
    world.programs.run("aditd", &args, "").await.expect("aditd runs")
}

#[tokio::test]
async fn an_address_that_is_not_loopback_is_not_listened_on_without_saying_who_may_speak_to_it() {
    let world = World::start(PROGRAM).await;
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
        let refused = try_to_serve(&world, &["--listen", "127.0.0.1:0", "--listen", address]).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(&format!("refusing to listen on {address}")), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("hint: ") && refused.stderr.contains("--allow-from 192.168.1.0/24"),
            "{}",
            refused.stderr
        );
    }
    assert!(!Path::new(&world.scratch("another")).exists(), "refused before anything is made");
}

#[tokio::test]
async fn on_an_open_address_this_machine_is_heard_and_a_network_that_nobody_named_is_not() {
    let mut gate = Gate::start().await;
    let port = gate.address.port();
    // Begun on loopback, so that the port is known; now the same on all addresses.
    let open = format!("0.0.0.0:{port}");
    let loopback = gate.address.to_string();
    for flag in gate.world.serve_flags.iter_mut().filter(|flag| **flag == loopback) {
        flag.clone_from(&open);
    }
    let flags = ["--allow-from", "203.0.113.0/24", "--advertise", &loopback];
    gate.world.serve_flags.extend(flags.map(str::to_owned));
    gate.world.kill_server().await;
    gate.world.restart_server().await;
    assert_eq!(gate.world.address().await.to_string(), open);
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;

    let Some(own) = own_address() else {
        skip::because("this machine has no address besides loopback");
        return;
    };
    let knocks = first_flight(crypto(&gate.profile, None, &[ALPN_TUNNEL]), &gate.door().knock()).await;
    let outsider = Stranger::facing((own, port).into()).await;
    for datagram in &knocks {
        outsider.send(datagram).await;
    }
    assert_served(&up).await;
    outsider.assert_heard_nothing("a knock from a network that nobody named").await;
}

#[tokio::test]
async fn a_device_on_a_named_network_proves_its_address_and_is_let_in() {
    let Some(own) = own_address() else {
        skip::because("this machine has no address besides loopback");
        return;
    };
    let network = format!("{own}/32");
    let service = Service::start().await;
    let upstream = format!("tcp://{}", service.address);
    let flags = ["--listen", "0.0.0.0:0", "--allow-from", &network, "--upstream", &upstream];
    let world = World::start_with(PROGRAM, Options::default(), &flags).await;
    let port = world.address().await.port();
    let code = world.invite("laptop").await;
    let invitation: Invitation = code.parse().expect("a code");
    assert_eq!(invitation.addresses, [format!("{own}:{port}")], "only where somebody may come from");
    let device = world.stranger("laptop");
    let enrolled = device.enroll(&code, &[]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    let up = device.up(&[]).await;
    assert_served(&up).await;
    let status = device.status().await;
    assert_eq!(status["tunnel"]["remote"], format!("{own}:{port}"));

    // Asked to prove its address first, and without a knock not even that.
    let profile = profile(&device);
    let door = profile.enrolled.door_key.clone();
    let stranger = Stranger::facing((own, port).into()).await;
    for datagram in first_flight(crypto(&profile, None, &[ALPN_TUNNEL]), &DoorKey::generate().knock()).await {
        stranger.send(&datagram).await;
    }
    assert_served(&up).await;
    stranger.assert_heard_nothing("a stranger on a named network").await;
    let knock = Stranger::facing((own, port).into()).await;
    for datagram in first_flight(crypto(&profile, None, &[ALPN_TUNNEL]), &door.knock()).await {
        knock.send(&datagram).await;
    }
    let mut answer = [0; 2048];
    let n = tokio::time::timeout(SOON, knock.socket.recv(&mut answer)).await.expect("an answer").expect("received");
    assert_eq!(answer[0] & 0xf0, 0xf0, "a Retry (RFC 9000 section 17.2.5)");
    assert!(n < 1200, "smaller than what asked for it: {n}");
}

#[tokio::test]
async fn an_aditd_that_nobody_can_enroll_at_still_hears_its_devices() {
    // No open invitation, no enrollment door: the used one's secret opens nothing once it has ended.
    let gate = Gate::start().await;
    let invited = gate.world.aditd(&["invite", "guest", "--ttl", "1s"]).await;
    let invitation: Invitation = invited.stdout.parse().expect("a code");
    let give_up = std::time::Instant::now() + SOON;
    while unix_now() < invitation.expires {
        assert!(std::time::Instant::now() < give_up, "the clock stands still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let up = gate.device.up(&[]).await;
    let knocks = first_flight(crypto(&gate.profile, None, &[ALPN_ENROLL]), &invitation.secret.door_key().knock()).await;
    assert_no_answer("the knock of an invitation that has ended", &gate, &up, &knocks).await;
}
