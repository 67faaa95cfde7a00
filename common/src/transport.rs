//! How QUIC is tuned, on both ends alike, and the UDP sockets under it.

pub mod accept;
pub mod carrier;
pub mod congestion;
pub mod credit;
pub mod frame;
pub mod splice;
pub mod tls;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{IdleTimeout, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use self::congestion::StallProofCubic;

/// A handshake that takes longer has failed.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Streams that a device may have open when it connects.
pub const FIRST_STREAMS: u32 = 256;
/// Streams of one device that are served at once, at the most; more of them wait.
pub const MOST_STREAMS: u32 = 4096;

/// Flow control per stream: two megabytes keep the queue in front of a token short, and still fill
/// an ordinary path.
const STREAM_WINDOW: u32 = 2 << 20;
/// What all streams share beyond their floors.
const POOL: u32 = 32 << 20;
/// The first words of each end and what follows them do not count: see [`settings`].
const TALK: u32 = 2 * STREAM_WINDOW;
/// Flow control per connection, in bytes: 68 MiB. It bounds what one peer can make the other keep
/// unread, on however many streams, and holds a floor for each stream that can be open.
const CONNECTION_WINDOW: u32 = SHARED_WINDOW + TALK;
/// The part of it that streams to services share, in bytes.
pub const SHARED_WINDOW: u32 = POOL + credit::FLOOR as u32 * MOST_STREAMS;
/// What the sender keeps until it is acknowledged: while the laptop sleeps, the server goes on
/// reading from Ollama.
const SEND_WINDOW: u64 = 8 << 20;
const SOCKET_BUFFER: usize = 4 << 20;
/// What the kernel keeps for the reader of a local connection, in bytes; Linux reserves twice that.
const LOCAL_BUFFER: usize = 256 << 10;

/// The settings of one connection. `streams` is how many bidirectional streams the peer may open at
/// first; see [`grant`]. The session is kept through a silence of `idle`, or of the peer's if that
/// is shorter (RFC 9000 section 10.1).
pub fn settings(streams: u32, idle: Duration) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            idle.as_millis().try_into().unwrap_or(u32::MAX),
        ))))
        .keep_alive_interval(Some(proto::wire::KEEP_ALIVE))
        .max_concurrent_bidi_streams(streams.into())
        // The first words of each end and what follows them; and what it has read.
        .max_concurrent_uni_streams(2u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .congestion_controller_factory(Arc::new(StallProofCubic::default()));
    Arc::new(config)
}

/// What QUIC has to grant so that `streams` can always be open: it announces new credit (RFC 9000
/// section 4.6) only when an eighth of the grant has been given back, so up to an eighth of it may
/// be out of reach.
pub fn grant(streams: u32) -> u32 {
    streams + streams.div_ceil(7)
}

/// What the system has granted a socket for receiving and for sending, in bytes; Linux reports
/// twice what can be used for data.
pub fn buffer_sizes(socket: &std::net::UdpSocket) -> io::Result<(usize, usize)> {
    let socket = socket2::SockRef::from(socket);
    Ok((socket.recv_buffer_size()?, socket.send_buffer_size()?))
}

/// Any address of this machine, of the family of `remote`.
pub fn any_address(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// A [`socket`] that can send to `remote`.
pub fn any_socket(remote: SocketAddr) -> io::Result<std::net::UdpSocket> {
    socket(any_address(remote))
}

/// Prepares a TCP connection on this machine, whose bytes go through a tunnel.
///
/// A token must leave when it comes. And what its reader does not read stands here at most as long
/// as `LOCAL_BUFFER`: the kernel's own limit is megabytes for each connection.
///
/// # Errors
/// If the connection has failed already.
pub fn prepare_local(tcp: &tokio::net::TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    socket2::SockRef::from(tcp).set_send_buffer_size(LOCAL_BUFFER)
}

/// A non-blocking UDP socket on `address` with large buffers, as far as the system grants them.
pub fn socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // Each family has its own socket, so that `[::]` and `0.0.0.0` can stand side by side.
        socket.set_only_v6(true)?;
    }
    // Asking for more than `net.core.rmem_max` is not an error, it just gets less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
