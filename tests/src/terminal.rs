//! A program at a terminal, and a person who reads and types. `script` (util-linux) makes the
//! terminal.

use std::process::Stdio;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    sync::watch,
};

use crate::world::SOON;

/// A running program at a terminal. Dropping it hangs up.
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: watch::Receiver<String>,
}

impl Terminal {
    /// Whether a test must be skipped because this machine has no `script`; says so.
    pub fn is_missing() -> bool {
        !Self::is_there() && crate::skip::skip_test("there is no `script` to make a terminal with")
    }

    fn is_there() -> bool {
        let out = std::process::Command::new("script")
            .args(["-qefc", "true", "/dev/null"])
            .stdin(Stdio::null())
            .output();
        out.is_ok_and(|out| out.status.success())
    }

    /// Runs `command` at a new terminal.
    ///
    /// # Panics
    /// Without `script`.
    pub fn run(command: &Command) -> Self {
        let command = command.as_std();
        let quoted =
            |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        let line: Vec<String> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
        let mut script = Command::new("script");
        script
            .args(["-qefc", &format!("exec {}", line.join(" ")), "/dev/null"])
            .env("SHELL", "/bin/sh");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = script.spawn().expect("script starts");
        let keyboard = child.stdin.take().expect("a keyboard");
        let mut output = child.stdout.take().expect("a screen");
        let (show, screen) = watch::channel(String::new());
        tokio::spawn(async move {
            let mut bytes = vec![0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes).await {
                show.send_modify(|screen| screen.push_str(&String::from_utf8_lossy(&bytes[..n])));
            }
        });
        Self { child, keyboard, screen }
    }

    /// The same in a shell that goes on after Ctrl-C, and shows the settings of the terminal when the
    /// command has ended.
    ///
    /// # Panics
    /// Without `script`.
    pub fn run_and_show_settings(command: &Command) -> Self {
        let command = command.as_std();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "trap : INT; \"$@\"; stty -a", "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        Self::run(&shell)
    }

    /// Waits until `text` is on the screen.
    ///
    /// # Panics
    /// If it does not come.
    pub async fn shows(&mut self, text: &str) {
        self.shows_times(text, 1).await;
    }

    /// Waits until `text` was on the screen this many times: input before a prompt would be shown
    /// as text.
    ///
    /// # Panics
    /// If it does not come.
    pub async fn shows_times(&mut self, text: &str, times: usize) {
        let shown = self.screen.wait_for(|screen| screen.matches(text).count() >= times);
        let shown = tokio::time::timeout(2 * SOON, shown).await;
        assert!(
            shown.is_ok_and(|shown| shown.is_ok()),
            "`{text}` is not on the screen:\n{}",
            self.screen()
        );
    }

    /// Types a line, and Enter.
    pub async fn types(&mut self, line: &str) {
        self.sends(&format!("{line}\n")).await;
    }

    /// Types Ctrl-C and nothing else: Enter after it would answer the question that it interrupts.
    pub async fn interrupts(&mut self) {
        self.sends("\u{3}").await;
    }

    async fn sends(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).await.expect("typed");
        self.keyboard.flush().await.expect("typed");
    }

    /// Everything that was on the screen.
    pub fn screen(&self) -> String {
        self.screen.borrow().clone()
    }

    /// Waits for the program's end; returns its exit code.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn ended(&mut self) -> Option<i32> {
        let to_the_last_word = async {
            while self.screen.changed().await.is_ok() {}
            self.child.wait().await
        };
        let ended = tokio::time::timeout(2 * SOON, to_the_last_word).await;
        ended
            .unwrap_or_else(|_| panic!("it does not end:\n{}", self.screen()))
            .expect("its end")
            .code()
    }
}
