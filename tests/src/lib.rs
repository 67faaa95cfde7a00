//! Helpers for the tests, the demo and the benchmarks: real processes of both ends, and a stand-in
//! for Ollama.

#![allow(missing_docs, reason = "the crate is not published")]

#[cfg(target_os = "linux")]
pub mod bare_box;
#[cfg(target_os = "linux")]
pub mod bench;
pub mod browser;
pub mod cli_assert;
pub mod clients;
pub mod credentials;
pub mod demo;
pub mod disk;
pub mod doctor;
pub mod endurance;
pub mod fake_clock;
#[cfg(target_os = "linux")]
pub mod lab;
pub mod laptop;
pub mod ollama;
pub mod over_ssh;
pub mod path;
pub mod pebble;
pub mod process;
pub mod provider;
pub mod raw;
pub mod signing_in;
pub mod skip;
pub mod soft_token;
pub mod soft_tpm;
pub mod sshd;
pub mod state_files;
pub mod stats;
pub mod stranger;
#[cfg(target_os = "linux")]
pub mod systemd;
pub mod terminal;
pub mod timing;
#[cfg(target_os = "linux")]
mod tries;
pub mod udp_or_ssh;
pub mod unprivileged;
pub mod world;
