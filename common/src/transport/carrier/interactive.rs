//! The interactive data of one connection: how much of it waits to be sent, and what of it is sent
//! a second time.
//!
//! Where the link loses, a datagram with interactive data is sent twice: see `redundancy.rs`. If
//! bulk data has filled that datagram, this would cost ten times as much as the interactive data
//! alone. That is then sent again instead, in a DATAGRAM frame (RFC 9221), which QUIC puts into a
//! later packet: see `transport/copies.rs`.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use proto::copies::StreamCopy;
use tokio::sync::Notify;

/// The most bytes that are sent again in one DATAGRAM frame, and the most frames of one write: a
/// stream with more than 32 KiB on the way is bulk.
const LONGEST: usize = 1_000;
const MOST_OF_A_WRITE: usize = 33;
/// What a frame has besides the data: its own head and that of the copy, in bytes.
const FRAME: usize = 24;
/// The most frames that may wait; the oldest are dropped.
const MOST_WAITING: usize = 256;
/// How often the time of a copy is put off while its data waits to be sent a first time.
const PUT_OFF: u8 = 8;
/// Budget that is not used can be saved up for this time. At least `LEAST_SAVED` bytes can be
/// saved, so that a few copies are always possible.
const SAVED: Duration = Duration::from_millis(250);
const LEAST_SAVED: u64 = 2_000;

/// How data is sent twice on a lossy path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Protection {
    /// How long after the datagram its copy is sent.
    pub after: Duration,
    /// The round-trip time.
    pub round_trip: Duration,
    /// The bandwidth that copies may use, in bytes per second, headers included.
    pub budget: u64,
    /// The part of single packets that the link loses, from 0 to 1, as far as losses of several
    /// packets are independent.
    pub loss: f64,
}

/// Counts what has been sent a second time: datagrams, and their bytes.
#[derive(Debug, Default)]
pub(super) struct CopyCounters {
    pub(super) datagrams: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// The interactive data of one connection, in the direction to the peer.
#[derive(Debug, Default)]
pub struct InteractiveData {
    /// The bytes that have been written and not yet sent. QUIC puts them first into the next
    /// datagram, and fills that with what else there is.
    unsent: AtomicU64,
    /// Whether the peer takes copies in DATAGRAM frames.
    accepted: AtomicBool,
    /// Whether writes are kept in `state`. It spares other writes the lock.
    kept: AtomicBool,
    state: Mutex<State>,
    /// Notified when the first copy waits.
    due: Notify,
}

#[derive(Debug, Default)]
struct State {
    protection: Option<Protection>,
    budget: Budget,
    /// When interactive data last left in a datagram that bulk data had filled.
    filled: Option<Instant>,
    /// Sorted by time.
    writes: VecDeque<Written>,
    counters: Arc<CopyCounters>,
}

#[derive(Debug)]
struct Written {
    at: Instant,
    copied_at: Instant,
    put_off: u8,
    copy: StreamCopy,
}

/// What copies may cost: bytes that are saved up as time passes.
#[derive(Debug, Default)]
struct Budget {
    saved: u64,
    at: Option<Instant>,
}

/// What to do about the copies that wait.
#[derive(Debug, PartialEq, Eq)]
pub enum NextCopy {
    /// Send this one now.
    Send(StreamCopy),
    /// Nothing before this moment.
    Wait(Instant),
    /// None waits.
    Nothing,
}

impl InteractiveData {
    /// `bytes` bytes are written now.
    pub fn add(&self, bytes: usize) {
        self.unsent.fetch_add(bytes as u64, Relaxed);
    }

    /// `bytes` of the bytes that were added have not been written after all.
    pub fn remove(&self, bytes: usize) {
        let less = |all: u64| Some(all.saturating_sub(bytes as u64));
        // It always has a value.
        let _ = self.unsent.fetch_update(Relaxed, Relaxed, less);
    }

    /// The peer takes copies in DATAGRAM frames, or it does not.
    pub fn accept_copies(&self, accepted: bool) {
        self.accepted.store(accepted, Release);
        self.keep(&self.state());
    }

    /// When a write begins whose bytes may be sent again; `None` if none are.
    pub fn begin_write(&self) -> Option<Instant> {
        self.kept.load(Relaxed).then(Instant::now)
    }

    /// A write that began at `at` has put `bytes` into `stream`, from `offset` on.
    pub fn wrote(&self, at: Instant, stream: u64, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        let is_first = state.writes.is_empty();
        state.wrote(at, stream, offset, bytes);
        if is_first && !state.writes.is_empty() {
            self.due.notify_one();
        }
    }

    /// The copy that is to be sent at `now`, or when to ask again.
    pub fn next_copy(&self, now: Instant) -> NextCopy {
        let is_unsent = self.unsent.load(Relaxed) > 0;
        self.state().next(now, is_unsent)
    }

