//! Services besides Ollama: each at an address of its own, all by one enrollment.

mod applications;
mod permissions;
mod upstreams;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tests::{
    process::Ended,
    world::{SOON, Up},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

/// A service that answers as vLLM does. It has the models `m1` and `m2`.
struct OpenAi {
    /// Where it listens, if that is TCP.
    address: Option<SocketAddr>,
    /// The first line of each request.
    seen: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl OpenAi {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, seen) = (listener.local_addr().ok(), Arc::<Mutex<Vec<String>>>::default());
        let (mut tasks, all) = (JoinSet::new(), seen.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp, all.clone()));
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    fn at_socket(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let (mut tasks, all) = (JoinSet::new(), seen.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((unix, _)) = listener.accept().await {
                connections.spawn(serve(unix, all.clone()));
            }
        });
        Self { address: None, seen, _tasks: tasks }
    }

    fn port(&self) -> u16 {
        self.address.expect("it listens on TCP").port()
    }

    /// A table of the server's configuration.
    fn table(&self, name: &str) -> String {
        let port = self.port();
        format!("[services.{name}]\nupstream = 'http://127.0.0.1:{port}'\nkind = 'openai'\n")
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, seen: Arc<Mutex<Vec<String>>>) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse().ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let line = head.lines().next().unwrap_or_default().to_owned();
        seen.lock().expect("not poisoned").push(line.clone());
        let body = String::from_utf8_lossy(&body).into_owned();
        let is_answered = answer(&mut stream, &line, &body).await.is_ok();
        if !is_answered || head.contains("Connection: close") || line.ends_with("HTTP/1.0") {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

async fn answer<S: AsyncWrite + Unpin>(to: &mut S, line: &str, body: &str) -> std::io::Result<()> {
    let usage = r#""usage":{"prompt_tokens":7,"total_tokens":16,"completion_tokens":9}"#;
    if body.contains("\"stream\":true") {
        to.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        let piece = r#"data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        loop {
            chunk(to, &format!("{piece}\n\n")).await?;
            if !body.contains("endless") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        chunk(to, &format!("data: {{\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n")).await?;
        return to.write_all(b"0\r\n\r\n").await;
    }
    let text = match line.split(' ').nth(1).unwrap_or_default() {
        "/v1/models" => r#"{"object":"list","data":[{"id":"m1"},{"id":"m2"}]}"#.to_owned(),
        "/v1/chat/completions" => {
            format!(r#"{{"choices":[{{"message":{{"content":"hi"}}}}],{usage}}}"#)
        }
        "/v1/rerank" => r#"{"results":[],"usage":{"prompt_tokens":5}}"#.to_owned(),
        path => format!(r#"{{"path":"{path}"}}"#),
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
    to.write_all((head + &text).as_bytes()).await
}

async fn chunk<S: AsyncWrite + Unpin>(to: &mut S, text: &str) -> std::io::Result<()> {
    to.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
    to.flush().await
}

/// A service that sends back what it gets.
async fn echo() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, tasks)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The status of an answer.
#[track_caller]
fn status(answer: &str) -> u16 {
    let word = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    word.unwrap_or_else(|| panic!("{answer:?}"))
}

/// The address at which a running `adit up` serves a service.
async fn address_of(device: &tests::world::Device, name: &str) -> SocketAddr {
    let shown = device.status().await;
    let service =
        shown["services"].as_array().expect("a list").iter().find(|it| it["name"] == name);
    let address = service.and_then(|it| it["listening"][0].as_str());
    address.unwrap_or_else(|| panic!("{shown}")).parse().expect("an address")
}

/// `adit up` with these services, and the address of the first.
async fn up(device: &tests::world::Device, services: &[&str]) -> (Up, SocketAddr) {
    let flags: Vec<_> = services.iter().flat_map(|service| ["--service", service]).collect();
    let up = device.up(&flags).await;
    let first = services[0].split('=').next().expect("a name");
    let address = address_of(device, first).await;
    (up, address)
}

/// What a command has printed, if it succeeded.
#[track_caller]
fn printed(ended: &Ended) -> &str {
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    &ended.stdout
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}
