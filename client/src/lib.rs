//! `adit`: makes the Ollama of a far machine answer on `localhost:11434`.
//!
//! The way of a connection: [`listener`] → [`tunnel`] → `common::wire` → `common::splice`.

pub mod answer;
mod backoff;
mod cli;
pub mod dial;
pub mod directions;
pub mod enroll;
pub mod journal;
pub mod keeper;
pub mod link;
pub mod listener;
pub mod owner;
mod path;
pub mod profile;
mod renewal;
mod scout;
pub mod ssh;
pub mod status;
pub mod tunnel;
pub mod up;
mod watch;
pub mod way;

pub use cli::run;
