//! Which bytes of a stream have come as copies, ahead of the stream itself.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};

/// The most copies that are kept for one stream. Further ones are dropped.
const MOST: usize = 64;
/// A copy that begins so many bytes behind what its reader has is dropped: a window of QUIC
/// is not larger.
const FARTHEST: u64 = 4 << 20;

/// The copies of one stream that its reader has not taken.
#[derive(Debug, Default)]
pub struct Ahead {
    /// By where they begin.
    pieces: BTreeMap<u64, Bytes>,
    held: usize,
}

impl Ahead {
    /// A copy has arrived. The reader has `delivered` bytes of the stream.
    pub fn put(&mut self, delivered: u64, offset: u64, bytes: &[u8]) {
        let is_known = self.pieces.get(&offset).is_some_and(|piece| piece.len() >= bytes.len());
        let is_far = offset > delivered.saturating_add(FARTHEST);
        if is_known || is_far || self.pieces.len() >= MOST {
            return;
        }
        // A piece of its own: what arrived is a part of a larger buffer.
        let before = self.pieces.insert(offset, Bytes::copy_from_slice(bytes));
        self.held = self.held + bytes.len() - before.map_or(0, |piece| piece.len());
    }

    /// Takes the bytes that follow the `delivered` ones, at most `most`, and drops what the reader has
    /// already. `None` if no copy has them.
    pub fn take(&mut self, delivered: u64, most: usize) -> Option<Bytes> {
        while let Some((offset, mut piece)) = self.pieces.pop_first() {
            self.held -= piece.len();
            if offset > delivered {
                self.held += piece.len();
                self.pieces.insert(offset, piece);
                return None;
            }
            let known = usize::try_from(delivered - offset).unwrap_or(usize::MAX);
            if known >= piece.len() {
                continue;
            }
            piece.advance(known);
            let next = piece.split_to(most.min(piece.len()));
            let after = delivered + next.len() as u64;
            let is_known = self.pieces.get(&after).is_some_and(|other| other.len() >= piece.len());
            if !piece.is_empty() && !is_known {
                self.held += piece.len();
                let before = self.pieces.insert(after, piece);
                self.held -= before.map_or(0, |piece| piece.len());
            }
            return Some(next);
        }
        None
    }

    /// The bytes that are kept.
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"0123456789";

    #[test]
    fn copies_are_read_where_the_reader_stands_and_nowhere_else() {
        for (copies, delivered, most, taken, held) in [
            // Copies (from, to); what the reader has; how much it wants; what it gets; what is kept.
            (&[(0, 3)][..], 0, 9, Some("012"), 0),
            (&[(0, 3)], 1, 9, Some("12"), 0),
            (&[(0, 3)], 3, 9, None, 0),
            (&[(0, 3)], 0, 2, Some("01"), 1),
            (&[(2, 4)], 0, 9, None, 2),
            (&[(2, 4), (0, 2)], 0, 9, Some("01"), 2),
            (&[(2, 4), (0, 2)], 2, 9, Some("23"), 0),
            // Copies that overlap, and one that comes twice.
            (&[(0, 5), (2, 9)], 4, 9, Some("4"), 7),
            (&[(0, 5), (0, 5), (0, 3)], 0, 9, Some("01234"), 0),
            (&[(0, 3), (0, 5)], 0, 9, Some("01234"), 0),
            (&[(0, 5), (2, 9)], 0, 2, Some("01"), 7),
            (&[(0, 5), (2, 3)], 0, 2, Some("01"), 3),
            (&[], 0, 9, None, 0),
        ] {
            let mut ahead = Ahead::default();
            for &(from, to) in copies {
                ahead.put(0, from as u64, &STREAM[from..to]);
            }
            let got = ahead.take(delivered, most);
            let case = format!("{copies:?}, {delivered}");
            assert_eq!(got.as_deref(), taken.map(str::as_bytes), "{case}");
            assert_eq!(ahead.held(), held, "{case}");
        }
    }

    #[test]
    fn only_so_many_and_none_from_far_away_are_kept() {
        let mut ahead = Ahead::default();
        for i in 0..2 * MOST as u64 {
            ahead.put(0, 2 * i, b"1");
        }
        assert_eq!(ahead.held(), MOST);
        let mut ahead = Ahead::default();
        ahead.put(5, 5 + FARTHEST + 1, b"1");
        assert_eq!(ahead.held(), 0);
        ahead.put(5, 5 + FARTHEST, b"1");
        assert_eq!(ahead.held(), 1);
    }
}
