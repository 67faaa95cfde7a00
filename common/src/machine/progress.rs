//! Lines at the terminal that say what is waited for. Elsewhere nothing is shown.

use std::{
    io::Write,
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::human;

const TICK: Duration = Duration::from_millis(120);
/// The columns of the sign before the text.
const SIGN: usize = 2;

/// What is shown now, one below the other, each with a number of its own.
static SHOWN: Mutex<Vec<(u64, ProgressBar)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);
static LINES: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Shows what is waited for, until it is dropped.
pub struct Progress {
    number: u64,
    bar: ProgressBar,
}

impl Progress {
    /// Shows a text, if standard error is a terminal, and if it takes longer than a blink.
    pub fn show(text: &str) -> Self {
        let bar = LINES.add(ProgressBar::new_spinner().with_message(fitted(text)));
        // Without colours, also where `NO_COLOR` is not set.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        let number = NEXT.fetch_add(1, Relaxed);
        shown().push((number, bar.clone()));
        Self { number, bar }
    }

    /// Shows another text in its place.
    pub fn set(&self, text: &str) {
        self.bar.set_message(fitted(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        shown().retain(|(number, _)| *number != self.number);
        self.bar.finish_and_clear();
        LINES.remove(&self.bar);
    }
}

/// Nothing is shown until this is dropped: a person is asked something.
pub struct NoProgress(());

impl NoProgress {
    /// Takes away what is shown.
    pub fn begin() -> Self {
        shown().iter().for_each(|(_, bar)| bar.finish_and_clear());
        Self(())
    }
}

impl Drop for NoProgress {
    fn drop(&mut self) {
        for (_, bar) in &*shown() {
            bar.reset();
            bar.enable_steady_tick(TICK);
        }
    }
}

/// Writes lines to standard error, above what is shown. At a terminal, lines are broken between
/// words. An error is ignored: nobody is there to read about it.
pub(crate) fn write_lines(text: &str) {
    let text = match stderr_columns() {
        Some(width) => folded(text, width),
        None => text.to_owned(),
    };
    let write = || {
        let _ = std::io::stderr().write_all(text.as_bytes());
    };
    let is_alone = shown().is_empty();
    if is_alone { write() } else { LINES.suspend(write) }
}

/// A text beside the sign, broken between words at a narrow terminal.
fn fitted(text: &str) -> String {
    let width = stderr_columns().unwrap_or(usize::MAX);
    human::wrapped(text, SIGN, width.saturating_sub(1))
}

/// The width of the terminal that standard error is, if it is one and knows its width.
fn stderr_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// A text whose lines are broken between words where they are longer than `width`.
fn folded(text: &str, width: usize) -> String {
    let fold = |line: &str| {
        let lead = line.len() - line.trim_start_matches(' ').len();
        format!("{}{}", &line[..lead], human::wrapped(&line[lead..], lead + 2, width))
    };
    text.split('\n').map(fold).collect::<Vec<_>>().join("\n")
}

fn shown() -> MutexGuard<'static, Vec<(u64, ProgressBar)>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_stay_indented() {
        assert_eq!(folded("a short line\n", 40), "a short line\n");
        assert_eq!(
            folded("error: no answer from gpu\n  Caused by: nothing came back\n", 20),
            "error: no answer\n  from gpu\n  Caused by:\n    nothing came\n    back\n"
        );
        let colours = "\u{1b}[2m21:14:03\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m listening now";
        assert_eq!(folded(colours, 31), colours);
    }
}
