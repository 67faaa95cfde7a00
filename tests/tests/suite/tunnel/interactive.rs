//! Prompts and tokens beside bulk data that waits in the sender.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::transport::{
    self, LONGEST_DATAGRAM,
    carrier::{PacketRepeats, ProtectedPath, Protection, RepeatingSocket, SystemSocket},
    credit::Credit,
    splice::{Receiving, Sending},
    tls,
};
use quinn::{Connection, Endpoint, TokioRuntime, crypto::rustls as quic};
use rustls::version::TLS13;
use tests::{path::Path, world::SOON};
use tokio::task::JoinSet;

const HOST: &str = "localhost";
const STREAMS: usize = 12;
const BEFORE: &[u8] = b"before";
const PROMPT: [u8; 3000] = [1; 3000];
/// A write that takes longer has to wait.
const WAITS: Duration = Duration::from_millis(300);

/// One connection: both ends of it, with their endpoints, the path between them, and what the first
/// end sends twice.
struct Connected {
    path: Path,
    ends: [(Endpoint, Connection); 2],
    repeats: Arc<PacketRepeats>,
}

async fn connection() -> Connected {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("a certificate");
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .and_then(|config| {
            config.with_no_client_auth().with_single_cert(vec![certificate.clone()], key)
        })
        .expect("a configuration");
    let client = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .expect("a configuration")
        .with_root_certificates(tls::roots(certificate).expect("a certificate"))
        .with_no_client_auth();
    let settings = |streams| transport::settings(streams, 4 * SOON, LONGEST_DATAGRAM);

    let crypto = quic::QuicServerConfig::try_from(server).expect("QUIC's cipher");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(settings(64));
    let here = SocketAddr::from(([127, 0, 0, 1], 0));
    let far = Endpoint::server(config, here).expect("an endpoint");
    let path = Path::to(far.local_addr().expect("an address")).await;

    let crypto = quic::QuicClientConfig::try_from(client).expect("QUIC's cipher");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(settings(0));
    let repeats = Arc::<PacketRepeats>::default();
    let socket = SystemSocket::new(transport::any_socket(here).expect("a port")).expect("a socket");
    let socket = Arc::new(RepeatingSocket::new(socket, repeats.clone()));
    let (settings, runtime) = (transport::endpoint(LONGEST_DATAGRAM), Arc::new(TokioRuntime));
    let near = Endpoint::new_with_abstract_socket(settings, None, socket, runtime);
    let near = near.expect("an endpoint");
    let connecting = near.connect_with(config, path.address, HOST).expect("a connection begins");
    let accepting = async { far.accept().await.expect("it is open").await };
    let (here, there) = tokio::join!(connecting, accepting);
    let ends = [(near, here.expect("connected")), (far, there.expect("connected"))];
    Connected { path, ends, repeats }
}

/// Writes until it would have to wait. Returns how much it has written.
async fn fill(sending: &mut Sending) -> usize {
    let mut written = 0;
    while let Ok(n) = tokio::time::timeout(WAITS, sending.write(&[7; 64 << 10])).await {
        written += n.expect("the stream is open");
    }
    written
}

