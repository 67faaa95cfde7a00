//! Plain sockets on both sides of a tunnel, for tests that check every byte and how a connection
//! ends.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::world::SOON;

/// A request to which Ollama answers that it is running.
pub const ROOT: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// How the peer ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// FIN.
    Closed,
    /// RST.
    Reset,
}

/// A port of loopback at which nobody listens, for as long as what comes with it lives.
///
/// # Panics
/// If there is none.
pub fn closed_port() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let address = socket.local_addr().expect("an address");
    (socket, address)
}

/// Connects.
///
/// # Panics
/// If nobody listens.
pub async fn connect(to: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(to).await.expect("a listener");
    tcp.set_nodelay(true).expect("nodelay");
    tcp
}

/// Reads until the peer ends the connection; returns the bytes and how it ended.
///
/// # Panics
/// If it does not end soon.
pub async fn read_to_end(tcp: &mut TcpStream) -> (Vec<u8>, Ending) {
    let mut all = Vec::new();
    let read = tokio::time::timeout(SOON, tcp.read_to_end(&mut all))
        .await
        .expect("the peer ends the connection");
    let ending = match read {
        Ok(_) => Ending::Closed,
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ending::Reset,
        Err(e) => panic!("{e}"),
    };
    (all, ending)
}

/// Reads exactly `n` bytes.
///
/// # Panics
/// If they do not come soon.
pub async fn read_exactly(tcp: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    tokio::time::timeout(SOON, tcp.read_exact(&mut bytes))
        .await
        .expect("in time")
        .expect("all bytes");
    bytes
}

/// Sends a request and reads until the server closes.
pub async fn exchange(to: SocketAddr, request: &str) -> String {
    let mut tcp = connect(to).await;
    tcp.write_all(request.as_bytes()).await.expect("sent");
    let (bytes, ending) = read_to_end(&mut tcp).await;
    assert_eq!(ending, Ending::Closed, "{}", String::from_utf8_lossy(&bytes));
    String::from_utf8(bytes).expect("text")
}

/// A POST of JSON that closes its connection, as text.
pub fn post(path: &str, json: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
        json.len()
    )
}

/// A request for an answer of `tokens` tokens that depends only on `seed`.
pub fn generate(tokens: i64, seed: u64) -> String {
    let json = format!(
        r#"{{"model":"stand-in:latest","prompt":"x","options":{{"num_predict":{tokens},"seed":{seed}}}}}"#
    );
    post("/api/generate", &json)
}

/// An answer without its `Date` header, the only one that changes.
pub fn without_date(answer: &str) -> String {
    answer
        .split_inclusive("\r\n")
        .filter(|line| !line.to_ascii_lowercase().starts_with("date:"))
        .collect()
}

/// A listener that is a service itself, for `--upstream`.
pub struct Upstream {
    listener: TcpListener,
}

impl Upstream {
    /// Listens on a free port.
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("a port") }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    /// The value of `--upstream`, with this kind.
    pub fn flag(&self, kind: &str) -> String {
        format!("{kind}://{}", self.listener.local_addr().expect("an address"))
    }

    /// Waits for the next connection, without a time limit.
    pub async fn try_accept(&self) -> io::Result<TcpStream> {
        let (tcp, _) = self.listener.accept().await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// Waits for the next connection.
    ///
    /// # Panics
    /// If none comes soon.
    pub async fn accept(&self) -> TcpStream {
        let (tcp, _) = tokio::time::timeout(SOON, self.listener.accept())
            .await
            .expect("a connection")
            .expect("accepted");
        tcp.set_nodelay(true).expect("nodelay");
        tcp
    }
}
