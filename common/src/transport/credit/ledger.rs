//! Counts the bytes of each stream that were sent and not yet read. It names no runtime and no
//! socket.

use std::{
    collections::{HashMap, VecDeque},
    task::Waker,
};

use crate::transport::MOST_STREAMS;

/// How many unread bytes every stream may have, however many the others have: enough for tokens.
pub(crate) const FLOOR: u64 = 8 << 10;
/// Beyond its floor, a stream may use this part (one eighth) of the free pool.
const SHARES: u64 = 8;
/// The most streams that are remembered after their end because the peer has not read all of them.
/// Beyond that, the oldest count as read: a peer that does not report only delays itself.
const ENDED: usize = 8192;

/// Keeps the unread bytes of each stream below its share.
///
/// Every stream has a floor of its own. The rest of the window is a pool: a stream may use an
/// eighth of what is free in it. So one stream alone can fill a fast path. Many unread streams get
/// smaller and smaller shares, but never use up the pool.
#[derive(Default)]
pub(super) struct SendLedger {
    /// The peer's window without all floors, in bytes. `None` while it is unknown: then there is no
    /// limit.
    pool: Option<u64>,
    /// How many bytes of the pool are used.
    used: u64,
    streams: HashMap<u64, SentStream>,
    ended: VecDeque<u64>,
}

#[derive(Default)]
struct SentStream {
    sent: u64,
    read: u64,
    ended: bool,
    waiting: Option<Waker>,
}

impl SentStream {
    fn unread(&self) -> u64 {
        self.sent.saturating_sub(self.read)
    }

    fn beyond_floor(&self) -> u64 {
        self.unread().saturating_sub(FLOOR)
    }
}

impl SendLedger {
    /// The peer has reported how many unread bytes it keeps for all streams.
    pub(super) fn set_window(&mut self, window: u64) {
        self.pool = Some(window.saturating_sub(FLOOR * u64::from(MOST_STREAMS)));
    }

    pub(super) fn begin(&mut self, id: u64) {
        self.streams.insert(id, SentStream::default());
    }

    /// Takes the share that a stream may send now, at most `most` bytes. 0 if it has to wait.
    pub(super) fn take(&mut self, id: u64, most: u64) -> u64 {
        let Some(stream) = self.streams.get_mut(&id) else { return most };
        let share = match self.pool {
            Some(pool) => FLOOR + pool.saturating_sub(self.used) / SHARES,
            None => u64::MAX,
        };
        let taken = most.min(share.saturating_sub(stream.unread()));
        let before = stream.beyond_floor();
        stream.sent += taken;
        self.used += stream.beyond_floor() - before;
        taken
    }

