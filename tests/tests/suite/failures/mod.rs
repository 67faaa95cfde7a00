//! Bad input, damaged state, and a full disk.

mod as_data;
mod bad_input;
mod bad_state;
mod configuration;
mod cures;
mod demo;
mod full_disk;
mod links;
mod memory;
mod nonsense;
#[cfg(target_os = "linux")]
mod sandbox;
