//! A real browser: pages of any origin in a headless Chromium, and what their scripts tell the test.

use std::{
    fs::File,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Child,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

use crate::skip::skip_test;

/// A browser takes some seconds to start, and more on a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(120);
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Chromium on this machine.
pub struct Chromium {
    program: &'static str,
    /// The SHA-256 of a public key that it trusts besides the CAs of the system, in Base64.
    trusted: Option<String>,
}

/// A page that is open in a browser of its own. Dropping it ends the browser.
pub struct Page {
    browser: Child,
    /// The browser's files.
    profile: TempDir,
    told: UnboundedReceiver<Value>,
    _server: JoinSet<()>,
}

impl Chromium {
    /// `None`, with the test skipped, if there is none.
    pub fn find() -> Option<Self> {
        let is_there = |name: &&str| {
            let mut command = Command::new(name);
            command
                .arg("--version")
                .stdin(Stdio::null())
                .output()
                .is_ok_and(|out| out.status.success())
        };
        let found = NAMES.into_iter().find(is_there);
        if found.is_none() {
            skip_test("there is no Chromium");
        }
        Some(Self { program: found?, trusted: None })
    }

    /// Trusts a server with this public key (the DER of its `SubjectPublicKeyInfo`).
    pub fn trusts(mut self, key: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
        self.trusted = Some(data_encoding::BASE64.encode(digest.as_ref()));
        self
    }

    /// Opens a page at `http://HOST/`; for `localhost`, at a port of its own. It runs the script, the
    /// body of an async function. What that gives to `tell`, and what it returns or throws, is what
    /// [`Page::tells`] returns. With `rebound_to`, every other path of this origin leads to that address,
    /// once the page is loaded: the name of the site has another address then.
    pub async fn open(&self, host: &str, script: &str, rebound_to: Option<SocketAddr>) -> Page {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (tell, told) = unbounded_channel();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, document(script, address), tell, rebound_to));
        let (url, leads) = match host {
            "localhost" => (format!("http://{host}:{}/", address.port()), None),
            host => (format!("http://{host}/"), Some(format!("MAP {host} {address}"))),
        };
        let profile = tempfile::tempdir().expect("a temporary directory");
        let log = File::create(profile.path().join("log")).expect("a log");
        let mut command = tokio::process::Command::new(self.program);
        command
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--no-proxy-server", "--disable-breakpad"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(leads.map(|rule| format!("--host-resolver-rules={rule}")))
            .args(
                self.trusted
                    .iter()
                    .map(|key| format!("--ignore-certificate-errors-spki-list={key}")),
            )
            .arg(url)
            .env("HOME", profile.path())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        let browser = command.spawn().expect("the browser starts");
        Page { browser, profile, told, _server: server }
    }
}

impl Page {
    /// The next value that the script tells.
    ///
    /// # Panics
    /// If it tells nothing in time, or has failed.
    pub async fn tells(&mut self) -> Value {
        let Ok(Some(value)) = tokio::time::timeout(TOLD_WITHIN, self.told.recv()).await else {
            let log = std::fs::read_to_string(self.profile.path().join("log"));
            panic!("the page tells nothing: {}", log.unwrap_or_default());
        };
        assert!(value.get("thrown").is_none(), "the script has failed: {value}");
        value
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // Its other processes are in its group.
        let pid = self.browser.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// The page: it runs the script, and tells how that ended. It tells that by another name, and so on a
/// connection that leads here, even if the page's own name leads elsewhere by now.
fn document(script: &str, here: SocketAddr) -> String {
    format!(
        r#"<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script>
const tell = (value) => fetch('http://{here}/tell', {{ method: 'POST', mode: 'no-cors', body: JSON.stringify(value) }})
const run = async () => {{ {script} }}
run().catch((error) => ({{ thrown: `${{error}}` }})).then((value) => tell(value ?? null))
</script>"#
    )
}

async fn serve(
    listener: TcpListener,
    document: String,
    tell: UnboundedSender<Value>,
    rebound_to: Option<SocketAddr>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((tcp, _)) = listener.accept() => {
                let (document, tell) = (document.clone(), tell.clone());
                connections.spawn(async move {
                    // The browser may end at any time.
                    let _ = answer(tcp, &document, &tell, rebound_to).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request, and closes the connection.
async fn answer(
    mut tcp: TcpStream,
    document: &str,
    tell: &UnboundedSender<Value>,
    rebound_to: Option<SocketAddr>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let (status, body) = if head.starts_with("GET / ") {
        ("200 OK", document)
    } else if head.starts_with("POST /tell ") {
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        while bytes.len() < end + length.unwrap_or(0) {
            if tcp.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        let value = serde_json::from_slice(&bytes[end..])?;
        // The test may have ended.
        let _ = tell.send(value);
        ("204 No Content", "")
    } else if let Some(address) = rebound_to {
        let mut there = TcpStream::connect(address).await?;
        there.write_all(&bytes).await?;
        return copy_bidirectional(&mut tcp, &mut there).await.map(drop);
    } else {
        ("404 Not Found", "")
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    tcp.write_all(answer.as_bytes()).await?;
    tcp.shutdown().await
}
