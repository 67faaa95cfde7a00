//! Access to the machine: files, processes, the terminal.

pub mod ask;
pub mod completions;
pub mod config_text;
pub mod control;
pub mod descriptors;
pub mod diagnosis;
pub mod files;
pub mod format;
pub mod json;
mod log;
pub mod log_file;
pub mod log_lines;
pub mod memory;
pub mod network;
pub mod owner;
pub mod process;
pub mod progress;
pub mod report;
pub mod service;
pub mod version;
