//! `adit`.

use common::machine::memory;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::ALLOCATOR;

fn main() -> std::process::ExitCode {
    client::run(std::env::args_os())
}
