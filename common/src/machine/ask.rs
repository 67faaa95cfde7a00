//! Asks the person at the terminal. Without a terminal no question is asked.
//!
//! `rpassword` is not used: its prompt has no time limit, and it does not turn the echo on again when
//! the program ends at a prompt.

use std::{
    io::{BufRead, IsTerminal, Write},
    time::Duration,
};

use crate::machine::{progress::NoProgress, report};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// How long a person may take to answer, for example to look for a passphrase.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The longest answer, in bytes.
const LONGEST: u64 = 4096;
/// One question at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Whether there is a person at a terminal.
pub fn somebody_is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for a secret, which is not shown while it is typed. `None` without an answer.
pub async fn secret(prompt: &str) -> Option<Zeroizing<String>> {
    answer(prompt, Echo::Off).await
}

/// Asks for a line. `None` without an answer.
pub async fn line(prompt: &str) -> Option<Zeroizing<String>> {
    answer(prompt, Echo::On).await
}

/// Asks up to four times for `yes` or `no`. The text `fingerprint` counts as yes, as in OpenSSH; a
/// `y` does not.
pub async fn yes_or_fingerprint(prompt: &str, fingerprint: &str) -> bool {
    let again = "Please type 'yes', 'no' or the fingerprint: ";
    yes_or(prompt, again, |said| said == fingerprint).await
}

/// Asks up to four times for `yes` or `no`, or their first letters.
pub async fn yes(prompt: &str) -> bool {
    let again = "Please type 'yes' or 'no': ";
    yes_or(prompt, again, |said| said.eq_ignore_ascii_case("y")).await
}

async fn yes_or(prompt: &str, again: &str, is_yes: impl Fn(&str) -> bool) -> bool {
    let mut answer = line(prompt).await;
    for _ in 0..3 {
        let Some(said) = answer.as_deref().map(|answer| answer.trim()) else { return false };
        if said.eq_ignore_ascii_case("yes") || is_yes(said) {
            return true;
        }
        if said.eq_ignore_ascii_case("no") || said.eq_ignore_ascii_case("n") {
            return false;
        }
        answer = line(again).await;
    }
    false
}

/// Whether typed text is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Echo {
    On,
    Off,
}

/// Reads a line on a thread of its own. The terminal's settings are always restored.
async fn answer(prompt: &str, echo: Echo) -> Option<Zeroizing<String>> {
    let _turn = TURN.lock().await;
    if !somebody_is_there() {
        return None;
    }
    let _nothing_else = NoProgress::begin();
    // Before the prompt, so that text typed early is not shown either.
    let _as_it_was = match echo {
        Echo::On => None,
        Echo::Off => Some(Hidden::begin()?),
    };
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{}", report::harmless(prompt)).and_then(|()| stderr.flush());
    let read = tokio::task::spawn_blocking(|| {
        let mut line = Zeroizing::new(String::with_capacity(LONGEST as usize));
        let read =
            std::io::Read::take(std::io::stdin().lock(), LONGEST).read_line(&mut line).ok()?;
        (read > 0).then(|| Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
    });
    tokio::time::timeout(PATIENCE, read).await.ok()?.ok()?
}

/// A terminal without echo. Dropping this turns the echo on again, even if the program ends at a
/// prompt.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(std::io::stdin(), OptionalActions::Now, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
