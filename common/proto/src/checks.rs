//! Properties that hold for any bytes that a stranger or a peer may send, for the tests and the
//! fuzzer (`fuzz/`). A check panics if its property does not hold.

mod http1;
mod ollama;
mod peer;

use std::fmt;

pub use http1::{body, exchanges, request, response};
pub use ollama::{named_models, patterns, usage};
pub use peer::{certificate, copies, failure, invitation, knock, wire};

/// One check, for any bytes.
pub type BytesCheck = fn(&[u8]);

/// Every check by its name: that of its fuzz target and of its folder in `fuzz/seeds`.
pub const ALL: [(&str, BytesCheck); 13] = [
    ("body", body),
    ("certificate", certificate),
    ("copies", copies),
    ("exchanges", exchanges),
    ("failure", failure),
    ("invitation", invitation),
    ("knock", knock),
    ("named_models", named_models),
    ("patterns", patterns),
    ("request", request),
    ("response", response),
    ("usage", usage),
    ("wire", wire),
];

/// What `read` returns for the bytes. Checks that it is the same for the whole, for single bytes
/// and for parts.
fn however_cut<T: PartialEq + fmt::Debug>(bytes: &[u8], read: impl Fn(&[&[u8]]) -> T) -> T {
    let whole = read(&[bytes]);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(&single), whole, "cut at every byte");
    // The cuts depend only on the bytes, so that every finding can be reproduced.
    let mut state = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut cut = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % (bytes.len() + 1)
    };
    for _ in 0..4 {
        let (a, b) = (cut(), cut());
        let (first, second) = (a.min(b), a.max(b));
        let parts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
        assert_eq!(read(&parts), whole, "cut at {first} and {second}");
    }
    whole
}

#[cfg(test)]
mod tests;
