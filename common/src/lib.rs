//! What both ends of Adit share: who a device is, what is said on the wire, how bytes are moved,
//! and how people are told.
//!
//! The pure parts ([`wire`], [`invitation`], [`door`], [`identity`], [`failure`]) name no runtime, no clock and
//! no socket.

pub mod accept;
pub mod answer;
pub mod carrier;
pub mod control;
pub mod credit;
pub mod door;
pub mod exchange;
pub mod failure;
pub mod frame;
pub mod identity;
pub mod invitation;
pub mod owner;
pub mod private;
pub mod process;
pub mod report;
pub mod splice;
pub mod stall;
pub mod tls;
pub mod transport;
pub mod wire;
