//! Load: a service that speaks HTTP as Ollama does, and applications that measure the way to it.
//! The same bytes go every way, so that a tunnel that reads requests can be compared with one that
//! does not.

mod apps;
mod seat;
mod service;

pub use apps::{Target, Token, connections, download, idle, requests, tokens, upload};
pub use seat::Seat;
pub use service::Service;

use std::{sync::OnceLock, time::Instant};

/// The time from one token to the next.
pub const TOKEN_PERIOD_US: u64 = 20_000;
/// A small request.
pub(super) const GET: &[u8] = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nUser-Agent: adit-bench\r\nAccept: */*\r\n\r\n";
/// The length of its answer.
const ANSWER: usize = 256;
/// The length of a chunk with one token, its framing included.
pub(super) const CHUNK: usize = 128;
/// The offset in a chunk of the time at which it was made.
const MADE_AT: std::ops::Range<usize> = 35..51;

/// Nanoseconds since this process began: the service and the applications share it.
pub fn now() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// A chunk with a token that was made at `at`.
pub(super) fn chunk(at: u64) -> [u8; CHUNK] {
    let mut chunk = [b' '; CHUNK];
    let json = format!(
        "7a\r\n{{\"model\":\"bench\",\"created_at\":\"{at:016}\",\"response\":\" token\",\"done\":false}}"
    );
    chunk[..json.len()].copy_from_slice(json.as_bytes());
    chunk[CHUNK - 3..].copy_from_slice(b"\n\r\n");
    chunk
}

/// When the token of a chunk was made.
fn made_at(chunk: &[u8]) -> Option<u64> {
    std::str::from_utf8(chunk.get(MADE_AT)?).ok()?.parse().ok()
}

/// The answer to a small request.
pub(super) fn answer() -> Vec<u8> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: ";
    let body = ANSWER - head.len() - "168\r\n\r\n".len();
    let json = "{\"version\":\"0.33.0\"}";
    format!("{head}{body}\r\n\r\n{json:<body$}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_one_chunk_of_http_with_json_and_its_time() {
        let chunk = chunk(1_234_567_890);
        let text = std::str::from_utf8(&chunk).expect("text");
        let (size, rest) = text.split_once("\r\n").expect("framed");
        let content = rest.strip_suffix("\r\n").expect("framed");
        assert_eq!(usize::from_str_radix(size, 16), Ok(content.len()));
        let json: serde_json::Value = serde_json::from_str(content).expect("json");
        assert_eq!(json["done"], false);
        assert_eq!(made_at(&chunk), Some(1_234_567_890));
    }

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let answer = String::from_utf8(answer()).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert_eq!(answer.len(), ANSWER);
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
