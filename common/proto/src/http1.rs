//! HTTP/1.1 (RFC 9112): heads, the framing of bodies, and where answers end. Nothing here is
//! specific to Adit.

pub mod credentials;
pub mod exchanges;
pub mod fields;
pub mod framing;
pub mod head;
pub mod response;

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// This many bytes; 0 if there is no body.
    Known(u64),
    /// Chunked transfer coding (RFC 9112 section 7.1).
    Chunked,
}
