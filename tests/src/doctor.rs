//! What a `doctor` has said, and an upstream that answers as a test wants it to.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use crate::process::Ended;

/// What a `doctor --json` has said.
#[derive(Debug)]
pub struct Diagnosis {
    /// The command.
    pub ended: Ended,
    /// Its lines.
    pub lines: Vec<Value>,
}

impl Diagnosis {
    /// Reads it.
    ///
    /// # Panics
    /// If it is no report.
    #[track_caller]
    pub fn of(ended: Ended) -> Self {
        let report: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        assert_eq!(report["schema"], 1);
        let lines = report["lines"].as_array().expect("lines").clone();
        Self { ended, lines }
    }

    /// The line of this check, if it has one.
    pub fn line(&self, id: &str) -> Option<&Value> {
        self.lines.iter().find(|line| line["id"] == id)
    }

    /// How this check came out.
    #[track_caller]
    pub fn verdict(&self, id: &str) -> &str {
        self.line(id).and_then(|line| line["verdict"].as_str()).unwrap_or_else(|| {
            panic!("no line `{id}` in {:#?}", self.lines);
        })
    }

    /// What was found.
    #[track_caller]
    pub fn found(&self, id: &str) -> &str {
        self.verdict(id);
        self.line(id).and_then(|line| line["found"].as_str()).expect("a finding")
    }

    /// That this check says so, with a command that has `cure` in it.
    #[track_caller]
    pub fn names(&self, id: &str, verdict: &str, says: &str, cure: &str) {
        assert_eq!(self.verdict(id), verdict, "{:#}", self.line(id).expect("a line"));
        let line = self.line(id).expect("a line");
        assert!(self.found(id).contains(says), "no `{says}` in {line:#}");
        let cures = line["cures"].as_array().expect("cures");
        let has = |found: &Value| found["command"].as_str().is_some_and(|c| c.contains(cure));
        assert!(cures.iter().any(has), "no command `{cure}` in {line:#}");
    }

    /// The checks of a group that have this verdict.
    pub fn with(&self, group: &str, verdict: &str) -> Vec<&str> {
        let is_so = |line: &&Value| line["group"] == group && line["verdict"] == verdict;
        self.lines.iter().filter(is_so).filter_map(|line| line["id"].as_str()).collect()
    }

    /// That nothing is bad, and that the command says so to scripts.
    #[track_caller]
    pub fn is_well(&self) {
        let bad: Vec<_> = self.lines.iter().filter(|line| line["verdict"] == "bad").collect();
        assert!(bad.is_empty() && self.ended.code == Some(0), "{bad:#?} {:?}", self.ended.code);
    }
}

/// A request, as far as an answer may depend on it.
pub struct Asked {
    /// Its path.
    pub path: String,
    /// What it says it comes from.
    pub origin: Option<String>,
}

/// A service that answers each request as it is told: with a status, and a body.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Upstream {
    /// Listens at `address`. With `None` for an answer it says nothing for ever.
    ///
    /// # Panics
    /// If it can't listen.
    pub async fn start(
        address: &str,
        answer: impl Fn(&Asked) -> Option<(u16, &'static str)> + Send + Sync + 'static,
    ) -> Self {
        Self::slow(address, Duration::ZERO, answer).await
    }

    /// Like [`Upstream::start`]; each answer takes this long.
    ///
    /// # Panics
    /// If it can't listen.
    pub async fn slow(
        address: &str,
        takes: Duration,
        answer: impl Fn(&Asked) -> Option<(u16, &'static str)> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (answer, mut tasks) = (Arc::new(answer), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let answer = answer.clone();
                connections.spawn(async move { serve(tcp, takes, &*answer).await });
            }
        });
        Self { address, _tasks: tasks }
    }

    /// Answers as Ollama does, but for what `answer` says.
    pub async fn ollama(
        address: &str,
        answer: impl Fn(&Asked) -> Option<(u16, &'static str)> + Send + Sync + 'static,
    ) -> Self {
        Self::start(address, move |asked| answer(asked).or_else(|| Some(as_ollama(asked)))).await
    }
}

/// What Ollama answers.
fn as_ollama(asked: &Asked) -> (u16, &'static str) {
    let is_known = |origin: &str| origin.contains("localhost") || origin.contains("-extension:");
    match (asked.path.as_str(), asked.origin.as_deref()) {
        (_, Some(origin)) if !is_known(origin) => (403, ""),
        ("/", _) => (200, "Ollama is running"),
        ("/api/version", _) => (200, r#"{"version":"0.33.0"}"#),
        ("/api/tags", _) => (200, r#"{"models":[{"name":"llama3.2:latest"}]}"#),
        ("/api/ps", _) => (200, r#"{"models":[{"name":"llama3.2:latest","size":2147483648}]}"#),
        _ => (404, "404 page not found"),
    }
}

async fn serve(
    mut tcp: tokio::net::TcpStream,
    takes: Duration,
    answer: &(impl Fn(&Asked) -> Option<(u16, &'static str)> + ?Sized),
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        match tcp.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let origin = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("origin").then(|| value.trim().to_owned())
    });
    let Some((status, body)) = answer(&Asked { path, origin }) else {
        return std::future::pending().await;
    };
    tokio::time::sleep(takes).await;
    let answer = format!(
        "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = tcp.write_all(answer.as_bytes()).await;
}
