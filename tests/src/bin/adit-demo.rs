//! The demo: everything from enrolling to revocation, with real processes, in one command.

fn main() {
    tests::process::run_as_named();
}
