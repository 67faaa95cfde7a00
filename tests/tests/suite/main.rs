//! Behaviours that need both ends, one sentence each. One binary: each would link QUIC, SQLite and
//! SSH again.

#![allow(missing_docs)]

mod enrollment;
mod failures;
mod gate;
mod house;
#[cfg(target_os = "linux")]
mod lab;
mod readme;
mod ssh;
mod tunnel;

/// `adit` and `aditd` in one file: the programs under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
