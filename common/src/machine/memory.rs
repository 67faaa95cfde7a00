//! The allocator of the programs.

/// What a program names as its `#[global_allocator]`.
///
/// On Linux it is jemalloc with background threads: memory that was freed goes back to the system
/// within seconds, also when the program has nothing to do. The allocator of glibc keeps most of it
/// for good. `.cargo/config.toml` has its settings. Other systems keep their own allocator.
#[cfg(target_os = "linux")]
pub use tikv_jemallocator::Jemalloc as Allocator;

/// What a program names as its `#[global_allocator]`: the one of the system.
#[cfg(not(target_os = "linux"))]
pub use std::alloc::System as Allocator;
