//! Writes the manual pages of both programs, made of their own help, into a directory.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: adit-manual DIR");
        return ExitCode::from(2);
    };
    for command in [client::command(), server::command()] {
        if let Err(e) = clap_mangen::generate_to(command, &dir) {
            eprintln!("error: cannot write to `{}`: {e}", dir.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
