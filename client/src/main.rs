//! `adit`.

use common::machine::memory::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> std::process::ExitCode {
    client::run(std::env::args_os())
}
