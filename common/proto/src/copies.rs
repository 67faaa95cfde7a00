//! Copies of pieces of streams, each in a DATAGRAM frame (RFC 9221): how they are written, and which
//! bytes of a stream they have brought.

mod ahead;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use self::ahead::Ahead;

/// The bytes before a copy: a stream's number and an offset.
const HEAD: usize = 16;
/// Offsets fit into 62 bits (RFC 9000 section 19.8), so that no sum overflows.
const MOST_OFFSET: u64 = (1 << 62) - 1;

/// A piece of a stream that is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamCopy {
    /// The number of the stream (RFC 9000 section 2.1).
    pub stream: u64,
    /// Where in the stream the piece begins, in bytes.
    pub offset: u64,
    /// The piece.
    pub bytes: Bytes,
}

impl StreamCopy {
    /// The frame: the number of the stream (8 bytes), where in it the copy begins (8 bytes), both
    /// big-endian, and the bytes.
    pub fn encode(&self) -> Bytes {
        let mut frame = BytesMut::with_capacity(HEAD + self.bytes.len());
        frame.put_u64(self.stream);
        frame.put_u64(self.offset);
        frame.extend_from_slice(&self.bytes);
        frame.freeze()
    }

    /// Reads a frame; `None` if it is no copy.
    pub fn decode(mut frame: Bytes) -> Option<Self> {
        let stream = frame.try_get_u64().ok()?;
        let offset = frame.try_get_u64().ok()?;
        let is_copy = !frame.is_empty() && offset <= MOST_OFFSET;
        is_copy.then_some(Self { stream, offset, bytes: frame })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_survives_its_frame_and_other_frames_are_none() {
        let copy = StreamCopy { stream: 5, offset: 1 << 40, bytes: Bytes::from_static(b"token") };
        let frame = copy.encode();
        assert_eq!(StreamCopy::decode(frame.clone()), Some(copy));
        for len in 0..=HEAD {
            assert_eq!(StreamCopy::decode(frame.slice(..len)), None, "{len} bytes");
        }
        let far = StreamCopy { stream: 5, offset: 1 << 62, bytes: Bytes::from_static(b"token") };
        assert_eq!(StreamCopy::decode(far.encode()), None);
    }
}
