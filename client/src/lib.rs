//! `adit`: makes the Ollama of a remote machine answer on `localhost:11434`.
//!
//! A connection passes [`local`] → [`tunnel`] → `proto::wire` → `common::transport::splice`.

mod cli;
pub mod commands;
pub mod dial;
pub mod local;
pub mod profile;
pub mod ssh;
pub mod tunnel;

pub use cli::{command, run};
