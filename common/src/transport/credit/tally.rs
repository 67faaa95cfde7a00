//! What has been read here and is still to be told. It names no runtime and no socket.

use std::collections::HashMap;

/// Less of a stream is not told before it ends: half of what a sender may always have unread.
const WORTH: u64 = crate::transport::credit::FLOOR / 2;
/// So much, of all streams together, is told at once: a fast stream would wait for it.
const MUCH: u64 = 256 << 10;
/// Streams that wait to be told at the most. Of more, a peer that takes no news is told nothing.
const DUE: usize = 16 << 10;

/// How soon the peer has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// A stream has ended.
    Late,
    /// A sender may come to wait for it.
    Soon,
    /// A fast sender may.
    Now,
}

/// How far each stream has been read, and told.
#[derive(Default)]
pub(super) struct Tally {
    streams: HashMap<u64, Stream>,
    /// Streams that are to be told.
    due: Vec<u64>,
    /// Read since it was told last, of the streams that are due.
    bytes: u64,
    urgency: Option<Urgency>,
}

#[derive(Default)]
struct Stream {
    read: u64,
    told: u64,
    over: bool,
    due: bool,
}

impl Tally {
    /// How soon something has to be told, if anything has.
    pub(super) fn urgency(&self) -> Option<Urgency> {
        self.urgency
    }

    /// More of a stream has been read. Returns whether something is more urgent than before.
    pub(super) fn read(&mut self, id: u64, bytes: u64) -> bool {
        let stream = self.streams.entry(id).or_default();
        stream.read += bytes;
        let untold = stream.read - stream.told;
        if untold < WORTH {
            return false;
        }
        let (counted, fresh) = if stream.due { (bytes, false) } else { (untold, true) };
        self.bytes += counted;
        if fresh {
            self.put(id);
        }
        self.raise(if self.bytes >= MUCH { Urgency::Now } else { Urgency::Soon })
    }

    /// Nothing more of a stream is read. Returns whether something is more urgent than before.
    pub(super) fn over(&mut self, id: u64) -> bool {
        let stream = self.streams.entry(id).or_default();
        stream.over = true;
        if !stream.due {
            self.put(id);
        }
        self.raise(Urgency::Late)
    }

    /// All that is to be told: streams, and how far each has been read.
    pub(super) fn take(&mut self) -> Vec<(u64, u64)> {
        (self.urgency, self.bytes) = (None, 0);
        let due = std::mem::take(&mut self.due);
        due.into_iter().filter_map(|id| Some((id, self.tell(id)?))).collect()
    }

    fn tell(&mut self, id: u64) -> Option<u64> {
        let stream = self.streams.get_mut(&id)?;
        if stream.over {
            self.streams.remove(&id);
            // What it has left unread was given back.
            return Some(u64::MAX);
        }
        (stream.told, stream.due) = (stream.read, false);
        Some(stream.read)
    }

    fn put(&mut self, id: u64) {
        if self.due.len() < DUE {
            self.due.push(id);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.due = true;
            }
        } else if self.streams.get(&id).is_some_and(|stream| stream.over) {
            self.streams.remove(&id);
        }
    }

    fn raise(&mut self, to: Urgency) -> bool {
        let rises = self.urgency < Some(to);
        if rises {
            self.urgency = Some(to);
        }
        rises
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_told_when_its_stream_ends_and_much_at_once() {
        let mut tally = Tally::default();
        assert!(!tally.read(4, WORTH - 1));
        assert_eq!((tally.urgency(), tally.take()), (None, vec![]));
        assert!(tally.read(4, 1));
        assert_eq!(tally.urgency(), Some(Urgency::Soon));
        assert!(!tally.read(4, 100), "no more urgent than before");
        assert_eq!(tally.take(), [(4, WORTH + 100)]);
        assert_eq!((tally.urgency(), tally.take()), (None, vec![]));
        assert!(tally.read(4, MUCH));
        assert_eq!(tally.urgency(), Some(Urgency::Now));
        assert_eq!(tally.take(), [(4, WORTH + 100 + MUCH)]);
        assert!(tally.over(4));
        assert_eq!(tally.urgency(), Some(Urgency::Late));
        assert_eq!(tally.take(), [(4, u64::MAX)]);
        assert!(tally.streams.is_empty());
    }

    #[test]
    fn many_streams_that_are_each_read_a_little_are_much_together() {
        let mut tally = Tally::default();
        for id in 0..MUCH / WORTH {
            tally.read(id, WORTH);
        }
        assert_eq!(tally.urgency(), Some(Urgency::Now));
        assert_eq!(tally.take().len() as u64, MUCH / WORTH);
    }

    #[test]
    fn a_peer_that_takes_no_news_makes_nothing_grow() {
        let mut tally = Tally::default();
        for id in 0..100_000 {
            tally.read(id, 10);
            tally.over(id);
        }
        assert!(tally.due.len() <= DUE && tally.streams.len() <= DUE);
    }
}
