//! Output for people: failures, exit codes, and the log.

use std::{
    fmt,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tracing_subscriber::{
    Layer,
    filter::FilterExt,
    fmt::{format::Writer, time::FormatTime},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::machine::{log, log_file::ToFiles, progress};

pub use proto::failure::{Exit, Failure};
use proto::{
    doctor::text::Style,
    document::{Document, NoAnswer, escaped},
    human,
    typed::{Flag, with_flags},
};

/// The longest line of a report, and the shortest one at a narrow terminal, in columns.
const MOST_COLUMNS: usize = 80;
const LEAST_COLUMNS: usize = 40;

impl crate::machine::files::FileError {
    /// The failure, with the cure for a file whose place `setting` decides.
    pub fn named_by(self, setting: &str) -> Failure {
        let hint = self.hint_for(setting);
        Failure::from_error(self).hint(hint)
    }
}

impl From<crate::machine::files::FileError> for Failure {
    fn from(error: crate::machine::files::FileError) -> Self {
        let hint = error.hint();
        Self::from_error(error).hint(hint)
    }
}

/// Whether a failure is printed to standard output, too, as JSON.
static FAIL_IN_JSON: AtomicBool = AtomicBool::new(false);
/// Whether standard output has got something already.
static HAS_PRINTED: AtomicBool = AtomicBool::new(false);

/// From now on the failure of this program is also printed to standard output, as JSON, unless
/// something was printed there before.
pub fn fail_in_json() {
    FAIL_IN_JSON.store(true, Relaxed);
}

/// Says that standard output has got something by other means than [`data`].
pub fn has_printed() {
    HAS_PRINTED.store(true, Relaxed);
}

fn print_as_json(failure: Failure) {
    if !FAIL_IN_JSON.load(Relaxed) || HAS_PRINTED.load(Relaxed) {
        return;
    }
    if let Ok(text) = serde_json::to_string(&Document::new(NoAnswer::from(failure))) {
        // If standard output is closed, the exit code still says it.
        let _ = data(escaped(text));
    }
}

/// Ends a program: prints a failure to standard error and gives its exit code.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    finish_with(result.map(|()| None))
}

/// Like [`finish`], for a command that may have written all it has to say: then only its exit code is
/// given.
pub fn finish_with(result: Result<Option<Exit>, Failure>) -> ExitCode {
    match result {
        Ok(exit) => exit.map_or(ExitCode::SUCCESS, |exit| ExitCode::from(u8::from(exit))),
        Err(failure) => {
            let failure = failure.map_hints(|hint| typed(hint));
            say(&failure);
            let exit = u8::from(failure.exit_code());
            print_as_json(failure);
            ExitCode::from(exit)
        }
    }
}

/// This program, and the flags that its commands need on this machine.
static COMMANDS: OnceLock<(&str, Vec<Flag>)> = OnceLock::new();

/// Says, once, with which places `program` was started that are not the usual ones (flag, place, the
/// usual place): what is told of its commands from now on names them.
pub fn commands_need(program: &'static str, places: &[(&'static str, &Path, Option<PathBuf>)]) {
    let flag = |(name, place, usual): &(&'static str, &Path, Option<PathBuf>)| {
        let place = std::path::absolute(place).unwrap_or_else(|_| place.to_path_buf());
        let value = place.to_str().filter(|_| usual.as_ref() != Some(&place))?.to_owned();
        Some(Flag { name, value })
    };
    let _ = COMMANDS.set((program, places.iter().filter_map(flag).collect()));
}

/// A text for people, whose commands of this program work when they are typed as they stand.
pub fn typed(text: impl AsRef<str>) -> String {
    match COMMANDS.get() {
        Some((program, flags)) => with_flags(text.as_ref(), program, flags),
        None => text.as_ref().to_owned(),
    }
}

/// Text for a terminal. It may contain text of a peer, so characters that a terminal would obey are
/// escaped.
struct Harmless<T>(T);

impl<T: fmt::Display> fmt::Display for Harmless<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            if human::misleads(c) && c != '\n' && c != '\t' {
                write!(f, "{}", c.escape_default())?
            } else {
                write!(f, "{c}")?
            }
        }
        Ok(())
    }
}

/// Text of a peer, safe to show on a terminal.
pub fn harmless(text: impl fmt::Display) -> String {
    Harmless(text).to_string()
}

/// Prints a message to standard error. A closed standard error is ignored.
pub fn say(text: impl fmt::Display) {
    progress::write_lines(&format!("{}\n", Harmless(text)));
}

/// Prints data to standard output.
///
/// # Errors
/// If standard output cannot be written: the data would be lost without notice.
pub fn data(text: impl fmt::Display) -> Result<(), Failure> {
    data_in_colour(Harmless(text))
}

/// Writes data to standard output as it is: text of others in it must be harmless already.
///
/// # Errors
/// As [`data`].
pub fn data_in_colour(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    has_printed();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // The reader has closed the pipe because it has enough, as `head` does.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Failure::new("cannot write to standard output").source(e)),
    }
}

/// How standard output shows a report: with colours only at a terminal, and only if `NO_COLOR` is not
/// set.
pub fn style() -> Style {
    let out = std::io::stdout();
    let columns = rustix::termios::tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col));
    let width = columns.filter(|columns| *columns > 0).unwrap_or(MOST_COLUMNS);
    Style {
        colour: out.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        width: width.clamp(LEAST_COLUMNS, MOST_COLUMNS),
    }
}

/// Sends the log to standard error: on a terminal with the local time of day, otherwise with date
/// and time in UTC; and to the files of [`log_file`](crate::machine::log_file). `verbose` is the number of `-v`; the environment variable `ADIT_LOG` replaces
/// it.
pub fn start_log(verbose: u8) {
    let filter = std::env::var("ADIT_LOG")
        .ok()
        .and_then(|f| f.parse().ok())
        .unwrap_or_else(|| log::filter(verbose));
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| LogLines)
        .with_ansi(colour)
        .with_target(verbose > 0);
    let lines = if terminal {
        lines.with_timer(ForPeople).boxed()
    } else if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal adds the time itself.
        lines.without_time().boxed()
    } else {
        lines.boxed()
    };
    let files = tracing_subscriber::fmt::layer()
        .with_writer(|| ToFiles)
        .with_ansi(false)
        .with_target(verbose > 0)
        .with_filter(filter.clone().and(log::Bounded::default()));
    let lines = lines.with_filter(filter.and(log::Bounded::default()));
    let _ = tracing_subscriber::registry().with(lines).with(files).try_init();
}

/// Writes the lines of the log.
struct LogLines;

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        progress::write_lines(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The local time of day.
struct ForPeople;

impl FormatTime for ForPeople {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", chrono::Local::now().format("%H:%M:%S"))
    }
}

/// Writes a panic to the log instead of standard error.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("this is a defect in adit, please report it: {panic}")
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_obeyed() {
        assert_eq!(Harmless("a\u{1b}[2J\u{9b}x\nö").to_string(), "a\\u{1b}[2J\\u{9b}x\nö");
    }

    #[test]
    fn the_whole_chain_of_causes_is_kept_and_nothing_is_said_twice() {
        let error = crate::machine::files::FileError::io("read", "/x")(std::io::Error::other(
            "disk on fire",
        ));
        let text = Failure::from(error).to_string();
        assert!(text.starts_with("error: cannot read `/x`\n  Caused by: disk on fire"), "{text}");
    }
}
