//! The applications, which measure. None of them panics: a tunnel may cut them.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{ANSWER, CHUNK, GET, TOKEN_PERIOD_US, made_at, now};
use crate::bench::row::Congestion;

const BLOCK: usize = 256 * 1024;
/// New connections in one measurement at the most: each keeps a port for a minute after its end.
const MOST_CONNECTIONS: usize = 2_000;
/// The first ones of a measurement meet cold caches, and are not counted.
const WARM_UP: usize = 10;
/// Longer than any answer takes over a link of the benchmark.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Where an application connects.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The address.
    pub address: SocketAddr,
    /// What TCP does on the way to it, if that is a part of what is compared.
    pub congestion: Option<Congestion>,
}

/// One token that has arrived; both times are of [`now`].
#[derive(Debug, Clone, Copy)]
pub struct Token {
    /// When the service made it, in ns.
    pub made: u64,
    /// When it was here, in ns.
    pub arrived: u64,
}

async fn connect(to: Target) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(to.address).await?;
    tcp.set_nodelay(true)?;
    if let Some(congestion) = to.congestion {
        // Not before: a route may choose one when the connection is made.
        let set = SockRef::from(&tcp).set_tcp_congestion(congestion.name().as_bytes());
        if congestion == Congestion::Bbr {
            set?;
        }
    }
    Ok(tcp)
}

/// A small request and its answer.
async fn ask(tcp: &mut TcpStream) -> io::Result<()> {
    let mut answer = [0; ANSWER];
    let exchange = async {
        tcp.write_all(GET).await?;
        let mut read = 0;
        while read < ANSWER {
            match tcp.read(&mut answer[read..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => read += n,
            }
            if read >= 12 && !answer.starts_with(b"HTTP/1.1 200") {
                let said = String::from_utf8_lossy(&answer[..read]).into_owned();
                return Err(io::Error::other(said));
            }
        }
        Ok(())
    };
    tokio::time::timeout(GIVE_UP, exchange).await?
}

/// Small requests on one connection: how long each took, in µs.
///
/// # Errors
/// If the connection was cut.
pub async fn requests(to: Target, during: Duration) -> io::Result<Vec<f64>> {
    let mut tcp = connect(to).await?;
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < during {
        let asked = Instant::now();
        ask(&mut tcp).await?;
        took.push(micros(asked.elapsed()));
    }
    Ok(without_warm_up(took))
}

/// Small requests, each on a new connection: how long each took, in µs.
///
/// # Errors
/// If one was cut.
pub async fn connections(to: Target, during: Duration) -> io::Result<Vec<f64>> {
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < during && took.len() < MOST_CONNECTIONS {
        let asked = Instant::now();
        ask(&mut connect(to).await?).await?;
        took.push(micros(asked.elapsed()));
    }
    Ok(without_warm_up(took))
}

fn without_warm_up(mut took: Vec<f64>) -> Vec<f64> {
    let first = WARM_UP.min(took.len() / 10);
    took.split_off(first)
}

/// So many idle connections, each of which has asked once.
///
/// # Errors
/// If one was cut.
pub async fn idle(to: Target, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut tcp = connect(to).await?;
        ask(&mut tcp).await?;
        open.push(tcp);
    }
    Ok(open)
}

/// One stream of tokens; `each` gets every token when it arrives.
///
/// # Errors
/// If it was cut, or refused.
pub async fn tokens(to: Target, count: u64, mut each: impl FnMut(Token)) -> io::Result<()> {
    let mut tcp = connect(to).await?;
    let json = format!(
        "{{\"model\":\"bench\",\"prompt\":\"x\",\"interval_us\":{TOKEN_PERIOD_US},\"tokens\":{count}}}"
    );
    let request = format!(
        "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
        json.len()
    );
    tcp.write_all(request.as_bytes()).await?;
    let mut read = Vec::with_capacity(BLOCK);
    head(&mut tcp, &mut read).await?;
    let mut arrived = now();
    for _ in 0..count {
        while read.len() < CHUNK {
            more(&mut tcp, &mut read).await?;
            arrived = now();
        }
        let made = made_at(&read[..CHUNK]).ok_or(io::ErrorKind::InvalidData)?;
        read.drain(..CHUNK);
        each(Token { made, arrived });
    }
    Ok(())
}

/// Downloads without an end, and counts the bytes.
///
/// # Errors
/// If it was cut, or refused.
pub async fn download(to: Target, bytes: Arc<AtomicU64>) -> io::Result<()> {
    let mut tcp = connect(to).await?;
    tcp.write_all(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut read = Vec::new();
    head(&mut tcp, &mut read).await?;
    bytes.fetch_add(read.len() as u64, Relaxed);
    let mut block = vec![0; BLOCK];
    loop {
        match tcp.read(&mut block).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.fetch_add(n as u64, Relaxed),
        };
    }
}

/// Uploads without an end; the service counts the bytes.
///
/// # Errors
/// If it was cut, or refused.
pub async fn upload(to: Target) -> io::Result<()> {
    let mut tcp = connect(to).await?;
    let head = format!(
        "POST /api/blobs/sha256:{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        "0".repeat(64),
        1u64 << 50
    );
    tcp.write_all(head.as_bytes()).await?;
    let block = vec![b'u'; BLOCK];
    loop {
        tcp.write_all(&block).await?;
    }
}

/// Takes the head of an answer out of what is read.
async fn head(tcp: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<()> {
    loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            if !read.starts_with(b"HTTP/1.1 200") {
                return Err(io::Error::other(String::from_utf8_lossy(read).into_owned()));
            }
            read.drain(..at + 4);
            return Ok(());
        }
        more(tcp, read).await?;
    }
}

async fn more(tcp: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<()> {
    match tcp.read_buf(read).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
