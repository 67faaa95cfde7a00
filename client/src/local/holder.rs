//! Finds which program holds an address where tools look for Ollama, or on which adit should listen.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use common::machine::process::{Protocol, port_holder};
use proto::doctor::laptop::ports::Holder;

/// How long each step of the holder's answer may take.
const WITHIN: Duration = Duration::from_secs(1);
/// The longest answer that is read, in bytes.
const MOST: u64 = 4096;

/// Which program holds `address`: its name if this user may see it, otherwise what its answer
/// shows. Takes at most some seconds.
pub(crate) fn of(address: SocketAddr) -> String {
    port_holder(address, Protocol::TCP).unwrap_or_else(|| {
        match by_answer(&ask(address)) {
            Holder::Ollama(_) => {
                "a program that answers like Ollama (an Ollama here, or another `adit`)"
            }
            Holder::Adit(_) => "another `adit`",
            _ => "another program",
        }
        .to_owned()
    })
}

/// Which program holds `address`, and of which kind it is. Blocks, for at most some seconds.
pub(crate) fn look(address: SocketAddr) -> Holder {
    match TcpStream::connect_timeout(&address, WITHIN) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Holder::Nobody,
        // No such address family, or no such address.
        Err(e) if e.kind() != io::ErrorKind::TimedOut => return Holder::Absent,
        // The program is asked on another connection: this one tells nothing.
        _ => {}
    }
    let who = port_holder(address, Protocol::TCP).unwrap_or_default();
    match who.as_str() {
        name if name.starts_with("`adit") && !name.starts_with("`aditd") => Holder::Adit(who),
        name if name.starts_with("`ollama") => Holder::Ollama(who),
        _ => match by_answer(&ask(address)) {
            Holder::Ollama(_) => Holder::Ollama(who),
            Holder::Adit(_) => Holder::Adit(who),
            _ => Holder::Other(who),
        },
    }
}

/// The kind of a program whose name is not visible, by its answer to `GET /`.
fn by_answer(answer: &str) -> Holder {
    if answer.contains("Ollama is running") {
        Holder::Ollama(String::new())
    } else if answer.contains("\"error\":\"adit: ") {
        Holder::Adit(String::new())
    } else {
        Holder::Other(String::new())
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
    fn an_address_that_nobody_holds_is_told_from_one_that_somebody_holds() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        // Nobody accepts, and nobody answers.
        assert!(matches!(look(address), Holder::Other(_)));
        drop(listener);
        assert_eq!(look(address), Holder::Nobody);
    }

    #[test]
    fn a_holder_without_a_name_is_known_by_its_answer() {
        for (answer, is) in [
            ("HTTP/1.0 200 OK\r\n\r\nOllama is running", Holder::Ollama(String::new())),
            (
                "HTTP/1.0 403 Forbidden\r\n\r\n{\"error\":\"adit: the user `a` may not\"}",
                Holder::Adit(String::new()),
            ),
            ("HTTP/1.0 404 Not Found\r\n\r\n", Holder::Other(String::new())),
            ("", Holder::Other(String::new())),
        ] {
            assert_eq!(by_answer(answer), is);
        }
    }
}
