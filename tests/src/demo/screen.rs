//! What the demo writes to standard output: plain text, with a little weight on a terminal.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Standard output.
#[derive(Clone, Copy)]
pub(super) struct Screen {
    colour: bool,
}

/// Whose terminal a command is typed into.
#[derive(Clone, Copy)]
pub(super) enum At {
    /// The machine with the GPU.
    Server,
    /// The device.
    Laptop,
}

impl Screen {
    /// Colours are for a terminal that can and whose owner wants them.
    pub(super) fn new() -> Self {
        let able = std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            colour: able && io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Begins a part.
    pub(super) fn heading(&self, text: &str) {
        self.write(format_args!("\n{}\n", self.styled(BOLD, text)));
    }

    /// Says something.
    pub(super) fn talk(&self, text: impl fmt::Display) {
        self.write(format_args!("{text}\n"));
    }

    /// Shows a command as a person would type it.
    pub(super) fn command(&self, at: At, command: &str) {
        let prompt = match at {
            At::Server => "server$",
            At::Laptop => "laptop$",
        };
        self.write(format_args!("{} {}\n", self.styled(DIM, prompt), self.styled(BOLD, command)));
    }

    /// Shows what a command has written.
    pub(super) fn output(&self, text: &str) {
        for line in text.lines() {
            self.write(format_args!("  {line}\n"));
        }
    }

    /// Writes a piece of an answer, at once.
    pub(super) fn piece(&self, text: &str) {
        // A model may say anything, but it may not steer the terminal.
        let harmless: String =
            text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        self.write(format_args!("{harmless}"));
    }

    /// A closed terminal or pipe is no reason to stop: whether everything held is in the exit code.
    fn write(&self, text: fmt::Arguments<'_>) {
        let mut out = io::stdout().lock();
        let _ = out.write_fmt(text).and_then(|()| out.flush());
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.colour { format!("{style}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// A duration for people, in three digits or so.
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
