//! Which packets are answered: those with the knock of an enrolled device, and never copies of
//! them.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use client::{dial, profile::Profile};
use common::transport::frame;
use data_encoding::BASE64;
use proto::{
    knock::KnockKey,
    wire::{ALPN_TUNNEL, EnrollAnswer, EnrollRefusal, Greeting, IDLE_TIMEOUT, SERVER_NAME},
};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use serde_json::{Value, json};
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    credentials::{at_enrollment, csr, new_key, parse},
    path::Path,
    skip,
    state_files::{identity_file, profile, store, stored},
    stranger::{Gate, Stranger, assert_served, crypto, first_flight},
    world::{Device, SOON, Up, World},
};
use tokio::{net::UdpSocket, task::JoinSet};

use super::listening::own_address;
use crate::PROGRAM;

/// How long a test waits for an answer that must not come, after the server has handled all
/// packets.
const QUIET: Duration = Duration::from_millis(300);

async fn flight(profile: &Profile, key: &KnockKey) -> Vec<Vec<u8>> {
    first_flight(crypto(profile, None, &[ALPN_TUNNEL]), &key.knock()).await
}

async fn assert_silence(what: &str, gate: &Gate, up: &Up, datagrams: &[Vec<u8>]) {
    let stranger = Stranger::facing(gate.address).await;
    for datagram in datagrams {
        stranger.send(datagram).await;
    }
    assert_served(up).await;
    stranger.assert_heard_nothing(what).await;
}

/// Asserts that these datagrams are answered.
async fn assert_answered(gate: &Gate, datagrams: &[Vec<u8>]) -> Stranger {
    let stranger = Stranger::facing(gate.address).await;
    for datagram in datagrams {
        stranger.send(datagram).await;
    }
    let answered = tokio::time::timeout(SOON, stranger.socket.recv(&mut [0; 2048])).await;
    assert!(answered.expect("an answer").expect("received") > 0);
    stranger
}

/// A packet with a short header and a connection ID of 8 bytes (RFC 9000 section 17.3). `adit` also
/// sends a single byte, to get the kernel's error for an address.
fn is_short(datagram: &[u8]) -> bool {
    datagram.len() > 9 && datagram[0] & 0x80 == 0
}

#[tokio::test]
async fn packets_of_a_revoked_or_forgotten_device_are_not_answered() {
    let gate = Gate::start(PROGRAM).await;
    let up = gate.device.up(&[]).await;
    let other = profile(&gate.world.device("other").await);
    let key = &other.enrolled.knock_key;
    assert!(*key != gate.knock_key(), "each has its own");
    drop(assert_answered(&gate, &flight(&other, key).await).await);
    for command in ["revoke", "forget"] {
        assert_ok(&gate.world.aditd(&["device", command, "other"]).await);
        assert_silence(command, &gate, &up, &flight(&other, key).await).await;
    }
}

