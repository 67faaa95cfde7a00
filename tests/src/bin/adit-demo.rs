//! The demo: everything from an invitation to a revocation, with real processes, in one command.

use std::process::ExitCode;

use common::machine::memory;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::ALLOCATOR;

fn main() -> ExitCode {
    tests::process::run_as_named();
    tests::demo::run(std::env::args_os())
}
