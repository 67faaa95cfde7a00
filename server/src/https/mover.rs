//! Moves bytes between a TLS connection and the pipe behind which a request is served.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use bytes::BytesMut;
use common::transport::splice::pipe::{Connection, Order, Outside, PIECE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::server::TlsStream;

/// How long a client may go on sending after its answer has ended.
const LINGER: Duration = Duration::from_secs(2);
/// How often a connection from which nothing may be read now is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Moves bytes until both directions have ended, or one side breaks off. A reset that is ordered
/// overtakes what waits to be sent.
pub(super) async fn run(tls: TlsStream<TcpStream>, outside: Outside) {
    let Outside { received, to_send, connection, mut order } = outside;
    let Ok(socket) = tls.get_ref().0.as_fd().try_clone_to_owned() else {
        let _ = connection.send_replace(Connection::Broken);
        return;
    };
    let (mut read, mut write) = tokio::io::split(tls);
    let moved = {
        let moves = both(&mut read, &mut write, received, to_send, &socket, &connection);
        tokio::select! {
            biased;
            Ok(_) = order.wait_for(|order| *order == Order::Reset) => Connection::Broken,
            end = moves => if end.is_ok() { Connection::Closed } else { Connection::Broken },
        }
    };
    if moved == Connection::Broken {
        // Closing with RST: nothing that the client has can be taken for a whole answer.
        let _ = read.unsplit(write).get_ref().0.set_zero_linger();
    }
    drop(socket);
    connection.send_replace(moved);
}

async fn both(
    read: &mut ReadHalf<TlsStream<TcpStream>>,
    write: &mut WriteHalf<TlsStream<TcpStream>>,
    received: mpsc::Sender<bytes::Bytes>,
    to_send: mpsc::Receiver<bytes::Bytes>,
    socket: &OwnedFd,
    connection: &tokio::sync::watch::Sender<Connection>,
) -> io::Result<()> {
    let down = download(read, received, socket);
    let up = upload(write, to_send);
    tokio::pin!(down, up);
    let mut down_ended = false;
    loop {
        tokio::select! {
            end = &mut down, if !down_ended => {
                if let Err(e) = end {
                    // At once: whoever waits for bytes is told of the reset, not of an end.
                    connection.send_replace(Connection::Broken);
                    return Err(e);
                }
                down_ended = true;
            }
            end = &mut up => {
                end?;
                break;
            }
        }
    }
    // Closing with bytes unread would send an RST, and the client could lose the last bytes.
    if !down_ended {
        let _ = tokio::time::timeout(LINGER, down).await;
    }
    Ok(())
}

/// Until the client has ended its direction (close_notify). A FIN without that is a cut (RFC 8446
/// section 6.1), and an error.
async fn download(
    read: &mut ReadHalf<TlsStream<TcpStream>>,
    received: mpsc::Sender<bytes::Bytes>,
    socket: &OwnedFd,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        // The next bytes are read when there is a place for them.
        let place = tokio::select! {
            biased;
            place = received.reserve() => place,
            () = broken(socket) => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        buffer.reserve(PIECE);
        let mut limited = (&mut *read).take(PIECE as u64);
        if limited.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let bytes = buffer.split().freeze();
        // Nobody reads any more: the rest is thrown away.
        if let Ok(place) = place {
            place.send(bytes);
        }
    }
}

/// Ends when the connection was reset, while nothing is read from it.
async fn broken(socket: &OwnedFd) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let looked = poll(&mut fds, Some(&now));
        if looked.is_ok() && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return;
        }
    }
}

/// Until the answer has ended, and the client was told so.
async fn upload(
    write: &mut WriteHalf<TlsStream<TcpStream>>,
    mut to_send: mpsc::Receiver<bytes::Bytes>,
) -> io::Result<()> {
    while let Some(bytes) = to_send.recv().await {
        write.write_all(&bytes).await?;
        if to_send.is_empty() {
            write.flush().await?;
        }
    }
    write.shutdown().await
}