#[tokio::test]
async fn unfinished_handshakes_of_one_device_do_not_keep_others_out() {
    let gate = Gate::start(PROGRAM).await;
    let greedy = profile(&gate.world.device("greedy").await);
    let mut strangers = Vec::new();
    // More than all handshakes that may be under way.
    for _ in 0..80 {
        let half = flight(&greedy, &greedy.enrolled.knock_key).await.remove(0);
        let stranger = Stranger::facing(gate.address).await;
        stranger.send(&half).await;
        strangers.push(stranger);
    }
    // A half handshake lasts ten seconds: with these, all slots would always be taken.
    let (mut flood, address) = (JoinSet::new(), gate.address);
    flood.spawn(async move {
        loop {
            let half = flight(&greedy, &greedy.enrolled.knock_key).await.remove(0);
            let stranger = Stranger::facing(address).await;
            stranger.send(&half).await;
            strangers.push(stranger);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    gate.world.device("newcomer").await;
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    assert!(flood.try_join_next().is_none(), "the flood has ended");
}

#[tokio::test]
async fn a_copied_knock_is_not_answered() {
    let gate = Gate::start(PROGRAM).await;
    let up = gate.device.up(&[]).await;
    let flight = flight(&gate.profile, &gate.knock_key()).await;
    let client = assert_answered(&gate, &flight).await;
    assert_silence("a copy of a first flight", &gate, &up, &flight).await;
    let repeated: Vec<_> = (0..200).flat_map(|_| flight.clone()).collect();
    assert_silence("many copies", &gate, &up, &repeated).await;
    drop(client);
}

/// A device whose packets are recorded. It does not use loopback, so it has to prove its address.
/// And sockets of the recorder.
struct Recorded {
    world: World,
    path: Path,
    /// How many datagrams were sent for the enrollment.
    enrolling: usize,
    up: Up,
    server: SocketAddr,
    own: IpAddr,
}

impl Recorded {
    async fn start() -> Option<Self> {
        let Some(own) = own_address() else {
            skip::skip_test("this machine has no address besides loopback");
            return None;
        };
        let mut world = World::start_with(
            PROGRAM,
            Default::default(),
            &["--listen", "0.0.0.0:0", "--allow-from", &format!("{own}/32")],
        )
        .await;
        let server = SocketAddr::from((own, world.address().await.port()));
        let path = Path::between(([127, 0, 0, 1], 0).into(), own.into(), server).await;
        let at = world.serve_flags.iter().position(|flag| flag == "0.0.0.0:0").expect("a flag");
        world.serve_flags[at] = format!("0.0.0.0:{}", server.port());
        world.serve_flags.extend(["--advertise".to_owned(), path.address.to_string()]);
        world.kill_server().await;
        world.restart_server().await;
        let device = world.device("laptop").await;
        let enrolling = path.recorded().len();
        let up = device.up(&[]).await;
        Some(Self { world, path, enrolling, up, server, own: own.into() })
    }

    /// All datagrams of the device's session.
    fn datagrams(&self) -> Vec<Vec<u8>> {
        let mut sent = self.path.recorded().split_off(self.enrolling);
        // The single byte by which the client gets the kernel's error is not a QUIC packet.
        sent.retain(|datagram| datagram.len() > 1);
        sent
    }

    /// Sends these from a socket of the recorder; returns how many answers come, and their bytes.
    async fn answers(&self, datagrams: &[Vec<u8>], rounds: usize) -> (usize, usize) {
        let socket = UdpSocket::bind((self.own, 0)).await.expect("a port");
        socket.connect(self.server).await.expect("connected");
        for _ in 0..rounds {
            for datagram in datagrams {
                let _ = socket.send(datagram).await;
            }
            // The server has handled them before it answers this.
            self.world.status().await;
        }
        let (mut count, mut bytes, mut answer) = (0, 0, [0; 2048]);
        while let Ok(Ok(n)) = tokio::time::timeout(QUIET, socket.recv(&mut answer)).await {
            (count, bytes) = (count + 1, bytes + n);
        }
        (count, bytes)
    }
}

#[tokio::test]
async fn recorded_packets_of_a_session_are_not_answered_during_it_or_after_it() {
    let Some(mut recorded) = Recorded::start().await else { return };
    let all = recorded.datagrams();
    let initials = all.iter().filter(|datagram| datagram[0] & 0xb0 == 0x80).count();
    assert!(initials >= 3, "the knock, and what follows the Retry: {initials}");
    assert_eq!(recorded.answers(&all, 3).await, (0, 0), "of a session that runs");
    assert!(recorded.up.adit.log().matches("connected to").count() == 1, "it goes on");

    recorded.up.adit.signal("TERM");
    assert!(recorded.up.adit.ended().await.expect("its end").success());
    let (count, _) = recorded.answers(&all, 50).await;
    let ids: HashSet<_> = all.iter().filter(|d| is_short(d)).map(|d| d[1..9].to_vec()).collect();
    assert!(
        count <= 8 * ids.len(),
        "{count} answers to {} packets, {} ids",
        50 * all.len(),
        ids.len()
    );
}

#[tokio::test]
async fn after_a_restart_recorded_packets_get_few_resets_and_the_device_learns_of_it_at_once() {
    let Some(mut recorded) = Recorded::start().await else { return };
    let all = recorded.datagrams();
    recorded.world.kill_server().await;
    recorded.world.restart_server().await;
    recorded.up.adit.says("the server was restarted").await;
    let short: Vec<_> = all.iter().filter(|d| is_short(d)).cloned().collect();
    let ids: HashSet<_> = short.iter().map(|d| d[1..9].to_vec()).collect();
    let (count, bytes) = recorded.answers(&short, 100).await;
    assert!(count <= 8 * ids.len(), "{count} resets for {} ids", ids.len());
    let recorded: usize = short.iter().map(Vec::len).max().expect("a packet");
    assert!(bytes <= count * recorded, "{bytes} bytes in {count} answers");
}

/// Gives a device and the server the state of a version without own knock keys.
fn take_back_in_time(world: &World, device: &Device) -> KnockKey {
    let keys = std::fs::read(world.state().join("endpoint.json")).expect("keys");
    let keys: Value = serde_json::from_slice(&keys).expect("JSON");
    let mut identity = stored(device);
    identity["door_key"] = keys["door"].clone();
    identity["schema"] = json!(1);
    store(device, &identity);
    let id = identity["device_id"].as_str().expect("an id");
    register(world)
        .execute("UPDATE device SET shared_since = unixepoch(), own_knock = 0 WHERE id = ?1", [id])
        .expect("set back");
    serde_json::from_value(keys["door"].clone()).expect("a key")
}

fn register(world: &World) -> rusqlite::Connection {
    let register =
        rusqlite::Connection::open(world.state().join("register.sqlite")).expect("opened");
    register.busy_timeout(SOON).expect("set");
    register
}

#[tokio::test]
async fn a_device_of_an_earlier_version_connects_and_gets_a_knock_key_of_its_own() {
    let gate = Gate::start(PROGRAM).await;
    let shared = take_back_in_time(&gate.world, &gate.device);
    let own = gate.knock_key();
    // The server finds changes by other processes itself.
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    assert!(profile(&gate.device).enrolled.knock_key == own, "its own again");
    drop(assert_answered(&gate, &flight(&gate.profile, &shared).await).await);
    up.end().await;

    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    let waits = || {
        register(&gate.world)
            .query_row("SELECT count(*) FROM device WHERE NOT own_knock", [], |row| {
                row.get::<_, i64>(0)
            })
            .expect("read")
    };
    tokio::time::timeout(SOON, async {
        while waits() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is noted");
    gate.world.aditd(&["device", "role", "laptop", "admin"]).await;
    assert_silence("the shared knock", &gate, &up, &flight(&gate.profile, &shared).await).await;
}

#[tokio::test]
async fn the_shared_knock_of_an_earlier_version_ends_when_a_device_that_knows_it_is_revoked() {
    let gate = Gate::start(PROGRAM).await;
    let (other, late) = (gate.world.device("other").await, gate.world.device("late").await);
    for device in [&other, &late] {
        take_back_in_time(&gate.world, device);
    }
    let shared = take_back_in_time(&gate.world, &gate.device);
    let up = gate.device.up(&[]).await;
    assert_ok(&gate.world.aditd(&["device", "revoke", "other"]).await);
    assert_silence("the shared knock", &gate, &up, &flight(&gate.profile, &shared).await).await;
    up.end().await;
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;
    // A device that was away has to enroll again.
    let mut away = late.start(&[]).await;
    away.adit.says("no tunnel: no answer").await;
}

#[tokio::test]
async fn an_older_adit_that_could_not_connect_is_not_enrolled() {
    let world = World::start(PROGRAM).await;
    let invitation = parse(&world.invite("laptop").await);
    let connection = at_enrollment(&invitation).await;
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let request = json!({
        "token": BASE64.encode(&*invitation.secret.token()),
        "csr": BASE64.encode(&csr(&new_key())),
    });
    frame::write(&mut send, &request).await.expect("sent");
    let answer = tokio::time::timeout(SOON, frame::read(&mut recv)).await.expect("in time");
    assert!(matches!(answer, Ok(EnrollAnswer::Refused(EnrollRefusal::BadRequest))), "{answer:?}");
}

#[tokio::test]
async fn a_profile_with_a_damaged_knock_key_is_reported() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut identity = stored(&device);
    identity["door_key"] = json!(BASE64.encode(&[1; 67]));
    store(&device, &identity);
    let told = device.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_told(
        &told,
        FAILED,
        &["32 or 68 bytes", identity_file(&device).to_str().expect("a path")],
    );
}

/// A session of this device that accepts only few bytes of a stream before it reads them.
async fn narrow_session(gate: &Gate) -> (Connection, SendStream, RecvStream) {
    let identity = gate.profile.certified_key().expect("an identity");
    let crypto = crypto(&gate.profile, Some(identity), &[ALPN_TUNNEL]);
    let mut config = dial::config(crypto, &gate.knock_key(), IDLE_TIMEOUT).quic;
    let mut narrow = quinn::TransportConfig::default();
    narrow
        .stream_receive_window(VarInt::from_u32(2048))
        .keep_alive_interval(Some(Duration::from_secs(1)));
    config.transport_config(Arc::new(narrow));
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("an endpoint");
    let connecting =
        endpoint.connect_with(config, gate.address, SERVER_NAME).expect("a connection begins");
    let connection = tokio::time::timeout(SOON, connecting).await.expect("in time").expect("in");
    let mut probes = connection.open_uni().await.expect("a stream");
    frame::write(
        &mut probes,
        &Greeting { version: "flood".to_owned(), epoch: None, follows_ca: true },
    )
    .await
    .expect("greeted");
    let notices = connection.accept_uni().await.expect("a hello");
    (connection, probes, notices)
}

#[tokio::test]
async fn a_device_that_floods_probes_does_not_delay_the_servers_stop() {
    let mut gate = Gate::start(PROGRAM).await;
    let (connection, mut probes, _notices) = narrow_session(&gate).await;
    let answers = || connection.stats().frame_rx.stream;
    let stalled = async {
        let mut unanswered = 0;
        while unanswered < 5 || answers() < 100 {
            let before = answers();
            // The answers fill the window: in the end there is no room for another.
            let _ = probes.write_all(&[0]).await;
            let until = Instant::now() + QUIET;
            while answers() == before && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            unanswered = if answers() == before { unanswered + 1 } else { 0 };
        }
    };
    tokio::time::timeout(SOON, stalled).await.expect("the server is stopped in its answers");
    gate.world.aditd.signal("TERM");
    assert!(gate.world.aditd.ended().await.expect("its end").success());
    let log = gate.world.aditd.log();
    assert!(!log.contains("cutting what still runs"), "the drain lasted to its end: {log}");
}

#[tokio::test]
async fn an_unfinished_handshake_does_not_delay_the_servers_stop() {
    let mut gate = Gate::start(PROGRAM).await;
    let invitation = parse(&gate.world.invite("guest").await);
    let half = flight(&gate.profile, &gate.knock_key()).await.remove(0);
    let stranger = Stranger::facing(gate.address).await;
    stranger.send(&half).await;
    let silent_guest = at_enrollment(&invitation).await;
    let identity = gate.profile.certified_key().expect("an identity");
    let crypto = crypto(&gate.profile, Some(identity), &[ALPN_TUNNEL]);
    let config = dial::config(crypto, &gate.knock_key(), IDLE_TIMEOUT);
    let dialed = dial::dial(&config, &[gate.address.to_string()], None).await.expect("connected");
    gate.world.status().await;

    gate.world.aditd.signal("TERM");
    assert!(gate.world.aditd.ended().await.expect("its end").success());
    let log = gate.world.aditd.log();
    assert!(!log.contains("took too long"), "it waited for a handshake: {log}");
    drop((silent_guest, dialed));
}
