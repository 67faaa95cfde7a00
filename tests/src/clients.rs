//! Real, unmodified programs that use Ollama's API: curl, and the client libraries that applications use.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use crate::skip::skip_test;

const WITHIN: Duration = Duration::from_secs(300);

/// A program, and the script of `tests/clients` that it runs.
#[derive(Debug)]
pub struct Client {
    program: String,
    script: &'static str,
}

impl Client {
    /// curl, from a shell. `None`, with the test skipped, if there is none.
    pub fn curl() -> Option<Self> {
        let is_there = has("curl", &["--version"]);
        Self::of("bash".to_owned(), "curl.sh", is_there, "there is no curl")
    }

    /// A script for a Python package; `None`, with the test skipped, if the package is not installed.
    pub fn python(script: &'static str, package: &str) -> Option<Self> {
        let python = std::env::var("ADIT_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let is_there = has(&python, &["-c", &format!("import {package}")]);
        let lack = format!("the Python package `{package}` is not installed");
        Self::of(python, script, is_there, &lack)
    }

    /// A script for a npm package; `None`, with the test skipped, if the package is not installed.
    pub fn node(script: &'static str, package: &str) -> Option<Self> {
        let is_there = std::env::var("ADIT_TEST_NODE_PATH")
            .is_ok_and(|path| Path::new(&path).join(package).is_dir())
            && has("node", &["--version"]);
        let lack =
            format!("node or the npm package `{package}` is not installed (ADIT_TEST_NODE_PATH)");
        Self::of("node".to_owned(), script, is_there, &lack)
    }

    fn of(program: String, script: &'static str, is_there: bool, lack: &str) -> Option<Self> {
        let is_skipped = !is_there && skip_test(lack);
        (!is_skipped).then_some(Self { program, script })
    }

    /// The command that runs it against the Ollama at `url`. It reaches the stand-in itself at
    /// `direct`.
    pub fn command(&self, url: &str, direct: &str) -> Command {
        let mut command = Command::new(&self.program);
        let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "clients", self.script].iter().collect();
        command.arg(script).env("ADIT_URL", url).env("ADIT_DIRECT", direct).kill_on_drop(true);
        for proxy in
            ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        {
            command.env_remove(proxy);
        }
        command
    }

    /// Runs it to its end. `set` puts more variables into its environment.
    ///
    /// # Panics
    /// If it does not end well within five minutes.
    pub async fn passes(&self, url: &str, direct: &str, set: impl FnOnce(&mut Command)) {
        let mut command = self.command(url, direct);
        set(&mut command);
        let out = tokio::time::timeout(WITHIN, command.output()).await;
        let out = out.expect("in time").expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success(), "{}: {}\n{}", self.script, said.0, said.1);
    }
}

fn has(program: &str, args: &[&str]) -> bool {
    let mut command = std::process::Command::new(program);
    command.args(args).stdin(Stdio::null()).output().is_ok_and(|out| out.status.success())
}
