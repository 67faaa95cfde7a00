//! HTTP/1.1 as RFC 9112 has it, and nothing of Adit: heads, the framing of bodies, and where answers
//! end.

pub mod exchanges;
pub mod framing;
pub mod head;
pub mod response;

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes; 0 is none.
    Known(u64),
    /// It comes in chunks, and says when it ends.
    Chunked,
}
