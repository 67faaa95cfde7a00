//! What `--json` does in every command: standard output has one JSON document, also if the command
//! fails. Standard error and the exit code are as without it.

use std::{ffi::OsString, process::ExitCode};

use clap::ArgMatches;
use proto::{
    document::{Document, NoAnswer},
    failure::Exit,
};
use serde::Serialize;

use crate::machine::{
    format,
    report::{self, Failure},
};

/// Prints an answer: the fields of `content`, a struct or a map, after the number of the schema.
///
/// # Errors
/// As [`report::data`].
pub fn answer(content: impl Serialize) -> Result<(), Failure> {
    report::data(format::to_json(&Document::new(content))?)
}

/// Like [`answer`], in one line: for a command that prints one document after another.
///
/// # Errors
/// As [`report::data`].
pub fn line(content: &impl Serialize) -> Result<(), Failure> {
    report::data(format::to_json_line(content)?)
}

/// Sees whether the command that was typed has `--json`: its failure is printed as JSON, too, then.
pub fn heed(matches: &ArgMatches) {
    let mut last = matches;
    while let Some((_, next)) = last.subcommand() {
        last = next;
    }
    if matches!(last.try_get_one::<bool>("json"), Ok(Some(true))) {
        report::fail_in_json();
    }
}

/// Ends a program that cannot use its command line `args`, or that was asked for its help.
pub fn finish_usage(error: &clap::Error, args: &[OsString]) -> ExitCode {
    let _ = error.print();
    let exit = u8::try_from(error.exit_code()).unwrap_or(u8::from(Exit::Usage));
    let mut own = args.iter().take_while(|arg| *arg != "--");
    if error.use_stderr() && own.any(|arg| arg == "--json") {
        let text = error.render().to_string();
        // The exit code says more than this, if standard output is closed.
        let _ = line(&Document::new(NoAnswer::of_usage(&text, Exit::from(i64::from(exit)))));
    }
    ExitCode::from(exit)
}
