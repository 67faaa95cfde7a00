//! The two primitives that everything else is made of.

use aws_lc_rs::{digest, rand};

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Fills `buffer` from the operating system's random generator.
///
/// # Panics
/// If the operating system has no randomness to give, which no caller could survive.
pub fn fill_random(buffer: &mut [u8]) {
    rand::fill(buffer).expect("the operating system's random generator works");
}
