//! The QUIC settings of both ends, and the UDP sockets below QUIC.

pub mod accept;
pub mod carrier;
pub mod congestion;
pub(crate) mod copies;
pub mod credit;
pub mod frame;
pub mod splice;
pub mod tls;
pub mod unix;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proto::doctor::laptop::Buffers;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use self::congestion::Controllers;

/// A handshake that takes longer counts as failed.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How many bytes of copies in DATAGRAM frames may wait in QUIC, in each direction: see `copies.rs`.
const COPIES_BUFFER: usize = 64 * 1024;
/// How many streams a device may have open when it connects.
pub const FIRST_STREAMS: u32 = 256;
/// The most streams of one device that are served at the same time. Further streams wait.
pub const MOST_STREAMS: u32 = 4096;

/// The flow-control window of a stream, in bytes: half of what all streams share. A sender of ours
/// uses as much of it as the path holds: see [`credit`].
const STREAM_WINDOW: u32 = POOL / 2;
/// The bytes that all streams share beyond their floors.
pub(crate) const POOL: u32 = 32 << 20;
/// The bytes for the streams of greeting and hello, which have their own credit: see [`settings`].
const TALK: u32 = 4 << 20;
/// The flow-control window of a connection: 68 MiB. It limits how many unread bytes one peer can
/// make the other keep, on all streams together, and has room for the floor of every stream that
/// can be open.
const CONNECTION_WINDOW: u32 = SHARED_WINDOW + TALK;
/// The part of the window that streams to services share, in bytes.
pub(crate) const SHARED_WINDOW: u32 = POOL + credit::FLOOR as u32 * MOST_STREAMS;
/// How many bytes a sender keeps until they are acknowledged, at first; more where the path holds
/// more: see [`credit`]. While the laptop sleeps, the server can still read this much from Ollama.
pub(crate) const SEND_WINDOW: u64 = 8 << 20;
const SOCKET_BUFFER: usize = 4 << 20;
/// How many bytes the kernel keeps for the reader of a local connection; Linux reserves twice as
/// many.
const LOCAL_BUFFER: usize = 256 << 10;

/// The longest datagram that is ever sent, in bytes of UDP payload: over a short stream, where the work
/// for each datagram limits the speed.
pub const LONGEST_DATAGRAM: u16 = 16_384;
/// The longest datagram on one machine, in bytes of UDP payload. The system takes ten of them in one
/// call.
pub const LOCAL_DATAGRAM: u16 = 6500;
/// The longest datagram to try on a network that is not known, in bytes of UDP payload.
pub const USUAL_DATAGRAM: u16 = 1452;

/// The settings of an endpoint that accepts datagrams of up to `longest` bytes of UDP payload.
pub fn endpoint(longest: u16) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // It fails only for a length that UDP cannot carry.
    if longest > USUAL_DATAGRAM {
        let _ = config.max_udp_payload_size(longest);
    }
    config
}

/// The settings of one connection. `streams` is how many bidirectional streams the peer may open at
/// first; see [`grant`]. `idle` is the idle time-out; if the peer's is shorter, that one applies
/// (RFC 9000 section 10.1). Datagrams become as long as the network and the peer allow, but no
/// longer than `longest` bytes of UDP payload (RFC 9000 section 14.3).
pub fn settings(streams: u32, idle: Duration, longest: u16) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(longest);
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            idle.as_millis().try_into().unwrap_or(u32::MAX),
        ))))
        .keep_alive_interval(Some(proto::wire::KEEP_ALIVE))
        .max_concurrent_bidi_streams(streams.into())
        // One for the greeting or the hello and what follows it, one for credit.
        .max_concurrent_uni_streams(2u32.into())
        .mtu_discovery_config(Some(search))
        .datagram_receive_buffer_size(Some(COPIES_BUFFER))
        .datagram_send_buffer_size(COPIES_BUFFER)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .congestion_controller_factory(Arc::new(Controllers::default()));
    Arc::new(config)
}

/// How many streams QUIC has to grant so that the peer can always have `streams` open. quinn
/// announces new stream credit (RFC 9000 section 4.6) only after an eighth of the grant has been
/// used up, so the peer may not know of the last eighth.
pub fn grant(streams: u32) -> u32 {
    streams + streams.div_ceil(7)
}

/// The sizes of a socket's receive buffer and send buffer, in bytes, as they were asked for.
pub fn buffer_sizes(socket: &std::net::UdpSocket) -> io::Result<(usize, usize)> {
    let socket = socket2::SockRef::from(socket);
    // Linux doubles what is asked for, for its own bookkeeping (socket(7)).
    let times = if cfg!(target_os = "linux") { 2 } else { 1 };
    Ok((socket.recv_buffer_size()? / times, socket.send_buffer_size()? / times))
}

/// The largest buffers that the kernel grants a socket, beside those that [`socket`] asks for. `None`
/// where the kernel does not say.
pub fn largest_buffers() -> Option<Buffers> {
    let read = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse().ok()
    };
    let (rmem_max, wmem_max) = (read("rmem_max")?, read("wmem_max")?);
    Some(Buffers { wanted: SOCKET_BUFFER as u64, rmem_max, wmem_max })
}

/// The unspecified address of the family of `remote`, with port 0.
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

/// Prepares a local TCP connection whose bytes go through a tunnel.
///
/// Sets TCP_NODELAY, so that each token is sent at once. Limits the send buffer to `LOCAL_BUFFER`,
/// because the kernel would keep megabytes for each connection whose reader does not read.
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
        // Each family has its own socket, so that a server can bind both `[::]` and `0.0.0.0`.
        socket.set_only_v6(true)?;
    }
    // A request for more than `net.core.rmem_max` is not an error; the buffer is only smaller.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
