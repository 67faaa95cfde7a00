//! A bounded queue that serves devices in turn, and the requests of each device in the order in
//! which they came. It only decides: no task, no clock.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    num::NonZeroUsize,
};

/// A place in the queue; each ticket is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// What [`FairQueue::enter`] decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// The request has a turn.
    Now,
    /// The request waits.
    Waits(Ticket),
    /// The first request waits. The second one is removed from the full queue, because its device
    /// had the most requests in it.
    WaitsInsteadOf(Ticket, Ticket),
    /// The queue is full.
    Full,
}

pub(super) struct FairQueue<D> {
    most: Option<NonZeroUsize>,
    max_waiting: usize,
    running: usize,
    next: u64,
    /// Devices with waiting requests, the next one first. Each device stands here once.
    turns: VecDeque<D>,
    waiting: HashMap<D, VecDeque<Ticket>>,
    owners: HashMap<Ticket, D>,
}

impl<D: Clone + Eq + Hash> FairQueue<D> {
    pub(super) fn new(most: Option<NonZeroUsize>, max_waiting: usize) -> Self {
        Self {
            most,
            max_waiting,
            running: 0,
            next: 0,
            turns: VecDeque::new(),
            waiting: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    pub(super) fn most(&self) -> Option<NonZeroUsize> {
        self.most
    }

    pub(super) fn resize(&mut self, most: Option<NonZeroUsize>, max_waiting: usize) {
        (self.most, self.max_waiting) = (most, max_waiting);
    }

    /// A request of `device` arrives.
    pub(super) fn enter(&mut self, device: D) -> Entered {
        // No request overtakes the waiting ones, even if a turn is free in this moment.
        if self.has_room() && self.owners.is_empty() {
            self.running += 1;
            return Entered::Now;
        }
        let mut evicted = None;
        if self.owners.len() >= self.max_waiting {
            match self.newest_of_the_longest(&device) {
                Some(ticket) => evicted = Some(ticket),
                None => return Entered::Full,
            }
        }
        if let Some(ticket) = evicted {
            self.leave(ticket);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        let mine = self.waiting.entry(device.clone()).or_default();
        if mine.is_empty() {
            self.turns.push_back(device.clone());
        }
        mine.push_back(ticket);
        self.owners.insert(ticket, device);
        evicted.map_or(Entered::Waits(ticket), |evicted| Entered::WaitsInsteadOf(ticket, evicted))
    }

    /// How many requests get a turn before the newest one of `device`, if none comes or goes.
    pub(super) fn before_newest_of(&self, device: D) -> usize {
        let Some(rank) = self.waiting.get(&device).and_then(|mine| mine.len().checked_sub(1))
        else {
            return 0;
        };
        let mut is_behind = false;
        let before = |other: &D| {
            // In each round one request of each device; those behind `device` have one less.
            is_behind |= *other == device;
            let rounds = if is_behind { rank } else { rank + 1 };
            self.waiting.get(other).map_or(0, |theirs| theirs.len().min(rounds))
        };
        self.turns.iter().map(before).sum()
    }

    /// All waiting requests in the order of their turns, if none comes or goes.
    pub(super) fn in_order(&self) -> Vec<(D, Ticket)> {
        let mut order = Vec::with_capacity(self.owners.len());
        let mut devices: Vec<_> = self
            .turns
            .iter()
            .filter_map(|device| Some((device, self.waiting.get(device)?.iter())))
            .collect();
        while !devices.is_empty() {
            devices.retain_mut(|(device, tickets)| {
                tickets.next().map(|ticket| order.push(((*device).clone(), *ticket))).is_some()
            });
        }
        order
    }

    /// The newest request of the device that has the most in the queue, if it has more than
    /// `device` would have after joining.
    fn newest_of_the_longest(&self, device: &D) -> Option<Ticket> {
        let mine = self.waiting.get(device).map_or(0, VecDeque::len);
        let longest = self.waiting.values().max_by_key(|theirs| theirs.len())?;
        if longest.len() > mine + 1 { longest.back().copied() } else { None }
    }

    /// Takes the next request from the queue if a turn is free, and gives it the turn.
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

    /// A turn ends.
    pub(super) fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// A request stops waiting. A ticket that is not in the queue changes nothing.
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

    pub(super) fn max_waiting(&self) -> usize {
        self.max_waiting
    }

    pub(super) fn is_bounded(&self) -> bool {
        self.most.is_some()
    }

    fn has_room(&self) -> bool {
        self.most.is_none_or(|most| self.running < most.get())
    }
}
