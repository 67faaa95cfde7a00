//! `aditd`: lets enrolled devices use the Ollama beside it, and is silent to everybody else.

pub mod accounting;
pub mod audit;
mod cli;
pub mod commands;
pub mod config;
pub mod gate;
pub mod ingress;
pub mod limits;
pub mod metrics;
pub mod policy;
pub mod record;
pub mod running;
pub mod serve;
pub mod session;
pub mod state;

pub use cli::run;
