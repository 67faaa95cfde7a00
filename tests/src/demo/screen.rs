//! Prints the demo's text on standard output: plain text, with bold and colours on a terminal.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

#[derive(Clone, Copy)]
pub(super) struct Screen {
    colour: bool,
}

/// The machine on whose terminal a command is typed.
#[derive(Clone, Copy)]
pub(super) enum At {
    Server,
    Laptop,
}

impl Screen {
    /// Colours only on a terminal that supports them, and only if `NO_COLOR` is not set.
    pub(super) fn new() -> Self {
        let able = std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            colour: able && io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Prints a heading.
    pub(super) fn heading(&self, text: &str) {
        self.write(format_args!("\n{}\n", self.styled(BOLD, text)));
    }

    /// Prints a paragraph.
    pub(super) fn talk(&self, text: impl fmt::Display) {
        self.write(format_args!("{text}\n"));
    }

    /// Prints a command as a person would type it.
    pub(super) fn command(&self, at: At, command: &str) {
        let prompt = match at {
            At::Server => "server$",
            At::Laptop => "laptop$",
        };
        self.write(format_args!("{} {}\n", self.styled(DIM, prompt), self.styled(BOLD, command)));
    }

    /// Prints the output of a command.
    pub(super) fn output(&self, text: &str) {
        for line in text.lines() {
            self.write(format_args!("  {line}\n"));
        }
    }

    /// Prints a piece of an answer at once.
    pub(super) fn piece(&self, text: &str) {
        // A model may send control characters; they must not reach the terminal.
        let harmless: String =
            text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        self.write(format_args!("{harmless}"));
    }

    /// A closed terminal or pipe does not stop the demo: the exit code reports the result.
    fn write(&self, text: fmt::Arguments<'_>) {
        let mut out = io::stdout().lock();
        let _ = out.write_fmt(text).and_then(|()| out.flush());
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.colour { format!("{style}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// A duration for people, with about three digits.
pub(super) fn shown(time: std::time::Duration) -> String {
    match time.as_secs_f64() * 1e3 {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1000.0 => format!("{ms:.1} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::shown;

    #[test]
    fn a_duration_is_short_at_every_size() {
        for (micros, text) in
            [(42, "0.04 ms"), (9_876, "9.88 ms"), (30_040, "30.0 ms"), (1_234_000, "1.23 s")]
        {
            assert_eq!(shown(Duration::from_micros(micros)), text);
        }
    }
}
