//! `aditd`.

use common::machine::memory::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> std::process::ExitCode {
    server::run(std::env::args_os())
}
