//! Questions to the person at the terminal. Without a terminal there are none, and nobody waits for an answer.

use std::{
    io::{BufRead, IsTerminal, Write},
    time::Duration,
};

use common::report;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// A person may have to look for a passphrase.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// No answer is longer.
const LONGEST: u64 = 4096;
/// One question at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Whether there is anybody to ask.
pub(crate) fn somebody_is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for something that must not be seen. `None` without an answer.
pub(crate) async fn secret(prompt: &str) -> Option<Zeroizing<String>> {
    let prompt = report::harmless(prompt);
    answer(move || rpassword::prompt_password(prompt).ok().map(Zeroizing::new)).await
}

/// Asks for a line. `None` without an answer.
pub(crate) async fn line(prompt: &str) -> Option<Zeroizing<String>> {
    let prompt = report::harmless(prompt);
    answer(move || {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "{prompt}").and_then(|()| stderr.flush());
        let mut line = Zeroizing::new(String::new());
        let read = std::io::Read::take(std::io::stdin().lock(), LONGEST).read_line(&mut line).ok()?;
        (read > 0).then(|| Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
    })
    .await
}

/// Asks until it hears `yes` or `no`, or whether the answer is `also`, as OpenSSH takes a fingerprint for a yes.
pub(crate) async fn yes(prompt: &str, also: &str) -> bool {
    let mut answer = line(prompt).await;
    for _ in 0..3 {
        match answer.as_deref().map(|answer| answer.trim()) {
            Some(said) if said.eq_ignore_ascii_case("yes") || said == also => return true,
            Some(said) if said.eq_ignore_ascii_case("no") => return false,
            Some(_) => answer = line("Please type 'yes', 'no' or the fingerprint: ").await,
            None => return false,
        }
    }
    false
}

/// Lets `ask` block on a thread of its own. Whatever becomes of it, the terminal is left as it was found.
async fn answer(ask: impl FnOnce() -> Option<Zeroizing<String>> + Send + 'static) -> Option<Zeroizing<String>> {
    let _turn = TURN.lock().await;
    if !somebody_is_there() {
        return None;
    }
    let _as_it_was = tcgetattr(std::io::stdin()).ok().map(AsItWas);
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(ask)).await.ok()?.ok()?
}

/// The terminal's settings: a program that is stopped at a prompt must not leave it without echo.
struct AsItWas(Termios);

impl Drop for AsItWas {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
