//! What people see: errors with their causes and their cure, exit codes, and the log.

use std::{error::Error, fmt, io::Write, process::ExitCode};

/// How a command ended, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// This device is not, or no longer, allowed.
    NotAllowed = 4,
}

/// An error as the person at the terminal meets it: what failed, why, and what cures it.
#[derive(Debug)]
pub struct Failure {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    hints: Vec<String>,
    exit: Exit,
}

impl Failure {
    /// Something failed.
    pub fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), source: None, hints: Vec::new(), exit: Exit::Failed }
    }

    /// An error, with its own sources as the causes.
    pub fn from_error(error: impl Error + Send + Sync + 'static) -> Self {
        Self {
            what: error.to_string(),
            source: error.source().map(|s| flatten(s).into()),
            hints: Vec::new(),
            exit: Exit::Failed,
        }
    }

    /// Why.
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What cures it, best with the exact command. May be said more than once.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hints.push(hint.to_string());
        self
    }

    /// The exit code, if it isn't 1.
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// Keeps a chain of sources that can't be owned, as text.
fn flatten(error: &(dyn Error + 'static)) -> Flat {
    Flat { text: error.to_string(), source: error.source().map(|s| Box::new(flatten(s))) }
}

#[derive(Debug)]
struct Flat {
    text: String,
    source: Option<Box<Flat>>,
}

impl fmt::Display for Flat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Flat {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        let mut cause = self.source.as_deref().map(|s| s as &dyn Error);
        let mut said = self.what.clone();
        while let Some(c) = cause {
            let text = c.to_string();
            if text != said {
                write!(f, "\n  Caused by: {text}")?;
            }
            said = text;
            cause = c.source();
        }
        for (i, hint) in self.hints.iter().enumerate() {
            f.write_str(if i == 0 { "\n\nhint: " } else { "\n      " })?;
            f.write_str(hint)?;
        }
        Ok(())
    }
}

impl From<crate::private::FileError> for Failure {
    fn from(error: crate::private::FileError) -> Self {
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
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// What a peer has said may be in any text: what a terminal would obey is shown instead.
struct Harmless<T>(T);

impl<T: fmt::Display> fmt::Display for Harmless<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            if c.is_control() && c != '\n' && c != '\t' {
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
        other => other.map_err(|e| Failure::new("cannot write to standard output").because(e)),
    }
}

/// Sends the log to standard error. `verbose` counts `-v`; the environment variable `ADIT_LOG`
/// overrules it.
pub fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "warn,client=info,server=info,common=info",
        1 => "warn,client=debug,server=debug,common=debug",
        _ => "debug,russh=info,client=trace,server=trace,common=trace",
    };
    let filter = std::env::var("ADIT_LOG")
        .ok()
        .and_then(|f| f.parse().ok())
        .unwrap_or_else(|| tracing_subscriber::EnvFilter::new(default));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none();
    // Under systemd the journal has its own clock.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(verbose > 0);
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().try_init()
    } else {
        log.try_init()
    };
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
    fn an_error_shows_what_why_and_the_cure() {
        let cause = std::io::Error::new(
            std::io::ErrorKind::AddrInUse,
            "address already in use by `ollama` (pid 812)",
        );
        let failure = Failure::new("cannot listen on localhost:11434")
            .because(cause)
            .hint("run `adit up --listen localhost:11500`")
            .hint("or stop it");
        assert_eq!(
            failure.to_string(),
            "error: cannot listen on localhost:11434\n  Caused by: address already in use by `ollama` (pid 812)\n\n\
             hint: run `adit up --listen localhost:11500`\n      or stop it"
        );
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_obeyed() {
        assert_eq!(Harmless("a\u{1b}[2J\u{9b}x\nö").to_string(), "a\\u{1b}[2J\\u{9b}x\nö");
    }

    #[test]
    fn the_whole_chain_of_causes_is_kept_and_nothing_is_said_twice() {
        let error =
            crate::private::FileError::io("read", "/x")(std::io::Error::other("disk on fire"));
        let text = Failure::from(error).to_string();
        assert!(text.starts_with("error: cannot read `/x`\n  Caused by: disk on fire"), "{text}");
    }
}
