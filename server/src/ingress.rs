//! From a datagram to a handshake: which datagrams are dropped, which connection attempts are
//! answered, and which handshakes succeed.

pub(crate) mod admission;
pub(crate) mod filter;
pub(crate) mod older;
pub(crate) mod relay;
pub(crate) mod sockets;
pub(crate) mod verifier;
