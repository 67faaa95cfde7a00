//! What the tunnel costs: every row measured direct and through real `aditd` and `adit` processes, in turn, in the same run.
//!
//! `cargo bench -p adit-tests --bench tunnel`. Absolute figures belong to the machine; the differences and ratios are what counts.

#![allow(missing_docs)]

use std::{
    net::SocketAddr,
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
const ROUNDS: usize = 3;
const TRANSFER: Duration = Duration::from_secs(2);
const TOKENS: u32 = 100;
const TOKEN_PERIOD: Duration = Duration::from_millis(20);
const TOKEN_SIZE: usize = 150;
const IDLE: usize = 1000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    common::process::raise_descriptor_limit();
    let upstream = Upstream::start().await;
    let direct: SocketAddr = upstream.flag("tcp").trim_start_matches("tcp://").parse().expect("an address");
    let world = World::start_with(PROGRAM, Options::default(), &["--upstream", &upstream.flag("tcp")]).await;
    tokio::spawn(serve(upstream));
    let up = world.up("bench").await;
    let ways = [("direct", direct), ("adit", up.address)];

    println!("{:<44} {:>12} {:>12} {:>12}", "", "direct", "adit", "");
    let mut kept = Pair::default();
    let mut fresh = Pair::default();
    let (mut few, mut many) = (Pair::default(), Pair::default());
    let (mut down, mut upload) = (Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        for (i, (_, to)) in ways.iter().enumerate() {
            kept.0[i].extend(requests(*to, 2000).await);
            fresh.0[i].extend(connections(*to, 500).await);
            few.0[i].extend(tokens(*to, 16).await);
            many.0[i].extend(tokens(*to, 256).await);
            down.0[i].push(download(*to).await);
            upload.0[i].push(uploaded(*to).await);
        }
    }
    kept.print("small request, kept connection", "µs");
    fresh.print("new connection and request", "µs");
    few.print("token lateness, 16 streams", "µs");
    many.print("token lateness, 256 streams", "µs");
    down.print_median("download", "MB/s");
    upload.print_median("upload", "MB/s");
    memory(&world, up).await;
}

/// Samples of both ways.
#[derive(Default)]
struct Pair([Vec<f64>; 2]);

impl Pair {
    fn print(&mut self, what: &str, unit: &str) {
        for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
            let [direct, adit] = [0, 1].map(|i| quantile(&mut self.0[i], q));
            println!("{:<44} {direct:>12.0} {adit:>12.0} {:>+9.0} {unit}", format!("{what}, {name}"), adit - direct);
        }
    }

    fn print_median(&mut self, what: &str, unit: &str) {
        let [direct, adit] = [0, 1].map(|i| quantile(&mut self.0[i], 0.5));
        println!("{what:<44} {direct:>12.0} {adit:>12.0} {:>8.2} × {unit}", adit / direct);
    }
}

fn quantile(samples: &mut [f64], q: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * q) as usize]
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

async fn ask(tcp: &mut TcpStream) {
    tcp.write_all(&[b'E'; 128]).await.expect("sent");
    raw::read_exactly(tcp, 256).await;
}

async fn requests(to: SocketAddr, count: usize) -> Vec<f64> {
    let mut tcp = raw::connect(to).await;
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        ask(&mut tcp).await;
        took.push(micros(started));
    }
    took.split_off(count / 10)
}

async fn connections(to: SocketAddr, count: usize) -> Vec<f64> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        ask(&mut raw::connect(to).await).await;
        took.push(micros(started));
    }
    took.split_off(count / 10)
}

/// How late each token comes after the moment that it was due.
async fn tokens(to: SocketAddr, streams: usize) -> Vec<f64> {
    let mut all = JoinSet::new();
    for _ in 0..streams {
        all.spawn(async move {
            let mut tcp = raw::connect(to).await;
            tcp.write_all(b"S").await.expect("sent");
            let mut late = Vec::new();
            for _ in 0..TOKENS {
                let token = raw::read_exactly(&mut tcp, TOKEN_SIZE).await;
                let sent = f64::from_le_bytes(token[..8].try_into().expect("eight bytes"));
                late.push(clock() - sent);
            }
            late
        });
    }
    let mut late = Vec::new();
    while let Some(one) = all.join_next().await {
        late.extend(one.expect("no panic"));
    }
    late
}

async fn download(to: SocketAddr) -> f64 {
    let mut tcp = raw::connect(to).await;
    tcp.write_all(b"D").await.expect("sent");
    let mut block = vec![0; 256 * 1024];
    let (started, mut bytes) = (Instant::now(), 0);
    while started.elapsed() < TRANSFER {
        bytes += tcp.read(&mut block).await.expect("goes on");
    }
    bytes as f64 / started.elapsed().as_secs_f64() / 1e6
}

async fn uploaded(to: SocketAddr) -> f64 {
    let mut tcp = raw::connect(to).await;
    tcp.write_all(b"U").await.expect("sent");
    let block = vec![0; 256 * 1024];
    let started = Instant::now();
    while started.elapsed() < TRANSFER {
        tcp.write_all(&block).await.expect("goes on");
    }
    tcp.shutdown().await.expect("half-closed");
    let arrived = raw::read_exactly(&mut tcp, 8).await;
    u64::from_le_bytes(arrived.try_into().expect("eight bytes")) as f64 / started.elapsed().as_secs_f64() / 1e6
}

async fn memory(world: &World, up: tests::world::Up) {
    let before = (world.aditd.rss(), up.adit.rss());
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut tcp = raw::connect(up.address).await;
        ask(&mut tcp).await;
        idle.push(tcp);
    }
    let after = (world.aditd.rss(), up.adit.rss());
    let each = |before: u64, after: u64| (after.saturating_sub(before)) as f64 / IDLE as f64;
    println!("resident memory now, server and client: {} and {} KiB", before.0, before.1);
    println!("… with {IDLE} idle connections:         {} and {} KiB", after.0, after.1);
    println!("each idle connection:                   {:.1} and {:.1} KiB", each(before.0, after.0), each(before.1, after.1));
}

/// Microseconds since this process began; the service and its client share it.
fn clock() -> f64 {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    micros(*BEGAN.get_or_init(Instant::now))
}

async fn serve(upstream: Upstream) {
    loop {
        let Ok(tcp) = upstream.try_accept().await else { return };
        // A peer that has enough just goes.
        tokio::spawn(async move { drop(serve_one(tcp).await) });
    }
}

async fn serve_one(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut kind = [0];
    tcp.read_exact(&mut kind).await?;
    let mut block = vec![b'x'; 256 * 1024];
    match kind[0] {
        b'E' => {
            tcp.read_exact(&mut block[..127]).await?;
            loop {
                tcp.write_all(&block[..256]).await?;
                tcp.read_exact(&mut block[..128]).await?;
            }
        }
        b'D' => loop {
            tcp.write_all(&block).await?;
        },
        b'U' => {
            let mut arrived = 0u64;
            loop {
                match tcp.read(&mut block).await? {
                    0 => return tcp.write_all(&arrived.to_le_bytes()).await,
                    n => arrived += n as u64,
                }
            }
        }
        _ => {
            let mut ticks = tokio::time::interval(TOKEN_PERIOD);
            for _ in 0..TOKENS {
                ticks.tick().await;
                block[..8].copy_from_slice(&clock().to_le_bytes());
                tcp.write_all(&block[..TOKEN_SIZE]).await?;
            }
            Ok(())
        }
    }
}
