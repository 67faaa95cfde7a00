//! Carriers: what brings a connection's datagrams to the server. To QUIC a change of carrier is a
//! change of address (RFC 9000 section 9), so a running answer survives it.
//!
//! Each carrier is a socket for quinn with the same made-up remote address, whatever is really
//! behind it. A carrier never fails: a dead one swallows datagrams as a dead network does, because
//! an error would end the connection.

mod batch;
mod framing;
mod marks;
mod redundancy;
mod relay;
mod repeat;
mod socket;
mod stream;
mod udp;

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

pub use self::{
    framing::{frame_datagram, next_datagram},
    marks::{Marks, Unmarked},
    redundancy::{LossEstimate, PathCounts, Protection},
    relay::{RELAY_SOURCE, relay},
    repeat::{Repeated, RepeatingSocket, Repeats},
    socket::SystemSocket,
    stream::StreamCarrier,
    udp::UdpCarrier,
};

/// The address that a client's connection is made to, in the range that is routed nowhere (RFC
/// 6666).
pub const REMOTE: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1), 1, 0, 0));
const LOCAL: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2), 1, 0, 0));
/// quinn sizes its receive buffer once, for the first socket that it gets: all carriers have to
/// promise the same.
const RECEIVE_SEGMENTS: usize = 64;
/// Bytes that wait for a stream before QUIC is asked to wait: small, as this is a queue in front of
/// every token.
const OUT_LIMIT: usize = 256 * 1024;
