//! Unix sockets behind TCP connections of this process to itself, so that all other code knows one kind
//! of connection.

use std::{collections::VecDeque, io, net::Ipv4Addr, sync::OnceLock, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, UnixStream},
    sync::Mutex,
};
use tracing::debug;

use super::splice;

/// How long a connection of this program to itself may take.
const PAIR_WITHIN: Duration = Duration::from_secs(5);

/// The listener of every pair, if the process keeps one.
static LISTENER: OnceLock<Mutex<TcpListener>> = OnceLock::new();
/// How many connections of others may wait while a pair is made.
const STRANGERS: usize = 64;

/// From now on all pairs use one listener, for a process that will not be allowed to listen and to
/// connect as it likes. Returns its port. Must be called within a runtime.
///
/// # Errors
/// If this process is short of something.
pub async fn keep_listener() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let listener = LISTENER.get_or_init(|| Mutex::new(listener)).lock().await;
    Ok(listener.local_addr()?.port())
}

/// Ends when the other end is closed. What comes before that is dropped. Cancellation safe.
pub async fn gone(socket: &UnixStream) {
    while socket.readable().await.is_ok() {
        match socket.try_read(&mut [0; 64]) {
            Ok(0) => return,
            Err(e)
                if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                return;
            }
            _ => {}
        }
    }
}

/// Two ends of one TCP connection. A connection of somebody else to the same port is dropped.
///
/// # Errors
/// If this process is short of something, or the connection takes longer than five seconds.
pub async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let connected = async {
        match LISTENER.get() {
            Some(kept) => pair_at(&*kept.lock().await).await,
            None => pair_at(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?).await,
        }
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection to itself in time");
    tokio::time::timeout(PAIR_WITHIN, connected).await.unwrap_or_else(|_| Err(late()))
}

async fn pair_at(listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let near = TcpStream::connect(listener.local_addr()?);
    tokio::pin!(near);
    let mut came = VecDeque::new();
    // Others must not fill the listener's queue meanwhile.
    let near = loop {
        tokio::select! {
            near = &mut near => break near?,
            far = listener.accept() => came.push_back(far?),
        }
        if came.len() > STRANGERS {
            came.pop_front();
        }
    };
    near.set_nodelay(true)?;
    let own = near.local_addr()?;
    loop {
        let (far, from) = match came.pop_front() {
            Some(far) => far,
            None => listener.accept().await?,
        };
        if from == own {
            far.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
}

/// Moves bytes between an application at a Unix socket and a TCP connection, until the answers have
/// ended. What breaks off one side cuts the other.
pub async fn join_to_application(mut unix: UnixStream, mut tcp: TcpStream) {
    let (mut from_app, mut to_app) = unix.split();
    let (mut answers, mut requests) = tcp.split();
    let up = async {
        tokio::io::copy(&mut from_app, &mut requests).await?;
        requests.shutdown().await?;
        std::future::pending::<io::Result<()>>().await
    };
    let down = async {
        tokio::io::copy(&mut answers, &mut to_app).await?;
        to_app.shutdown().await
    };
    let end = tokio::select! {
        end = up => end,
        end = down => end,
    };
    cut(end, tcp);
}

/// Moves bytes between a TCP connection and a service at a Unix socket, until both directions have
/// ended. What breaks off one side cuts the other.
pub async fn join_to_service(mut tcp: TcpStream, mut unix: UnixStream) {
    let end = tokio::io::copy_bidirectional(&mut tcp, &mut unix).await;
    cut(end.map(drop), tcp);
}

fn cut(end: io::Result<()>, tcp: TcpStream) {
    if let Err(e) = end {
        debug!("a Unix connection broke off: {e}");
        splice::abort(tcp);
    }
}
