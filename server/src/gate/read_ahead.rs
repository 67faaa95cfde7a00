//! Bytes that a device has sent early: they were read and may not be forwarded yet.

use std::collections::VecDeque;

use bytes::Bytes;

/// The most bytes that are read ahead while a request runs.
pub(super) const BEHIND: usize = 16 * 1024;
/// The most bytes that are read ahead while a request waits: enough to notice, after a request of
/// ordinary size, that its application has gone.
pub(super) const WAITING: usize = 256 * 1024;

/// A chunk shorter than this is copied to the end of the one before it, if there is room. A short
/// chunk may keep a much larger buffer in memory, and there may be as many chunks as bytes.
const SHORT: usize = 4 * 1024;

/// Bytes that were read ahead, in order.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    chunks: VecDeque<Bytes>,
    len: usize,
    /// The device has sent FIN after these bytes.
    pub(super) finished: bool,
}

impl ReadAhead {
    /// Whether no bytes are kept. The device may have ended all the same.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The number of bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends a chunk.
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if chunk.len() >= SHORT {
            return self.chunks.push_back(chunk);
        }
        let last = self
            .chunks
            .pop_back_if(|last| last.len() + chunk.len() <= SHORT)
            .map(Bytes::try_into_mut);
        match last {
            Some(Ok(mut last)) => {
                last.extend_from_slice(&chunk);
                self.chunks.push_back(last.freeze());
            }
            other => {
                self.chunks.extend(other.and_then(Result::err));
                self.chunks.push_back(Bytes::copy_from_slice(&chunk));
            }
        }
    }

    /// Puts chunks back at the front, in their order.
    pub(super) fn put_back(&mut self, chunks: impl DoubleEndedIterator<Item = Bytes>) {
        for chunk in chunks.rev().filter(|chunk| !chunk.is_empty()) {
            self.len += chunk.len();
            self.chunks.push_front(chunk);
        }
    }

    /// Takes the first chunk.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.pop_front()?;
        self.len -= chunk.len();
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_come_one_by_one_are_kept_in_few_chunks() {
        let mut ahead = ReadAhead::default();
        let long = Bytes::from(vec![b'x'; SHORT]);
        let mut all = Vec::new();
        for i in 0..3 * SHORT {
            let chunk = if i == SHORT { long.clone() } else { Bytes::from(vec![i as u8]) };
            all.extend_from_slice(&chunk);
            ahead.push(chunk);
        }
        assert_eq!(ahead.len(), all.len());
        assert!(ahead.chunks.len() <= 5, "{}", ahead.chunks.len());
        let kept: Vec<u8> = std::iter::from_fn(|| ahead.pop()).flatten().collect();
        assert_eq!((kept, ahead.len()), (all, 0));
    }

    #[test]
    fn a_chunk_with_another_owner_is_not_changed() {
        let long = Bytes::from(vec![b'x'; SHORT]);
        let mut ahead = ReadAhead::default();
        ahead.put_back([long.slice(..1)].into_iter());
        ahead.push(Bytes::from_static(b"y"));
        assert_eq!(ahead.chunks, [&b"x"[..], b"y"]);
    }

    #[test]
    fn what_is_put_back_comes_first_and_in_order() {
        let mut ahead = ReadAhead::default();
        ahead.push(Bytes::from_static(b"c"));
        let back = [&b"a"[..], b"", b"b"].map(Bytes::from_static);
        ahead.put_back(back.into_iter());
        assert_eq!((ahead.pop(), ahead.len()), (Some(Bytes::from_static(b"a")), 2));
    }
}
