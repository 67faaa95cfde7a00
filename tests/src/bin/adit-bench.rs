//! The benchmark: Adit beside no tunnel, `ssh -L` and other tunnels, in one command.

use std::process::ExitCode;

use common::machine::memory;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::ALLOCATOR;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    tests::process::run_as_named();
    tests::bench::run(std::env::args_os())
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    use common::machine::report::{Failure, finish};
    finish(Err(Failure::new(
        "the benchmark needs Linux: it measures processes by /proc, in network namespaces",
    )))
}
