//! Prints the lines of a log as JSON, one object in each line.

use std::{
    io::{self, BufRead, Write},
    process::{Command, ExitStatus, Stdio},
};

use proto::log_line::LogLine;

use crate::machine::{
    format::to_json_line,
    report::{Failure, has_printed},
};

/// Prints lines. Returns whether somebody reads them.
///
/// # Errors
/// If standard output cannot be written.
pub fn print(lines: impl IntoIterator<Item = LogLine>) -> Result<bool, Failure> {
    let mut text = String::new();
    for line in lines {
        text += &to_json_line(&line)?;
        text.push('\n');
    }
    has_printed();
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader has closed the pipe because it has enough, as `head` does.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::new("cannot write to standard output").source(e)),
        Ok(()) => Ok(true),
    }
}

/// Runs a command that shows a log, and prints its lines: of the journal as JSON, or text.
///
/// # Errors
/// If the command cannot be run or read, or standard output cannot be written.
pub fn of_command(mut command: Command, is_journal: bool) -> Result<Option<ExitStatus>, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed =
        |e: io::Error| Failure::new("cannot show the log").source(format!("{program}: {e}"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let lines = child.stdout.take().map(io::BufReader::new).into_iter();
    for line in lines.flat_map(|out| out.split(b'\n')) {
        let line = line.map_err(failed)?;
        let line = String::from_utf8_lossy(&line);
        let line =
            if is_journal { LogLine::of_journal(&line) } else { Some(LogLine::of_text(&line)) };
        if line.is_some() && !print(line)? {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
    }
    child.wait().map(Some).map_err(failed)
}
