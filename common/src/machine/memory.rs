//! The allocator of the programs.

#[cfg(target_os = "linux")]
use commonware_allocator::mimalloc::{Config, MiMalloc, Purge};

/// The type of what a program names as its `#[global_allocator]`.
#[cfg(target_os = "linux")]
pub type Allocator = MiMalloc;

/// What a program names as its `#[global_allocator]`.
///
/// On Linux it is mimalloc, which gives freed memory back to the system at once, also when the
/// program has nothing more to do: with a delay it would do so only at its next allocations. Huge
/// pages would keep 2 MiB for a few bytes. The allocator of glibc keeps most of what a burst took.
/// Other systems keep their own allocator.
#[cfg(target_os = "linux")]
pub const ALLOCATOR: Allocator = MiMalloc::new(Config {
    purge: Purge::After(std::time::Duration::ZERO),
    transparent_huge_pages: false,
    ..Config::DEFAULT
});

/// The type of what a program names as its `#[global_allocator]`.
#[cfg(not(target_os = "linux"))]
pub type Allocator = std::alloc::System;

/// What a program names as its `#[global_allocator]`: the one of the system.
#[cfg(not(target_os = "linux"))]
pub const ALLOCATOR: Allocator = std::alloc::System;
