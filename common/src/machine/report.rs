//! What people see: failures, exit codes, and the log.

use std::{
    fmt,
    io::{IsTerminal, Write},
    process::ExitCode,
};

use tracing_subscriber::{
    Layer,
    filter::FilterExt,
    fmt::{format::Writer, time::FormatTime},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::machine::log;

pub use proto::failure::{Exit, Failure};
use proto::human;

impl crate::machine::files::FileError {
    /// The failure, with the cure for a file that `setting` names.
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

/// Ends a program: prints a failure to standard error and gives its exit code.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&failure);
            ExitCode::from(u8::from(failure.exit_code()))
        }
    }
}

/// What a peer has said may be in any text: what a terminal would obey is shown instead.
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

/// What a peer has said, as it may be shown on a terminal.
pub fn harmless(text: impl fmt::Display) -> String {
    Harmless(text).to_string()
}

/// Talk, to standard error. A closed terminal is no reason to die.
pub fn say(text: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", Harmless(text));
}

/// Data, to standard output.
///
/// # Errors
/// When standard output can't be written: the caller's data would be lost.
pub fn data(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match writeln!(out, "{}", Harmless(text)).and_then(|()| out.flush()) {
        // The reader has seen enough, as with `head`.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Failure::new("cannot write to standard output").source(e)),
    }
}

/// Sends the log to standard error: at a terminal with the local time of day, elsewhere with the
/// whole time in UTC. `verbose` counts `-v`; the environment variable `ADIT_LOG`
/// overrules it.
pub fn start_log(verbose: u8) {
    let filter = std::env::var("ADIT_LOG")
        .ok()
        .and_then(|f| f.parse().ok())
        .unwrap_or_else(|| tracing_subscriber::EnvFilter::new(log::directives(verbose)));
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(verbose > 0);
    let lines = if terminal {
        lines.with_timer(ForPeople).boxed()
    } else if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal has its own clock.
        lines.without_time().boxed()
    } else {
        lines.boxed()
    };
    let lines = lines.with_filter(filter.and(log::Bounded::default()));
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// The time of day where the person is.
struct ForPeople;

impl FormatTime for ForPeople {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", chrono::Local::now().format("%H:%M:%S"))
    }
}

/// Writes a panic to the log instead of a bare backtrace, and lets the process go on where it can.
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
