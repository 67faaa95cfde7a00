//! Carriers bring a connection's datagrams to the server. For QUIC a change of carrier is a change
//! of address (RFC 9000 section 9), so a running answer survives it.
//!
//! Each carrier is a socket for quinn with the same artificial remote address, whatever the real
//! one is. A carrier never fails: a dead carrier drops datagrams as a dead network does, because an
//! error would end the connection.

mod batch;
mod framing;
mod handed_on;
mod interactive;
mod loss;
mod marks;
mod portion;
mod redundancy;
mod relay;
mod repeat;
mod socket;
mod stream;
mod udp;

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use self::framing::{frame_datagram, next_datagram};
pub use self::{
    handed_on::{HandOn, Inbox, handed_on},
    interactive::{InteractiveData, NextCopy, Protection},
    loss::{LossEstimate, PathCounts},
    marks::{Marks, Unmarked},
    redundancy::ProtectedPath,
    relay::{RELAY_SOURCE, relay},
    repeat::{PacketRepeats, Repeated, RepeatingSocket},
    socket::SystemSocket,
    stream::{OpenStream, StreamCarrier},
    udp::UdpCarrier,
};

/// The remote address of every connection of a client, from the discard-only range (RFC 6666).
pub const REMOTE: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1), 1, 0, 0));
const LOCAL: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 2), 1, 0, 0));
/// quinn sizes its receive buffer once, for the first socket that it gets, so all carriers have to
/// state the same number.
const RECEIVE_SEGMENTS: usize = 64;
/// A longer datagram, in bytes, goes over a stream only where the stream is short: see
/// [`StreamCarrier`].
const ORDINARY: usize = 1472;
