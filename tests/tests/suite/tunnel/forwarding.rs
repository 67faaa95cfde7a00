//! What passes through the tunnel, and that it passes unchanged.

use std::{io::Read, net::SocketAddr, time::Duration};

use tests::{
    ollama::{Options, seeded_bytes},
    raw::{self, Ending, Upstream},
    timing::usual_or_long,
    world::{SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::PROGRAM;

const MB: u64 = 1_000_000;

/// A world whose service is the test itself.
async fn world_of(upstream: &Upstream, kind: &str) -> World {
    World::in_front_of(PROGRAM, &upstream.flag(kind)).await
}

fn fast() -> Options {
    Options { token_interval: Duration::from_millis(2), ..Options::default() }
}

#[tokio::test]
async fn answers_are_the_same_through_the_tunnel_and_without_it() {
    let world = World::start_with(PROGRAM, fast(), &[]).await;
    let up = world.up("laptop").await;
    let get = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost:11434\r\nConnection: close\r\n\r\n")
    };
    let requests = [
        get("/"),
        "HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        get("/api/version"),
        get("/api/tags"),
        get("/no/such/route"),
        get("/api/generate"),
        raw::generate(12, 7),
        raw::post(
            "/api/chat",
            r#"{"model":"stand-in:latest","messages":[{"role":"user","content":"hi"}],"options":{"num_predict":9,"seed":3}}"#,
        ),
        raw::post(
            "/api/generate",
            r#"{"model":"stand-in:latest","prompt":"x","stream":false,"options":{"num_predict":5,"seed":1}}"#,
        ),
        raw::post(
            "/v1/chat/completions",
            r#"{"model":"stand-in:latest","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":6,"seed":2}"#,
        ),
        raw::post("/api/generate", r#"{"model":"absent"}"#),
        raw::post("/api/generate", "{"),
        // Two on one connection, sent at once.
        format!("{}{}", get("/").replace("close", "keep-alive"), get("/api/version")),
    ];
    for request in requests {
        let direct = raw::exchange(world.ollama.addr(), &request).await;
        let tunnelled = raw::exchange(up.address, &request).await;
        assert!(!direct.is_empty(), "{request}");
        assert_eq!(raw::without_date(&tunnelled), raw::without_date(&direct), "{request}");
    }
}

#[tokio::test]
async fn localhost_listens_on_ipv4_and_ipv6() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut adit = world
        .programs
        .start(
            "adit",
            &["up", "--listen", "localhost:0", "--state-dir", device.dir.to_str().expect("a path")],
        )
        .expect("adit starts");
    adit.ready().await.expect("ready");
    let status = device.status().await;
    let listening = status["listening"].as_array().expect("addresses");
    let addresses: Vec<SocketAddr> = listening
        .iter()
        .map(|a| a.as_str().and_then(|a| a.parse().ok()).expect("an address"))
        .collect();
    let v6 = std::net::UdpSocket::bind("[::1]:0").is_ok();
    assert_eq!(addresses.len(), if v6 { 2 } else { 1 });
    for address in addresses {
        let answer = raw::exchange(address, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("Ollama is running"), "{address}: {answer}");
    }
}

#[tokio::test]
async fn a_service_may_send_first() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream, "tcp").await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    let mut service = upstream.accept().await;
    service.write_all(b"220 hello\r\n").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut app, 11).await, b"220 hello\r\n");
}

#[tokio::test]
async fn each_byte_passes_at_once_in_both_directions() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream, "tcp").await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    let mut service = upstream.accept().await;
    for i in 0..200u8 {
        app.write_all(&[i]).await.expect("sent");
        assert_eq!(raw::read_exactly(&mut service, 1).await, [i]);
        service.write_all(&[!i]).await.expect("sent");
        assert_eq!(raw::read_exactly(&mut app, 1).await, [!i]);
    }
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream, "tcp").await;
    let up = world.up("laptop").await;

    let mut app = raw::connect(up.address).await;
    let mut service = upstream.accept().await;
    app.write_all(b"question").await.expect("sent");
    app.shutdown().await.expect("half-closed");
    assert_eq!(raw::read_to_end(&mut service).await, (b"question".to_vec(), Ending::Closed));
    service.write_all(b"answer").await.expect("sent");
    drop(service);
    assert_eq!(raw::read_to_end(&mut app).await, (b"answer".to_vec(), Ending::Closed));

    let mut app = raw::connect(up.address).await;
    let mut service = upstream.accept().await;
    service.write_all(b"greeting").await.expect("sent");
    service.shutdown().await.expect("half-closed");
    assert_eq!(raw::read_to_end(&mut app).await, (b"greeting".to_vec(), Ending::Closed));
    app.write_all(b"still talking").await.expect("sent");
    drop(app);
    assert_eq!(raw::read_to_end(&mut service).await, (b"still talking".to_vec(), Ending::Closed));
}

