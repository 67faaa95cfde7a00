//! An answer without an end that curl reads, until it is cut.

use tests::world::SOON;
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStdout},
};

use super::Https;

const ENDLESS: &str = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":-1}}"#;

/// The answer. Dropping it ends curl.
pub(super) struct Endless {
    curl: Child,
    answer: ChildStdout,
}

impl Endless {
    /// Asks for one with this key or token; nothing of it may have come yet.
    pub(super) fn ask(https: &Https, key: &str) -> Self {
        Self::ask_with(https, &["--header", &format!("Authorization: Bearer {key}")])
    }

    /// [`Endless::ask`]; some of it has come.
    pub(super) async fn begun(https: &Https, key: &str) -> Self {
        let mut begun = Self::ask(https, key);
        begun.goes_on().await;
        begun
    }

    /// [`Endless::begun`], with these flags of curl.
    pub(super) async fn begun_with(https: &Https, flags: &[&str]) -> Self {
        let mut begun = Self::ask_with(https, flags);
        begun.goes_on().await;
        begun
    }

    fn ask_with(https: &Https, flags: &[&str]) -> Self {
        let args = [flags, &["--data", ENDLESS]].concat();
        let mut curl = https.curl_command("/api/generate", &args).spawn().expect("curl runs");
        let answer = curl.stdout.take().expect("its output");
        Self { curl, answer }
    }

    /// Reads a part of it.
    pub(super) async fn goes_on(&mut self) {
        let mut part = [0; 64];
        let read = tokio::time::timeout(SOON, self.answer.read_exact(&mut part)).await;
        read.expect("in time").expect("a part of the answer");
    }

    /// Waits until the server has cut it, as curl sees it.
    pub(super) async fn was_cut(mut self) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(SOON, self.answer.read_to_end(&mut rest)).await;
        read.expect("it is cut").expect("read");
        let ended = tokio::time::timeout(SOON, self.curl.wait()).await;
        let ended = ended.expect("it ends").expect("ended");
        // 56: the connection was reset. 18: it ended before the answer did.
        assert!(matches!(ended.code(), Some(56 | 18)), "{ended:?}");
    }
}