    /// The stream's waker, which [`SendLedger::read`] returns when the peer has read more of the
    /// stream.
    pub(super) fn wait(&mut self, id: u64, waker: &Waker) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.waiting = Some(waker.clone());
        }
    }

    /// The peer has read a stream up to `offset`. Returns the waker of a sender that waited for
    /// that.
    #[must_use]
    pub(super) fn read(&mut self, id: u64, offset: u64) -> Option<Waker> {
        let stream = self.streams.get_mut(&id)?;
        let before = stream.beyond_floor();
        stream.read = stream.read.max(offset);
        self.used -= before - stream.beyond_floor();
        let waiting = stream.waiting.take();
        if stream.ended && stream.unread() == 0 {
            self.streams.remove(&id);
        }
        waiting
    }

    pub(super) fn end(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.unread() == 0 {
            self.streams.remove(&id);
            return;
        }
        stream.ended = true;
        self.ended.push_back(id);
        // Streams that were read to their end meanwhile are not in the map any more.
        while self.ended.len() > ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            if let Some(stream) = self.streams.remove(&oldest) {
                self.used -= stream.beyond_floor();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::SHARED_WINDOW;

    const WINDOW: u64 = SHARED_WINDOW as u64;

    fn ledger(streams: u64) -> SendLedger {
        let mut ledger = SendLedger::default();
        ledger.set_window(WINDOW);
        (0..streams).for_each(|id| ledger.begin(id));
        ledger
    }

    /// Sends on a stream that nobody reads until it has to wait. Returns how many bytes it has
    /// sent.
    fn fill(ledger: &mut SendLedger, id: u64) -> u64 {
        let mut sent = 0;
        loop {
            match ledger.take(id, 64 << 10) {
                0 => return sent,
                taken => sent += taken,
            }
        }
    }

    #[test]
    fn streams_that_nobody_reads_never_take_the_last_of_the_window() {
        let all = u64::from(MOST_STREAMS);
        let mut ledger = ledger(all);
        let mut unread = 0;
        for id in 0..all - 1 {
            let sent = fill(&mut ledger, id);
            assert!(sent >= FLOOR, "the {id}th: {sent}");
            unread += sent;
        }
        assert!(unread <= WINDOW, "{unread}");
        let live = all - 1;
        for round in 1..100 {
            assert!(fill(&mut ledger, live) >= FLOOR);
            assert!(ledger.read(live, round * FLOOR).is_none());
        }
    }

    #[test]
    fn a_few_streams_have_whole_stream_windows_and_many_have_less_each() {
        let mut ledger = ledger(64);
        let sent: Vec<u64> = (0..64).map(|id| fill(&mut ledger, id)).collect();
        assert!(sent[0] >= 2 << 20, "{sent:?}");
        assert!(sent.is_sorted_by(|before, after| before >= after), "{sent:?}");
        assert!(sent[15] >= 256 << 10 && sent[63] < 64 << 10, "{sent:?}");
    }

    #[test]
    fn what_is_read_comes_back_and_wakes_who_waits() {
        let mut ledger = ledger(2);
        let first = fill(&mut ledger, 0);
        ledger.wait(0, Waker::noop());
        assert!(ledger.read(1, 0).is_none());
        assert!(ledger.read(0, first).is_some());
        assert_eq!(fill(&mut ledger, 0), first);
        // A peer that has read more than was sent has read all of it.
        assert!(ledger.read(0, u64::MAX).is_none());
        assert_eq!(ledger.used, 0);
    }

    #[test]
    fn a_stream_that_has_ended_counts_until_it_is_read() {
        let mut ledger = ledger(2);
        let first = fill(&mut ledger, 0);
        let used = ledger.used;
        ledger.end(0);
        assert_eq!(ledger.used, used);
        assert!(ledger.read(0, first).is_none());
        assert_eq!((ledger.used, ledger.streams.len()), (0, 1));
        ledger.end(1);
        assert!(ledger.streams.is_empty());
    }

    #[test]
    fn a_peer_that_lies_about_what_it_has_read_hurts_only_itself() {
        for window in [0, 1, WINDOW, u64::MAX] {
            let mut ledger = SendLedger::default();
            ledger.begin(0);
            // Before the peer has reported its window.
            assert_eq!(ledger.take(0, 1 << 40), 1 << 40);
            ledger.set_window(window);
            (1..4).for_each(|id| ledger.begin(id));
            for (id, offset) in [(0, 5), (1, u64::MAX), (2, 0), (3, 1 << 60), (99, 7)] {
                // Forwards, backwards, beyond what was sent, and for streams that do not exist.
                for offset in [offset, 0, u64::MAX, offset / 2, 1] {
                    assert!(ledger.read(id, offset).is_none());
                    ledger.take(id, 100);
                }
                assert_eq!(ledger.take(id, 100), 100, "{window}: {id}, all of which was read");
            }
            (0..4).for_each(|id| ledger.end(id));
            (0..4).for_each(|id| assert!(ledger.read(id, u64::MAX).is_none()));
            assert_eq!((ledger.used, ledger.streams.len()), (0, 0), "{window}");
            ledger.begin(5);
            assert!(ledger.take(5, FLOOR) == FLOOR, "{window}: a new stream has its floor");
        }
    }

    #[test]
    fn a_peer_that_never_says_what_it_reads_makes_nothing_grow() {
        let mut ledger = SendLedger::default();
        assert_eq!(ledger.take(7, 1 << 30), 1 << 30, "no limit without a window");
        ledger.set_window(WINDOW);
        for id in 0..100_000 {
            ledger.begin(id);
            assert!(ledger.take(id, 100) == 100);
            ledger.end(id);
        }
        assert!(ledger.streams.len() <= ENDED && ledger.ended.len() <= ENDED);
    }
}
