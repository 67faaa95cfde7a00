//! What is kept back of a request that waits for its turn.

use bytes::Bytes;
use proto::http1::head::Fault;

use crate::gate::read_ahead::BEHIND;

/// What would let the service begin, until it is its turn. The service needs no more than the end
/// of the JSON object, and what is never finished takes nobody's turn: so the object's end waits for
/// the request's end, and the request's end for the turn.
#[derive(Debug, Default)]
pub(super) struct Kept {
    chunks: Vec<Bytes>,
    /// What came later, in a buffer of its own: pieces may be as small as a byte.
    behind: Vec<u8>,
}

impl Kept {
    /// Keeps these, too.
    ///
    /// # Errors
    /// [`Fault::Behind`] if more comes behind the object than a client has reason to send.
    pub(super) fn add(&mut self, chunks: Vec<Bytes>) -> Result<(), Fault> {
        if self.chunks.is_empty() {
            self.chunks = chunks;
            return Ok(());
        }
        chunks.iter().for_each(|chunk| self.behind.extend_from_slice(chunk));
        if self.behind.len() > BEHIND { Err(Fault::Behind) } else { Ok(()) }
    }

    /// All of it, in order.
    pub(super) fn take(self) -> Vec<Bytes> {
        let mut all = self.chunks;
        if !self.behind.is_empty() {
            all.push(self.behind.into());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_kept_in_order_and_is_not_endless() {
        let mut kept = Kept::default();
        let long = Bytes::from(vec![b'x'; 2 * BEHIND]);
        kept.add(vec![long.clone()]).expect("it came at once");
        for _ in 0..BEHIND {
            kept.add(vec![Bytes::from_static(b"y")]).expect("a little behind it");
        }
        assert_eq!(kept.add(vec![Bytes::from_static(b"z")]), Err(Fault::Behind));
        let all = kept.take();
        assert_eq!((all[0].len(), all[1].len(), all.len()), (2 * BEHIND, BEHIND + 1, 2));
        assert!(all[0] == long && all[1].ends_with(b"yz"));
    }
}
