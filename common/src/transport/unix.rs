//! Unix sockets behind TCP connections of this process to itself, so that all other code knows one kind
//! of connection.

use std::{io, net::Ipv4Addr, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, UnixStream},
};
use tracing::debug;

use super::splice;

/// How long a connection of this program to itself may take.
const PAIR_WITHIN: Duration = Duration::from_secs(5);

/// Two ends of one TCP connection. A connection of somebody else to the same port is dropped.
///
/// # Errors
/// If this process is short of something, or the connection takes longer than five seconds.
pub async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let connected = async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let near = TcpStream::connect(listener.local_addr()?).await?;
        near.set_nodelay(true)?;
        let own = near.local_addr()?;
        loop {
            let (far, from) = listener.accept().await?;
            if from == own {
                far.set_nodelay(true)?;
                return Ok((near, far));
            }
        }
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection to itself in time");
    tokio::time::timeout(PAIR_WITHIN, connected).await.unwrap_or_else(|_| Err(late()))
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
