//! `aditd`: lets enrolled devices use the Ollama beside it, and is silent to everybody else.
//!
//! The way of a stream: [`silence`] → [`door`] → [`session`] → [`policy`] → [`upstream`] →
//! `common::splice`.

pub mod audit;
pub mod ca;
mod cli;
pub mod config;
pub mod devices;
pub mod door;
pub mod enroll;
pub mod gate;
pub mod group;
pub mod invite;
pub mod limits;
mod listen;
pub mod live;
pub mod meters;
pub mod metrics;
pub mod policy;
pub mod queue;
pub mod register;
pub mod relay;
pub mod reload;
pub mod roles;
pub mod running;
pub mod serve;
pub mod session;
pub mod silence;
pub mod ssh;
pub mod state;
pub mod status;
mod stdio;
pub mod upstream;
pub mod verifier;

pub use cli::run;