#[tokio::test]
async fn two_hundred_and_fifty_six_parallel_answers_are_not_mixed_up() {
    let world = World::start_with(PROGRAM, fast(), &[]).await;
    let up = world.up("laptop").await;
    let mut streams = JoinSet::new();
    for seed in 0..256 {
        let address = up.address;
        streams
            .spawn(async move { (seed, raw::exchange(address, &raw::generate(20, seed)).await) });
    }
    let mut seen = 0;
    while let Some(answer) = streams.join_next().await {
        let (seed, answer) = answer.expect("an answer");
        let direct = raw::exchange(world.ollama.addr(), &raw::generate(20, seed)).await;
        assert_eq!(raw::without_date(&answer), raw::without_date(&direct), "seed {seed}");
        seen += 1;
    }
    assert_eq!((seen, world.ollama.counters().cancelled), (256, 0));
}

#[tokio::test]
async fn hundreds_of_megabytes_pass_unchanged_in_each_direction() {
    let size = usual_or_long(200, 1000) * MB;
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let mut expected = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut block = vec![0; MB as usize];
    let mut source = seeded_bytes(5);
    for _ in 0..size / MB {
        source.read_exact(&mut block).expect("endless");
        expected.update(&block);
    }
    let expected = expected.finish();

    let mut app = raw::connect(up.address).await;
    app.write_all(format!("GET /test/bytes?n={size}&seed=5 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(app.read_u8().await.expect("a head"));
    }
    let (mut got, mut hash) = (0, aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256));
    loop {
        let n =
            tokio::time::timeout(SOON, app.read(&mut block)).await.expect("goes on").expect("read");
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
        got += n as u64;
    }
    assert_eq!(got, size);
    assert_eq!(hash.finish().as_ref(), expected.as_ref());

    let mut app = raw::connect(up.address).await;
    let head = format!(
        "POST /test/sha256 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    );
    app.write_all(head.as_bytes()).await.expect("sent");
    let mut source = seeded_bytes(5);
    for _ in 0..size / MB {
        source.read_exact(&mut block).expect("endless");
        tokio::time::timeout(SOON, app.write_all(&block)).await.expect("goes on").expect("sent");
    }
    let (answer, _) = raw::read_to_end(&mut app).await;
    let answer = String::from_utf8(answer).expect("text");
    let hex: String = expected.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert!(answer.contains(&hex) && answer.contains(&size.to_string()), "{answer}");
}

/// Writes until nothing was accepted for a second; returns the number of bytes.
async fn write_until_blocked(tcp: &mut tokio::net::TcpStream) -> u64 {
    let block = vec![7; 64 * 1024];
    let mut written = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(1), tcp.write(&block)).await {
            Ok(n) => written += n.expect("written") as u64,
            Err(_) => return written,
        }
        assert!(written < 500 * MB, "nothing holds the writer back");
    }
}

async fn read_some(tcp: &mut tokio::net::TcpStream, bytes: u64) {
    let mut block = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let n =
            tokio::time::timeout(SOON, tcp.read(&mut block)).await.expect("goes on").expect("read")
                as u64;
        assert!(n > 0, "it ended");
        left = left.saturating_sub(n);
    }
}

#[tokio::test]
async fn a_reader_that_stops_blocks_only_its_own_writer() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream, "tcp").await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    let mut service = upstream.accept().await;

    let down = write_until_blocked(&mut service).await;
    let mut other_app = raw::connect(up.address).await;
    let mut other_service = upstream.accept().await;
    other_app.write_all(b"ping").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut other_service, 4).await, b"ping");
    other_service.write_all(b"pong").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut other_app, 4).await, b"pong");

    read_some(&mut app, down).await;
    service.write_all(b"x").await.expect("it goes on");

    let sent = write_until_blocked(&mut app).await;
    other_app.write_all(b"ping").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut other_service, 4).await, b"ping");
    read_some(&mut service, sent).await;
    app.write_all(b"x").await.expect("it goes on");
}
