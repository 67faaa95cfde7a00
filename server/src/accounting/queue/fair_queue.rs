//! A bounded line that serves devices in turn, and each device's requests in the order in which
//! they came. It only decides: no task, no clock.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    num::NonZeroUsize,
};

/// A place in the line; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// What became of one who came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// It has a turn.
    Now,
    /// It waits.
    Waits(Ticket),
    /// It waits, and the second one does so no more: the line was full, mostly of that one's
    /// device.
    WaitsInsteadOf(Ticket, Ticket),
    /// There is no room to wait.
    Full,
}

/// The line.
pub(super) struct FairQueue<D> {
    most: Option<NonZeroUsize>,
    room: usize,
    running: usize,
    next: u64,
    /// Devices with somebody in the line, whose turn is first in front. Each stands here once,
    /// however many it sends.
    turns: VecDeque<D>,
    waiting: HashMap<D, VecDeque<Ticket>>,
    owners: HashMap<Ticket, D>,
}

impl<D: Copy + Eq + Hash> FairQueue<D> {
    pub(super) fn new(most: Option<NonZeroUsize>, room: usize) -> Self {
        Self {
            most,
            room,
            running: 0,
            next: 0,
            turns: VecDeque::new(),
            waiting: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    pub(super) fn resize(&mut self, most: Option<NonZeroUsize>, room: usize) {
        (self.most, self.room) = (most, room);
    }

    /// Somebody comes.
    pub(super) fn enter(&mut self, device: D) -> Entered {
        // Nobody passes those who wait, even if a place is free in this moment.
        if self.has_room() && self.owners.is_empty() {
            self.running += 1;
            return Entered::Now;
        }
        let mut evicted = None;
        if self.owners.len() >= self.room {
            match self.newest_of_the_longest(device) {
                Some(ticket) => evicted = Some(ticket),
                None => return Entered::Full,
            }
        }
        if let Some(ticket) = evicted {
            self.leave(ticket);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        let mine = self.waiting.entry(device).or_default();
        if mine.is_empty() {
            self.turns.push_back(device);
        }
        mine.push_back(ticket);
        self.owners.insert(ticket, device);
        evicted.map_or(Entered::Waits(ticket), |evicted| Entered::WaitsInsteadOf(ticket, evicted))
    }

    /// Whoever came last for the device with the most in the line, if that are more than `device`
    /// would then have.
    fn newest_of_the_longest(&self, device: D) -> Option<Ticket> {
        let mine = self.waiting.get(&device).map_or(0, VecDeque::len);
        let longest = self.waiting.values().max_by_key(|theirs| theirs.len())?;
        if longest.len() > mine + 1 { longest.back().copied() } else { None }
    }

    /// Whose turn it is, if there is room; it has one from now on.
    pub(super) fn next(&mut self) -> Option<Ticket> {
        if !self.has_room() {
            return None;
        }
        let device = self.turns.pop_front()?;
        let mine = self.waiting.get_mut(&device)?;
        let ticket = mine.pop_front()?;
        if mine.is_empty() {
            self.waiting.remove(&device);
        } else {
            self.turns.push_back(device);
        }
        self.owners.remove(&ticket);
        self.running += 1;
        Some(ticket)
    }

    /// A turn is over.
    pub(super) fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Somebody doesn't wait any more. One who isn't in the line changes nothing.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let Some(device) = self.owners.remove(&ticket) else { return };
        let Some(mine) = self.waiting.get_mut(&device) else { return };
        mine.retain(|other| *other != ticket);
        if mine.is_empty() {
            self.waiting.remove(&device);
            self.turns.retain(|other| *other != device);
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn waiting(&self) -> usize {
        self.owners.len()
    }

    pub(super) fn is_bounded(&self) -> bool {
        self.most.is_some()
    }

    fn has_room(&self) -> bool {
        self.most.is_none_or(|most| self.running < most.get())
    }
}
