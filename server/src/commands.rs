//! What `aditd` does beside a running server.

pub mod audit;
pub mod beside;
pub mod devices;
pub mod invite;
pub mod over_ssh;
pub mod status;
mod stdio;
