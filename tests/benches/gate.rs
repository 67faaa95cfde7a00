//! Measures the cost of the gate: the same service as `tcp` and as `http`, alternately, in the same
//! run.
//!
//! `cargo bench -p adit-tests --bench gate`. Absolute numbers depend on the machine; the
//! differences count.

#![allow(missing_docs)]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tests::{
    ollama::Options,
    raw::{self, Upstream},
    world::World,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
// Many short rounds, so that other load on the machine affects all alike.
const ROUNDS: usize = 60;
const REQUESTS: usize = 100;
const TOKENS: usize = 40;
const TOKEN_PERIOD: Duration = Duration::from_millis(3);
const TOKEN: usize = 150;
const GET: &[u8] = b"GET /api/version HTTP/1.1\r\nHost: localhost:11434\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"version\":\"0.33.0\"}";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let upstream = Arc::new(Upstream::start().await);
    let direct: SocketAddr =
        upstream.flag("tcp").trim_start_matches("tcp://").parse().expect("an address");
    let of = async |kind: &str| {
        World::start_with(PROGRAM, Options::default(), &["--upstream", &upstream.flag(kind)]).await
    };
    let (tcp, http) = (of("tcp").await, of("http").await);
    let began = Instant::now();
    let serving = upstream.clone();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok(tcp) = serving.try_accept().await {
            connections.spawn(serve(tcp, began));
        }
    });
    let (of_tcp, of_http) = (tcp.up("bench").await, http.up("bench").await);
    let mut samples: [[Vec<f64>; 2]; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (way, to) in [direct, of_tcp.address, of_http.address].into_iter().enumerate() {
            samples[way][0].extend(requests(to).await);
            samples[way][1].extend(tokens(to, began).await);
        }
    }
    println!("{:<40} {:>10} {:>10} {:>10} {:>10}", "µs", "direct", "tcp", "http", "the gate");
    for (what, at) in [("small request, kept connection", 0), ("a token's lateness", 1)] {
        for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
            let [direct, tcp, http] = [0, 1, 2].map(|way| quantile(&mut samples[way][at], q));
            println!(
                "{:<40} {direct:>10.1} {tcp:>10.1} {http:>10.1} {:>+10.1}",
                format!("{what}, {name}"),
                http - tcp
            );
        }
    }
}

fn quantile(samples: &mut [f64], q: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * q) as usize]
}

/// Answers each request; a generation is answered with tokens that have their time in them.
async fn serve(mut tcp: TcpStream, began: Instant) {
    let mut block = [0; 4096];
    while let Ok(n @ 1..) = tcp.read(&mut block).await {
        if !block[..n].starts_with(b"POST") {
            let _ = tcp.write_all(ANSWER).await;
            continue;
        }
        let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let mut ticks = tokio::time::interval(TOKEN_PERIOD);
        for _ in 0..TOKENS {
            ticks.tick().await;
            let token = format!("{TOKEN:x}\r\n{:<TOKEN$}\r\n", began.elapsed().as_nanos());
            if tcp.write_all(token.as_bytes()).await.is_err() {
                return;
            }
        }
        let _ = tcp.write_all(b"0\r\n\r\n").await;
    }
}

async fn requests(to: SocketAddr) -> Vec<f64> {
    let mut tcp = raw::connect(to).await;
    let mut answer = vec![0; ANSWER.len()];
    let mut all = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let sent = Instant::now();
        tcp.write_all(GET).await.expect("sent");
        tcp.read_exact(&mut answer).await.expect("answered");
        all.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    all
}

async fn tokens(to: SocketAddr, began: Instant) -> Vec<f64> {
    let mut tcp = raw::connect(to).await;
    tcp.write_all(raw::post("/api/generate", "{\"model\":\"x\"}").as_bytes()).await.expect("sent");
    raw::read_exactly(&mut tcp, 47).await;
    let mut all = Vec::with_capacity(TOKENS);
    for _ in 0..TOKENS {
        let token = raw::read_exactly(&mut tcp, TOKEN + 6).await;
        let made: u128 = String::from_utf8_lossy(&token[4..])
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a time");
        all.push(began.elapsed().as_nanos().saturating_sub(made) as f64 / 1e3);
    }
    all
}
