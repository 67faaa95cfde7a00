//! Collects what has been read of each stream and not yet been reported. It names no runtime and no
//! socket.

use std::collections::HashMap;

/// The fewest bytes of a stream that are reported before it ends: half of its floor.
const WORTH: u64 = crate::transport::credit::FLOOR / 2;
/// This many bytes, of all streams together, are reported at once: a fast sender may wait for them.
const MUCH: u64 = 256 << 10;
/// The most streams that wait to be reported. If a peer does not read the reports, further streams
/// are not reported.
const DUE: usize = 16 << 10;

/// How soon a report has to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// A stream has ended.
    Late,
    /// A sender may soon wait for it.
    Soon,
    /// A fast sender may wait for it already.
    Now,
}

/// How far each stream has been read, and how much of that was reported.
#[derive(Default)]
pub(super) struct Tally {
    streams: HashMap<u64, ReadStream>,
    /// Streams that are to be reported.
    due: Vec<u64>,
    /// The unreported bytes of the streams in `due`.
    bytes: u64,
    urgency: Option<Urgency>,
}

#[derive(Default)]
struct ReadStream {
    read: u64,
    told: u64,
    over: bool,
    due: bool,
}

impl Tally {
    /// How soon a report has to be sent, if there is one.
    pub(super) fn urgency(&self) -> Option<Urgency> {
        self.urgency
    }

    /// More of a stream has been read. Returns whether a report became more urgent.
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

    /// No more of a stream will be read. Returns whether a report became more urgent.
    pub(super) fn over(&mut self, id: u64) -> bool {
        let stream = self.streams.entry(id).or_default();
        stream.over = true;
        if !stream.due {
            self.put(id);
        }
        self.raise(Urgency::Late)
    }

    /// Takes all reports: streams, and how far each has been read.
    pub(super) fn take(&mut self) -> Vec<(u64, u64)> {
        (self.urgency, self.bytes) = (None, 0);
        let due = std::mem::take(&mut self.due);
        due.into_iter().filter_map(|id| Some((id, self.tell(id)?))).collect()
    }

    fn tell(&mut self, id: u64) -> Option<u64> {
        let stream = self.streams.get_mut(&id)?;
        if stream.over {
            self.streams.remove(&id);
            // Its unread bytes were given back.
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
