//! From a datagram to a handshake: what is dropped unread, which connection attempts are answered,
//! and who may finish one.

pub mod admission;
pub mod filter;
pub mod relay;
pub mod verifier;
