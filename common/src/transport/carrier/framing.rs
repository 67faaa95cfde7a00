//! Datagrams on a byte stream: each is a length of two bytes (big-endian) and the datagram.

use bytes::{Buf, Bytes, BytesMut};

/// The longest datagram in a frame.
const MAX_DATAGRAM: usize = u16::MAX as usize;

/// Takes one framed datagram from the front of `bytes`, if all of it is there.
pub(super) fn next_datagram(bytes: &mut BytesMut) -> Option<Bytes> {
    let len = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    if bytes.len() < 2 + len {
        return None;
    }
    bytes.advance(2);
    Some(bytes.split_to(len).freeze())
}

/// Appends one framed datagram.
pub(super) fn frame_datagram(out: &mut BytesMut, datagram: &[u8]) {
    debug_assert!(datagram.len() <= MAX_DATAGRAM);
    out.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
    out.extend_from_slice(datagram);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_out_of_a_stream_wherever_it_is_broken() {
        let mut wire = BytesMut::new();
        for datagram in [&b"one"[..], b"", &[7; 1452]] {
            frame_datagram(&mut wire, datagram);
        }
        for cut in 0..wire.len() {
            let (mut first, rest) = (BytesMut::from(&wire[..cut]), &wire[cut..]);
            let mut read: Vec<Bytes> = std::iter::from_fn(|| next_datagram(&mut first)).collect();
            first.extend_from_slice(rest);
            read.extend(std::iter::from_fn(|| next_datagram(&mut first)));
            assert_eq!(read, [&b"one"[..], b"", &[7; 1452]], "cut at {cut}");
        }
    }
}
