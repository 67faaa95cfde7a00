//! Finds which program holds an address on which adit should listen.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use common::machine::process::{Protocol, port_holder};

/// How long each step of the holder's answer may take.
const WITHIN: Duration = Duration::from_secs(1);
/// The longest answer that is read, in bytes.
const MOST: u64 = 4096;

/// Which program holds `address`: its name if this user may see it, otherwise what its answer
/// shows. Takes at most some seconds.
pub(crate) fn of(address: SocketAddr) -> String {
    port_holder(address, Protocol::TCP).unwrap_or_else(|| by_answer(&ask(address)).to_owned())
}

/// The kind of a program whose name is not visible, by its answer to `GET /`.
fn by_answer(answer: &str) -> &'static str {
    if answer.contains("Ollama is running") {
        "another Ollama"
    } else if answer.contains("\"error\":\"adit: ") {
        "another `adit`"
    } else {
        "another program"
    }
}

/// Its answer, as far as it arrives.
fn ask(address: SocketAddr) -> String {
    let mut answer = Vec::new();
    if let Ok(mut tcp) = TcpStream::connect_timeout(&address, WITHIN)
        && tcp.set_read_timeout(Some(WITHIN)).is_ok()
        && tcp.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").is_ok()
    {
        // Bytes that arrived before an error are kept.
        let _ = tcp.take(MOST).read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_without_a_name_is_known_by_its_answer() {
        for (answer, is) in [
            ("HTTP/1.0 200 OK\r\n\r\nOllama is running", "another Ollama"),
            (
                "HTTP/1.0 403 Forbidden\r\n\r\n{\"error\":\"adit: the user `a` may not\"}",
                "another `adit`",
            ),
            ("HTTP/1.0 404 Not Found\r\n\r\n", "another program"),
            ("", "another program"),
        ] {
            assert_eq!(by_answer(answer), is);
        }
    }
}
