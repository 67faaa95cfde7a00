//! The service: answers small requests, makes tokens, and gives and takes bytes without an end.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Deserialize;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{Seat, Target, answer, chunk, now};
use crate::{bench::row::Congestion, lab::Namespace};

const BACKLOG: u32 = 4096;
const BLOCK: usize = 256 * 1024;
const LONGEST_HEAD: usize = 64 * 1024;
/// As long as nobody waits for.
const ENDLESS: u64 = 1 << 50;

/// A running service. Dropping it ends it.
pub struct Service {
    /// Where it listens with TCP's ordinary congestion control.
    pub cubic: SocketAddr,
    /// Where it listens with BBR, if the kernel has it.
    pub bbr: Option<SocketAddr>,
    /// The bytes of uploads that have arrived.
    pub received: Arc<AtomicU64>,
    seat: Seat,
}

/// What a request for tokens says.
#[derive(Deserialize)]
struct Generate {
    interval_us: u64,
    tokens: u64,
}

impl Service {
    /// Starts it in this network, on all of its addresses; or on the machine's loopback.
    ///
    /// # Errors
    /// What the system says.
    pub async fn start(network: Option<Arc<Namespace>>) -> io::Result<Self> {
        let ip = if network.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        let seat = Seat::new("service", network)?;
        let received = Arc::new(AtomicU64::new(0));
        let counter = received.clone();
        let listening = seat.run(async move {
            let mut open = Vec::new();
            for congestion in [Congestion::Cubic, Congestion::Bbr] {
                open.push(listen(ip, congestion, counter.clone()));
            }
            open
        });
        let mut listening = listening.await?.into_iter();
        let cubic = listening.next().ok_or(io::ErrorKind::AddrNotAvailable)??;
        Ok(Self { cubic, bbr: listening.next().and_then(Result::ok), received, seat })
    }

    /// As [`Seat::give_way`].
    ///
    /// # Errors
    /// As there.
    pub async fn give_way(&self) -> io::Result<()> {
        self.seat.give_way().await
    }

    /// Where it listens with this congestion control, for somebody without a tunnel who sees it at `ip`.
    ///
    /// # Errors
    /// If the kernel does not have it.
    pub fn target(&self, congestion: Congestion, ip: Ipv4Addr) -> io::Result<Target> {
        let listening = match congestion {
            Congestion::Cubic => self.cubic,
            Congestion::Bbr => self.bbr.ok_or(io::ErrorKind::Unsupported)?,
        };
        let address = SocketAddr::from((ip, listening.port()));
        Ok(Target { address, congestion: Some(congestion) })
    }
}

fn listen(
    ip: Ipv4Addr,
    congestion: Congestion,
    received: Arc<AtomicU64>,
) -> io::Result<SocketAddr> {
    let socket = TcpSocket::new_v4()?;
    let set = SockRef::from(&socket).set_tcp_congestion(congestion.name().as_bytes());
    // Not everybody may choose Cubic: without root it is what the system has.
    if congestion == Congestion::Bbr {
        set?;
    }
    socket.bind((ip, 0).into())?;
    let listener = socket.listen(BACKLOG)?;
    let port = listener.local_addr()?.port();
    tokio::spawn(accept(listener, congestion, received));
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

async fn accept(listener: TcpListener, congestion: Congestion, received: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        if let Ok((tcp, _)) = listener.accept().await {
            // A route may have chosen another.
            let _ = SockRef::from(&tcp).set_tcp_congestion(congestion.name().as_bytes());
            let received = received.clone();
            // An application that has enough just goes.
            connections.spawn(async move { drop(serve(tcp, &received).await) });
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut tcp: TcpStream, received: &AtomicU64) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let (answer, mut read) = (answer(), Vec::new());
    loop {
        let head = head(&mut tcp, &mut read).await?;
        let request = String::from_utf8_lossy(&read[..head]).into_owned();
        read.drain(..head);
        match request.split(' ').nth(1) {
            Some("/api/version") => tcp.write_all(&answer).await?,
            Some("/api/generate") => {
                let length = content_length(&request);
                while read.len() < length {
                    more(&mut tcp, &mut read).await?;
                }
                let asked = serde_json::from_slice(&read[..length])?;
                read.drain(..length);
                generate(&mut tcp, &asked).await?;
            }
            Some("/api/tags") => return give(&mut tcp).await,
            _ => return take(&mut tcp, read.len() as u64, received).await,
        }
    }
}

/// Reads until a whole head is there; its length.
async fn head(tcp: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(at + 4);
        }
        if read.len() > LONGEST_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
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

fn content_length(head: &str) -> usize {
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

async fn generate(tcp: &mut TcpStream, asked: &Generate) -> io::Result<()> {
    tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let began = tokio::time::Instant::now();
    for token in 0..asked.tokens {
        tokio::time::sleep_until(began + Duration::from_micros(token * asked.interval_us)).await;
        tcp.write_all(&chunk(now())).await?;
    }
    tcp.write_all(b"0\r\n\r\n").await
}

async fn give(tcp: &mut TcpStream) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {ENDLESS}\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await?;
    let block = vec![b'd'; BLOCK];
    loop {
        tcp.write_all(&block).await?;
    }
}

async fn take(tcp: &mut TcpStream, already: u64, received: &AtomicU64) -> io::Result<()> {
    received.fetch_add(already, Relaxed);
    let mut block = vec![0; BLOCK];
    loop {
        match tcp.read(&mut block).await? {
            0 => return Ok(()),
            n => received.fetch_add(n as u64, Relaxed),
        };
    }
}
