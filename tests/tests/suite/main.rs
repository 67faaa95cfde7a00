//! Behaviour that needs both ends, one sentence for each test. One binary, because each binary
//! would link QUIC, SQLite and SSH again.

#![allow(missing_docs)]

mod api;
#[cfg(target_os = "linux")]
mod bench;
mod doctor;
mod enrollment;
mod failures;
mod gate;
mod house;
mod https;
#[cfg(target_os = "linux")]
mod install;
#[cfg(target_os = "linux")]
mod lab;
#[cfg(target_os = "linux")]
mod packaging;
mod readme;
mod servers;
mod services;
mod ssh;
mod tunnel;

/// The programs under test: `adit` and `aditd` in one file.
const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
