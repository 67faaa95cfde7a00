//! SHA-256, random bytes, and reading a private key from PEM.

use aws_lc_rs::{digest, rand};
use data_encoding::BASE64;
use zeroize::Zeroizing;

/// The lines around a private key in PEM (RFC 7468 section 10).
pub const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
/// See [`BEGIN`].
pub const END: &str = "-----END PRIVATE KEY-----";

/// The PKCS #8 DER of a private key in PEM (RFC 7468). Not a library's reader, because those leave
/// copies of the key in memory.
pub fn private_key_from_pem(pem: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, body) = pem.split_once(BEGIN)?;
    let (body, _) = body.split_once(END)?;
    // Allocated with its final size: a buffer that grows leaves copies in memory.
    let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
    text.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    BASE64.decode(&text).ok().map(Zeroizing::new)
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Fills `buffer` from the operating system's random generator.
///
/// # Panics
/// If the operating system cannot provide random bytes: no caller could go on without them.
pub fn fill_random(buffer: &mut [u8]) {
    rand::fill(buffer).expect("the operating system's random generator works");
}
