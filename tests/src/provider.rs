//! A real OpenID Provider: the npm package `oidc-provider`, on loopback.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use common::machine::files;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{skip::skip_test, world::SOON};

/// The secret of the client `adit` there.
pub const CLIENT_SECRET: &str = "a-secret-of-the-box";

/// A running provider. Dropping it kills it.
pub struct Provider {
    port: u16,
    /// Where the secret of the client `adit` is.
    dir: TempDir,
    _child: Child,
}

impl Provider {
    /// Starts one that knows nobody. `None`, with the test skipped, if the package is not installed.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start() -> Option<Self> {
        let path = std::env::var("ADIT_TEST_OIDC_PATH").unwrap_or_default();
        if !Path::new(&path).join("oidc-provider").is_dir() {
            skip_test("the npm package `oidc-provider` is not installed (ADIT_TEST_OIDC_PATH)");
            return None;
        }
        let script: PathBuf =
            [env!("CARGO_MANIFEST_DIR"), "clients", "oidc_provider.mjs"].iter().collect();
        let mut child = Command::new("node")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("node runs");
        let stdout = child.stdout.take().expect("its output");
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(4 * SOON, lines.next_line()).await.expect("in time");
        let port = line.expect("read").and_then(|line| line.parse().ok()).expect("its port");
        let dir = tempfile::tempdir().expect("a temporary directory");
        files::create(&dir.path().join("secret"), CLIENT_SECRET.as_bytes()).expect("written");
        Some(Self { port, dir, _child: child })
    }

    /// A file with the secret of the client `adit`.
    pub fn secret_file(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    /// The issuer, which is its address too.
    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a person, or changes one.
    pub async fn person(&self, name: &str, groups: &[&str]) {
        let email = format!("{name}@example.com");
        self.tell("person", json!({ "name": name, "email": email, "groups": groups })).await;
    }

    /// Tells it what to do: see the script.
    ///
    /// # Panics
    /// If it cannot.
    pub async fn tell(&self, command: &str, body: Value) -> Value {
        let text = self.post(&format!("/test/{command}"), &["--data", &body.to_string()]).await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{command}: {text}"))
    }

    /// A new token of a person, for this audience.
    ///
    /// # Panics
    /// If it gives none.
    pub async fn token(&self, name: &str, audience: &str) -> String {
        let form = format!("grant_type=client_credentials&resource=urn:{audience}");
        let user = format!("{name}:{name}-secret");
        let text = self.post("/token", &["--user", &user, "--data", &form]).await;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    async fn post(&self, path: &str, args: &[&str]) -> String {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "120"]);
        command.args(args).arg(format!("{}{path}", self.issuer())).kill_on_drop(true);
        let out = command.output().await.expect("curl runs");
        assert!(out.status.success(), "{path}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }
}