    /// Ends when copies wait after none did. Cancellation safe.
    pub async fn copies_wait(&self) {
        self.due.notified().await;
    }

    /// From `now` on the path is protected so.
    pub(super) fn protect(&self, now: Instant, protection: Protection) {
        let mut state = self.state();
        state.protect(now, protection);
        self.keep(&state);
    }

    /// The path is protected no longer, or another one is used that loses nothing.
    pub fn unprotect(&self) {
        let mut state = self.state();
        state.protection = None;
        state.writes.clear();
        self.keep(&state);
    }

    /// Where copies are counted.
    pub(super) fn count_in(&self, counters: &Arc<CopyCounters>) {
        self.state().counters = counters.clone();
    }

    /// The bytes that have not been sent; from now on there are none.
    pub(super) fn take_unsent(&self) -> u64 {
        self.unsent.swap(0, Relaxed)
    }

    /// `bytes` bytes are still unsent.
    pub(super) fn still_unsent(&self, bytes: u64) {
        self.unsent.fetch_add(bytes, Relaxed);
    }

    /// Interactive data leaves at `now` in a datagram that bulk data has filled. Returns whether that
    /// data alone is sent again.
    pub(super) fn leaves_in_full(&self, now: Instant) -> bool {
        let kept = self.kept.load(Relaxed);
        if kept {
            self.state().filled = Some(now);
        }
        kept
    }

    /// Whether the budget allows a copy of `bytes` bytes; if so it is spent.
    pub(super) fn spend(&self, now: Instant, bytes: u64) -> bool {
        self.state().spend(now, bytes)
    }

