//! The bytes of a request that are kept back until its turn.

use bytes::Bytes;
use proto::http1::head::Fault;

use crate::gate::read_ahead::BEHIND;

/// The bytes that would let the service begin, kept until the request has its turn. The service
/// begins at the end of the JSON object, and a request that is never finished must not take a turn.
/// So the end of the object waits for the end of the request, and that waits for the turn.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    chunks: Vec<Bytes>,
    /// Bytes that came later, copied into one buffer: chunks may be as small as a byte.
    behind: Vec<u8>,
}

impl HeldBack {
    /// Adds chunks.
    ///
    /// # Errors
    /// [`Fault::Behind`] if more follows the object than a client has reason to send.
    pub(super) fn add(&mut self, chunks: Vec<Bytes>) -> Result<(), Fault> {
        if self.chunks.is_empty() {
            self.chunks = chunks;
            return Ok(());
        }
        chunks.iter().for_each(|chunk| self.behind.extend_from_slice(chunk));
        if self.behind.len() > BEHIND { Err(Fault::Behind) } else { Ok(()) }
    }

    /// All bytes, in order.
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
        let mut kept = HeldBack::default();
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
