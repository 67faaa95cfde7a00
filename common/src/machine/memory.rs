//! The allocator of the programs.

#[cfg(target_os = "linux")]
use commonware_allocator::mimalloc::{Config, MiMalloc, Purge};

/// The type of what a program names as its `#[global_allocator]`.
#[cfg(target_os = "linux")]
pub type Allocator = MiMalloc;

/// What a program names as its `#[global_allocator]`.
///
/// On Linux it is mimalloc without a purge delay: it returns freed memory to the system at once. With
/// a delay, an idle program would keep it until its next allocation. Huge pages are off, because
/// they would keep 2 MiB for a few bytes. The allocator of glibc never returns most of the memory of
/// a burst. On other systems it is the system's allocator.
#[cfg(target_os = "linux")]
pub const ALLOCATOR: Allocator = MiMalloc::new(Config {
    purge: Purge::After(std::time::Duration::ZERO),
    transparent_huge_pages: false,
    ..Config::DEFAULT
});

/// The type of what a program names as its `#[global_allocator]`.
#[cfg(not(target_os = "linux"))]
pub type Allocator = std::alloc::System;

/// What a program names as its `#[global_allocator]`: the system's allocator.
#[cfg(not(target_os = "linux"))]
pub const ALLOCATOR: Allocator = std::alloc::System;