#[tokio::test]
async fn a_prompt_does_not_wait_behind_bulk_data_that_fills_the_send_window() {
    let Connected { path, ends: [(_near, near), (_far, far)], .. } = connection().await;
    let (credit, far_credit) = (Credit::new(&near), Credit::new(&far));
    let mut tasks = JoinSet::new();
    for credit in [credit.clone(), far_credit.clone()] {
        tasks.spawn(async move { credit.exchange().await });
    }
    let (send, _answer) = near.open_bi().await.expect("a stream");
    let mut prompt = Sending::within(send, &credit);
    prompt.write_all(BEFORE).await.expect("sent");
    let (_reply, recv) = far.accept_bi().await.expect("a stream");
    let mut arriving = Receiving::new(recv, &far_credit);
    arriving.read_exact(&mut [0; BEFORE.len()]).await.expect("received");

    // Nothing arrives any more, so nothing that is written leaves the send window.
    path.cut();
    let (mut bulk, mut written) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS {
        let (send, recv) = near.open_bi().await.expect("a stream");
        let mut sending = Sending::within(send, &credit);
        written.push(fill(&mut sending).await);
        bulk.push((sending, recv));
    }
    let all: usize = written.iter().sum();
    assert_eq!(written[STREAMS - 1], 0, "the send window is not full: {written:?}");
    for _ in 0..5 {
        let sent = tokio::time::timeout(SOON, prompt.write_all(&PROMPT)).await;
        sent.expect("there is room for a prompt").expect("the stream is open");
    }

    path.mend();
    let read = Arc::<AtomicUsize>::default();
    let counted = read.clone();
    tasks.spawn(async move {
        let mut readers = JoinSet::new();
        while let Ok((_, recv)) = far.accept_bi().await {
            let mut arriving = Receiving::new(recv, &far_credit);
            let counted = counted.clone();
            readers.spawn(async move {
                while let Ok(Some(chunk)) = arriving.read_chunk(1 << 16).await {
                    counted.fetch_add(chunk.len(), Relaxed);
                }
            });
        }
    });
    let mut whole = [0; PROMPT.len()];
    let received = tokio::time::timeout(4 * SOON, arriving.read_exact(&mut whole)).await;
    received.expect("in time").expect("received");
    let ahead = read.load(Relaxed);
    assert_eq!(whole, PROMPT);
    assert!(ahead < all / 2, "{ahead} of {all} bytes of bulk data arrived before the prompt");
}

const TOKENS: usize = 2_000;
const TOKEN: usize = 60;

/// The bytes of a token stream.
fn token_bytes(stream: u8) -> Vec<u8> {
    (0..TOKENS * TOKEN).map(|i| (i as u8).wrapping_mul(31) ^ stream).collect()
}

#[tokio::test]
async fn copies_bring_tokens_before_the_stream_does_and_no_byte_twice() {
    let Connected { path, ends: [(_near, near), (_far, far)], repeats } = connection().await;
    let (credit, far_credit) = (Credit::new(&near), Credit::new(&far));
    let mut tasks = JoinSet::new();
    for credit in [credit.clone(), far_credit.clone()] {
        tasks.spawn(async move { credit.exchange().await });
    }
    // The path is so short that QUIC itself mends a loss within a millisecond: a copy has to be sooner.
    let (after, round_trip) = (Duration::ZERO, Duration::from_millis(50));
    let protection = Protection { after, round_trip, budget: 100_000_000, loss: 0.2 };
    let interactive = credit.interactive().clone();
    let protected = ProtectedPath { to: path.address, protection, interactive };
    repeats.protect(Instant::now(), &[protected]);
    path.lose(20);

    let (bulk, _back) = near.open_bi().await.expect("a stream");
    let mut bulk = Sending::within(bulk, &credit);
    tasks.spawn(async move { while bulk.write(&[0xff; 64 << 10]).await.is_ok() {} });
    let mut tokens = JoinSet::new();
    for stream in 0..4 {
        let (send, _back) = near.open_bi().await.expect("a stream");
        let mut send = Sending::within(send, &credit);
        tokens.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(1));
            for token in token_bytes(stream).chunks(TOKEN) {
                ticks.tick().await;
                send.write_all(token).await.expect("sent");
            }
            send.finish();
            send.acknowledged().await;
            _back
        });
    }
    let mut arrived = JoinSet::new();
    let all = async {
        let mut whole = Vec::new();
        for _ in 0..5 {
            let (_, recv) = far.accept_bi().await.expect("a stream");
            let mut recv = Receiving::new(recv, &far_credit);
            arrived.spawn(async move {
                let mut all = Vec::new();
                let mut chunks = [const { Bytes::new() }; 4];
                while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
                    chunks[..count].iter().for_each(|chunk| all.extend_from_slice(chunk));
                    if all.first() == Some(&0xff) {
                        all.truncate(1);
                    }
                }
                all
            });
        }
        // The bulk data has no end.
        for _ in 0..4 {
            whole.push(arrived.join_next().await.expect("a stream").expect("no panic"));
        }
        whole
    };
    let mut whole = tokio::time::timeout(10 * SOON, all).await.expect("in time");
    whole.sort_by_key(|all| all[0]);
    for (stream, all) in whole.iter().enumerate() {
        assert!(*all == token_bytes(stream as u8), "stream {stream}: {} bytes", all.len());
    }
    assert!(repeats.repeated().datagrams > 0, "nothing was sent again");
    assert!(far_credit.read_early() > 0, "every copy came later than its stream");
    tokens.join_all().await;
}
