//! Load for the benchmarks: a service that answers as the first byte of a connection asks, and the
//! measurements.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::raw::{self, Upstream};

const TRANSFER: Duration = Duration::from_secs(2);
const TOKENS: u32 = 100;
const TOKEN_PERIOD: Duration = Duration::from_millis(20);
const TOKEN_SIZE: usize = 150;

/// The value below which this share of the samples lies.
pub fn quantile(samples: &mut [f64], q: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * q) as usize]
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// One small request and its answer.
pub async fn ask(tcp: &mut TcpStream) {
    tcp.write_all(&[b'E'; 128]).await.expect("sent");
    raw::read_exactly(tcp, 256).await;
}

/// The time of each small request on one connection, in µs.
pub async fn requests(to: SocketAddr, count: usize) -> Vec<f64> {
    let mut tcp = raw::connect(to).await;
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        ask(&mut tcp).await;
        took.push(micros(started));
    }
    took.split_off(count / 10)
}

/// The time of each small request on a new connection, in µs.
pub async fn connections(to: SocketAddr, count: usize) -> Vec<f64> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        ask(&mut raw::connect(to).await).await;
        took.push(micros(started));
    }
    took.split_off(count / 10)
}

/// How late each token of some streams comes, in µs after it was due.
pub async fn tokens(to: SocketAddr, streams: usize) -> Vec<f64> {
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

/// The rate of one download, in MB/s.
pub async fn download(to: SocketAddr) -> f64 {
    let mut tcp = raw::connect(to).await;
    tcp.write_all(b"D").await.expect("sent");
    let mut block = vec![0; 256 * 1024];
    let (started, mut bytes) = (Instant::now(), 0);
    while started.elapsed() < TRANSFER {
        bytes += tcp.read(&mut block).await.expect("goes on");
    }
    bytes as f64 / started.elapsed().as_secs_f64() / 1e6
}

/// The rate of one upload, in MB/s.
pub async fn upload(to: SocketAddr) -> f64 {
    let mut tcp = raw::connect(to).await;
    tcp.write_all(b"U").await.expect("sent");
    let block = vec![0; 256 * 1024];
    let started = Instant::now();
    while started.elapsed() < TRANSFER {
        tcp.write_all(&block).await.expect("goes on");
    }
    tcp.shutdown().await.expect("half-closed");
    let arrived = raw::read_exactly(&mut tcp, 8).await;
    u64::from_le_bytes(arrived.try_into().expect("eight bytes")) as f64
        / started.elapsed().as_secs_f64()
        / 1e6
}

/// Microseconds since this process began; the service and its client share this clock.
fn clock() -> f64 {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    micros(*BEGAN.get_or_init(Instant::now))
}

/// Serves all of these.
pub async fn serve(upstream: Upstream) {
    loop {
        let Ok(tcp) = upstream.try_accept().await else { return };
        // A peer that has read enough closes the connection.
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