    fn keep(&self, state: &State) {
        self.kept.store(state.protection.is_some() && self.accepted.load(Relaxed), Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn protect(&mut self, now: Instant, new: Protection) {
        match self.protection {
            // At the old rate up to now.
            Some(before) => self.budget.save(now, before.budget),
            None => self.budget = Budget { saved: u64::MAX, at: Some(now) },
        }
        self.budget.saved = self.budget.saved.min(most_saved(new.budget));
        self.protection = Some(new);
    }

    fn spend(&mut self, now: Instant, bytes: u64) -> bool {
        self.protection.is_some_and(|it| self.budget.spend(now, it.budget, bytes))
    }

    fn wrote(&mut self, at: Instant, stream: u64, offset: u64, bytes: &[u8]) {
        let Some(Protection { after, .. }) = self.protection else { return };
        if bytes.len() > LONGEST * MOST_OF_A_WRITE {
            return;
        }
        let mut offset = offset;
        for piece in bytes.chunks(LONGEST) {
            if self.writes.len() >= MOST_WAITING {
                self.writes.pop_front();
            }
            let copy = StreamCopy { stream, offset, bytes: Bytes::copy_from_slice(piece) };
            self.writes.push_back(Written { at, copied_at: at + after, put_off: 0, copy });
            offset += piece.len() as u64;
        }
    }

    fn next(&mut self, now: Instant, is_unsent: bool) -> NextCopy {
        while let Some(first) = self.writes.front() {
            if first.copied_at > now {
                return NextCopy::Wait(first.copied_at);
            }
            let Some(mut first) = self.writes.pop_front() else { break };
            let left_in_full = self.filled.is_some_and(|filled| filled >= first.at);
            if left_in_full {
                let cost = first.copy.bytes.len() + FRAME;
                if self.spend(now, cost as u64) {
                    self.counters.datagrams.fetch_add(1, Relaxed);
                    self.counters.bytes.fetch_add(cost as u64, Relaxed);
                    return NextCopy::Send(first.copy);
                }
            } else if let (true, true, Some(it)) =
                (is_unsent, first.put_off < PUT_OFF, self.protection)
            {
                // A copy beside the data itself, in one packet, would be lost with it.
                first.put_off += 1;
                first.copied_at = now + it.after;
                let place = self.writes.partition_point(|other| other.copied_at <= first.copied_at);
                self.writes.insert(place, first);
            }
        }
        NextCopy::Nothing
    }
}

impl Budget {
    fn save(&mut self, now: Instant, rate: u64) {
        let time = now.saturating_duration_since(self.at.unwrap_or(now));
        let more = (rate as f64 * time.as_secs_f64()) as u64;
        if more > 0 || self.at.is_none() {
            self.at = Some(now);
            self.saved = (self.saved + more).min(most_saved(rate));
        }
    }

    fn spend(&mut self, now: Instant, rate: u64, bytes: u64) -> bool {
        self.save(now, rate);
        let rest = self.saved.checked_sub(bytes);
        self.saved = rest.unwrap_or(self.saved);
        rest.is_some()
    }
}

fn most_saved(budget: u64) -> u64 {
    ((budget as f64 * SAVED.as_secs_f64()) as u64).max(LEAST_SAVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_millis(5);

    fn protection(budget: u64) -> Protection {
        Protection { after: AFTER, round_trip: 10 * AFTER, budget, loss: 0.01 }
    }

    fn protected(now: Instant, budget: u64) -> InteractiveData {
        let data = InteractiveData::default();
        data.accept_copies(true);
        data.protect(now, protection(budget));
        data
    }

    fn copy(offset: u64, bytes: &[u8]) -> StreamCopy {
        StreamCopy { stream: 4, offset, bytes: Bytes::copy_from_slice(bytes) }
    }

    #[test]
    fn what_left_in_a_full_datagram_is_sent_again_and_nothing_else_is() {
        for (accepted, is_protected, full, copied) in [
            (true, true, true, true),
            (true, true, false, false),
            (true, false, true, false),
            (false, true, true, false),
        ] {
            let now = Instant::now();
            let data = InteractiveData::default();
            data.accept_copies(accepted);
            data.protect(now, protection(1_000_000));
            if !is_protected {
                data.unprotect();
            }
            assert_eq!(data.begin_write().is_some(), accepted && is_protected);
            if accepted && is_protected {
                data.wrote(now, 4, 70, b"token");
                assert_eq!(data.next_copy(now), NextCopy::Wait(now + AFTER));
            }
            if full {
                assert_eq!(data.leaves_in_full(now + AFTER / 2), accepted && is_protected);
            }
            let next = data.next_copy(now + AFTER);
            let expected =
                if copied { NextCopy::Send(copy(70, b"token")) } else { NextCopy::Nothing };
            assert_eq!(next, expected, "{accepted} {is_protected} {full}");
            assert_eq!(data.next_copy(now + AFTER), NextCopy::Nothing);
        }
    }

    #[test]
    fn a_copy_waits_until_its_data_has_left() {
        let now = Instant::now();
        let data = protected(now, 1_000_000);
        data.leaves_in_full(now);
        let later = now + AFTER / 5;
        data.add(5);
        data.wrote(later, 4, 0, b"token");
        // An earlier datagram was full, which says nothing of this data.
        let due = later + AFTER;
        assert_eq!(data.next_copy(due), NextCopy::Wait(due + AFTER));
        assert_eq!(data.take_unsent(), 5);
        data.leaves_in_full(due + AFTER / 2);
        assert_eq!(data.next_copy(due + AFTER), NextCopy::Send(copy(0, b"token")));
        // It does not wait for ever.
        data.still_unsent(5);
        let begin = due + 2 * AFTER;
        data.wrote(begin, 4, 5, b"again");
        let mut at = begin;
        for _ in 0..=PUT_OFF {
            let NextCopy::Wait(next) = data.next_copy(at) else { panic!("it waits") };
            at = next;
        }
        assert_eq!(data.next_copy(at), NextCopy::Nothing);
    }

    #[test]
    fn a_long_write_is_copied_in_pieces_and_a_very_long_one_is_not() {
        for (len, pieces) in [
            (1, vec![(0, 1)]),
            (LONGEST, vec![(0, LONGEST)]),
            (LONGEST + 1, vec![(0, LONGEST), (LONGEST, 1)]),
            (LONGEST * MOST_OF_A_WRITE + 1, vec![]),
        ] {
            let now = Instant::now();
            let data = protected(now, 1_000_000);
            data.wrote(now, 4, 0, &vec![7; len]);
            data.leaves_in_full(now);
            let copies = std::iter::from_fn(|| match data.next_copy(now + AFTER) {
                NextCopy::Send(copy) => Some((copy.offset as usize, copy.bytes.len())),
                _ => None,
            });
            assert_eq!(copies.collect::<Vec<_>>(), pieces, "{len} bytes");
        }
    }

    #[test]
    fn copies_keep_within_their_budget_and_their_number() {
        let begin = Instant::now();
        let data = protected(begin, 10_000);
        let mut sent = 0;
        for i in 0..10_000 {
            let now = begin + Duration::from_millis(i);
            data.wrote(now, 4, i * 76, &[1; 76]);
            data.leaves_in_full(now);
            while let NextCopy::Send(_) = data.next_copy(now) {
                sent += 1;
            }
        }
        // Of 100 bytes each; what is saved at the beginning are 25.
        assert!((990..=1_030).contains(&sent), "{sent} in ten seconds");
        let data = protected(begin, 1_000_000_000);
        for i in 0..2 * MOST_WAITING as u64 {
            data.wrote(begin, 4, i, b"1");
        }
        data.leaves_in_full(begin);
        assert_eq!(data.next_copy(begin + AFTER), NextCopy::Send(copy(MOST_WAITING as u64, b"1")));
        // The end of the protection is the end of what waits.
        data.unprotect();
        assert_eq!(data.next_copy(begin + AFTER), NextCopy::Nothing);
    }
}
