//! `adit`: makes the Ollama of a remote machine answer on `localhost:11434`.
//!
//! A connection passes `local` → `tunnel` → `proto::wire` → `common::transport::splice`.
//!
//! The library is for the program and for the tests of both ends; everything else is private.

mod cli;
mod commands;
mod device_key;
pub mod dial;
mod local;
pub mod profile;
mod settings;
mod ssh;
mod tunnel;

pub use cli::{command, run};
