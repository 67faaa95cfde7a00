//! `adit`: makes the Ollama of a far machine answer on `localhost:11434`.
//!
//! The way of a connection: [`local`] → [`tunnel`] → `proto::wire` →
//! `common::transport::splice`.

mod cli;
pub mod commands;
pub mod dial;
pub mod local;
pub mod profile;
pub mod ssh;
pub mod tunnel;

pub use cli::run;
