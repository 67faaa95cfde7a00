//! `adit`.

fn main() -> std::process::ExitCode {
    client::run(std::env::args_os())
}
