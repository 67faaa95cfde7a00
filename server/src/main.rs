//! `aditd`.

use common::machine::memory;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::ALLOCATOR;

fn main() -> std::process::ExitCode {
    server::run(std::env::args_os())
}
