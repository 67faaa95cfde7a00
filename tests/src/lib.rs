//! What the tests, the demo and the benchmarks share: real processes of both ends, and a stand-in
//! for Ollama.

pub mod credentials;
pub mod crossroads;
pub mod demo;
pub mod disk;
pub mod kept;
#[cfg(target_os = "linux")]
pub mod lab;
pub mod laptop;
pub mod load;
pub mod ollama;
pub mod ordinary;
pub mod over_ssh;
pub mod parsers;
pub mod path;
pub mod process;
pub mod raw;
pub mod skip;
pub mod sshd;
pub mod stranger;
pub mod terminal;
pub mod timing;
pub mod told;
pub mod world;
