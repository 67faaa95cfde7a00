//! Pseudo-random bytes that both ends of a test can generate, and the routes below `/test/`.

use std::{
    convert::Infallible,
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
};
use serde_json::json;

use super::reply::{self, Reply};

/// The size of the blocks that `/test/bytes` sends.
const BLOCK: usize = 64 * 1024;

/// Endless pseudo-random bytes that depend only on `seed`, the same that `/test/bytes` sends.
pub fn seeded_bytes(seed: u64) -> SeededBytes {
    SeededBytes { state: seed, word: [0; 8], used: 8 }
}

/// See [`seeded_bytes`]. It never ends: use [`Read::take`].
#[derive(Clone, Debug)]
pub struct SeededBytes {
    state: u64,
    /// The unused part of the last word, so that the bytes do not depend on how they are read.
    word: [u8; 8],
    used: usize,
}

impl SeededBytes {
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let left = buffer.len().min(8 - self.used);
        let (head, rest) = buffer.split_at_mut(left);
        head.copy_from_slice(&self.word[self.used..self.used + left]);
        self.used += left;

        let (words, tail) = rest.as_chunks_mut::<8>();
        for word in words {
            *word = self.next_word();
        }
        if !tail.is_empty() {
            self.word = self.next_word();
            self.used = tail.len();
            tail.copy_from_slice(&self.word[..self.used]);
        }
    }

    fn next_word(&mut self) -> [u8; 8] {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state).to_le_bytes()
    }
}

impl Read for SeededBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer);
        Ok(buffer.len())
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64.
pub(super) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// `GET /test/bytes?n=N&seed=S`
pub(super) fn download(query: &str) -> Reply {
    let number = |name| {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.map_or(Ok(0), str::parse)
    };
    let (Ok(left), Ok(seed)) = (number("n"), number("seed")) else {
        return reply::error(StatusCode::BAD_REQUEST, "n and seed must be whole numbers");
    };
    let download = Download { source: seeded_bytes(seed), left };
    reply::with_type("application/octet-stream", download.boxed_unsync())
}

struct Download {
    source: SeededBytes,
    left: u64,
}

impl Body for Download {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let size = usize::try_from(self.left).map_or(BLOCK, |left| left.min(BLOCK));
        let mut block = vec![0; size];
        self.source.fill(&mut block);
        self.left -= size as u64;
        Poll::Ready(Some(Ok(Frame::data(block.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    /// Exact, so that hyper sends a Content-Length.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// `POST /test/sha256`
pub(super) async fn digest(body: Incoming) -> Result<Reply, hyper::Error> {
    let (sha256, length) = sha256(body).await?;
    Ok(reply::json(&json!({ "sha256": sha256, "length": length })))
}

/// The SHA-256 of a body in hexadecimal, and its length; the body is not kept in memory.
pub(super) async fn sha256(mut body: Incoming) -> Result<(String, u64), hyper::Error> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            context.update(&data);
            length += data.len() as u64;
        }
    }
    let hex = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((hex, length))
}
