//! What the tests, the demo and the benchmarks share: real processes of both ends, and a stand-in for Ollama.

pub mod demo;
pub mod ollama;
pub mod parsers;
pub mod path;
pub mod process;
pub mod raw;
pub mod skip;
pub mod sshd;
pub mod world;
