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
/// A stream that the peer reads may use more of the free pool, one half, if the path holds as much.
const SHARES_TO_FILL_THE_PATH: u64 = 2;
/// What a stream needs to fill its path: as much again as the path holds, as reports of what has been
/// read come later than acknowledgements.
const PATHS: u64 = 2;
/// What a stream may use on every path.
const ORDINARY: u64 = 2 << 20;
/// A stream with so many unread bytes carries bulk data: more than a prompt or tokens.
const BULK: u64 = 32 << 10;
/// The most streams that are remembered after their end because the peer has not read all of them.
/// Beyond that, the oldest count as read: a peer that does not report only delays itself.
const ENDED: usize = 8192;

/// Keeps the unread bytes of each stream below its share.
///
/// Every stream has a floor of its own. The rest of the window is a pool: a stream may use an
/// eighth of what is free in it, and a half if it has been read so far and the path holds as much. So
/// one stream alone can fill a fast and long path. Many unread streams get smaller and smaller
/// shares, but never use up the pool.
#[derive(Default)]
pub(super) struct SendLedger {
    /// The peer's window without all floors, in bytes. `None` while it is unknown: then there is no
    /// limit.
    pool: Option<u64>,
    /// How many bytes of the pool are used.
    used: u64,
    /// How many bytes the path holds: the congestion window.
    path: u64,
    streams: HashMap<u64, SentStream>,
    ended: VecDeque<u64>,
}

#[derive(Default)]
struct SentStream {
    sent: u64,
    read: u64,
    ended: bool,
    bulk: bool,
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

    /// How many bytes the path holds now.
    pub(super) fn set_path(&mut self, window: u64) {
        self.path = window;
    }

    pub(super) fn begin(&mut self, id: u64) {
        self.streams.insert(id, SentStream::default());
    }

    /// Takes the share that a stream may send now, at most `most` bytes. 0 if it has to wait.
    pub(super) fn take(&mut self, id: u64, most: u64) -> u64 {
        let Some(stream) = self.streams.get_mut(&id) else { return most };
        let share = match self.pool {
            Some(pool) => {
                let free = pool.saturating_sub(self.used);
                let fills_path = self.path.saturating_mul(PATHS);
                let of_free = fills_path.min(stream.read).min(free / SHARES_TO_FILL_THE_PATH);
                FLOOR + of_free.max(free / SHARES).min(fills_path.max(ORDINARY))
            }
            None => u64::MAX,
        };
        let taken = most.min(share.saturating_sub(stream.unread()));
        let before = stream.beyond_floor();
        stream.sent += taken;
        self.used += stream.beyond_floor() - before;
        taken
    }

    /// Whether a stream carries bulk data: by what has been sent of it and not read, however old it
    /// is. It does until most of that has been read.
    pub(super) fn is_bulk(&mut self, id: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let least = if stream.bulk { BULK / 2 } else { BULK };
        stream.bulk = stream.unread() >= least;
        stream.bulk
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
    fn a_stream_is_bulk_while_much_of_it_is_unread() {
        let mut ledger = ledger(1);
        let (mut sent, mut read) = (0, 0);
        for (sends, reads, bulk) in [
            // bytes that are sent, bytes that are read, and what the stream is then
            (300, 0, false),
            (FLOOR, 0, false),
            (20_000, 0, false),
            (5000, 0, true),
            (0, 4000, true),
            (0, 12_000, true),
            (0, 2000, false),
            // Half of the bound is not enough to begin.
            (4000, 0, false),
            (14_000, 0, true),
            (0, 33_000, false),
        ] {
            assert_eq!(ledger.take(0, sends), sends);
            (sent, read) = (sent + sends, read + reads);
            assert!(ledger.read(0, read).is_none());
            assert_eq!(ledger.is_bulk(0), bulk, "{read} of {sent} bytes read");
        }
        assert!(!ledger.is_bulk(99), "a stream that is not there");
    }

    #[test]
    fn tokens_are_never_bulk_however_many_they_are() {
        let mut ledger = ledger(1);
        for token in 1..100_000 {
            assert_eq!(ledger.take(0, 300), 300);
            assert!(!ledger.is_bulk(0));
            // The peer reports half of the floor at once.
            let _ = ledger.read(0, (token * 300) / FLOOR * FLOOR);
        }
    }

    #[test]
    fn a_stream_that_is_read_fills_a_fast_and_long_path_and_one_that_is_not_does_not() {
        const MIB: u64 = 1 << 20;
        for (path, read, least, most) in [
            // what the path holds, what the peer has read, what one stream may have unread
            (0, 0, 2 * MIB, 3 * MIB),
            (100_000, 100 * MIB, 2 * MIB, 3 * MIB),
            (6 * MIB, 0, 3 * MIB, 5 * MIB),
            (6 * MIB, 100 * MIB, 10 * MIB, 12 * MIB),
            (100 * MIB, 100 * MIB, 10 * MIB, 16 * MIB),
            (u64::MAX, u64::MAX, 10 * MIB, 16 * MIB),
        ] {
            let mut ledger = ledger(2);
            ledger.set_path(path);
            let mut sent = 0;
            while sent < read.min(200 * MIB) {
                sent += ledger.take(0, 64 << 10);
                let _ = ledger.read(0, sent);
            }
            let unread = fill(&mut ledger, 0);
            assert!((least..=most).contains(&unread), "{path}, {read}: {unread}");
            assert!(fill(&mut ledger, 1) >= 2 * MIB - FLOOR, "another stream still has much");
        }
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
