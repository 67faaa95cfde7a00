//! The demo: everything from an invitation to a revocation, with real processes, in one command.

use std::process::ExitCode;

use common::machine::memory::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    tests::process::run_as_named();
    tests::demo::run(std::env::args_os())
}
