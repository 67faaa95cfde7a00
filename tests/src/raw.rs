//! Plain sockets on both sides of a tunnel, for tests that care about every byte and about how a
//! connection ends.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::world::SOON;

/// Asks Ollama whether it is running.
pub const ROOT: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// How the peer ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// FIN.
    Closed,
    /// RST.
    Reset,
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

/// Reads until the peer ends the connection; how it did so, and all that came before.
///
/// # Panics
/// If it doesn't end soon.
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
/// If they don't come soon.
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

/// A POST of JSON on a connection of its own, as bytes.
pub fn post(path: &str, json: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
        json.len()
    )
}

/// A request for an answer of `tokens` tokens that depends on `seed` alone.
pub fn generate(tokens: i64, seed: u64) -> String {
    let json = format!(
        r#"{{"model":"stand-in:latest","prompt":"x","options":{{"num_predict":{tokens},"seed":{seed}}}}}"#
    );
    post("/api/generate", &json)
}

/// An answer without its only header that changes.
pub fn without_date(answer: &str) -> String {
    answer
        .split_inclusive("\r\n")
        .filter(|line| !line.to_ascii_lowercase().starts_with("date:"))
        .collect()
}

/// A listener that is a service of its own, to be named with `--upstream`.
pub struct Upstream {
    listener: TcpListener,
}

impl Upstream {
    /// Listens on a port of its own.
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("a port") }
    }

    /// As `aditd` wants it, of this kind.
    pub fn flag(&self, kind: &str) -> String {
        format!("{kind}://{}", self.listener.local_addr().expect("an address"))
    }

    /// The next connection, whenever it comes.
    pub async fn try_accept(&self) -> io::Result<TcpStream> {
        let (tcp, _) = self.listener.accept().await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// The next connection.
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
