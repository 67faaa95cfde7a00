//! The best recent value.

use std::collections::VecDeque;

/// The best of what was added within a span of time or of rounds; the newest value always counts.
/// Better is what is greater: for the lowest, add `Reverse`.
#[derive(Debug, Clone)]
pub(super) struct Best<T, V> {
    /// Each is the best of all that came after it.
    seen: VecDeque<(T, V)>,
}

impl<T, V> Default for Best<T, V> {
    fn default() -> Self {
        Self { seen: VecDeque::new() }
    }
}

impl<T: Copy + PartialOrd, V: Copy + PartialOrd> Best<T, V> {
    /// Adds a value, and forgets values that are older than `oldest`.
    pub(super) fn add(&mut self, at: T, value: V, oldest: T) {
        while self.seen.back().is_some_and(|seen| seen.1 <= value) {
            self.seen.pop_back();
        }
        self.seen.push_back((at, value));
        while self.seen.len() > 1 && self.seen[0].0 < oldest {
            self.seen.pop_front();
        }
    }

    /// When the best value was added.
    pub(super) fn at(&self) -> Option<T> {
        self.seen.front().map(|seen| seen.0)
    }

    pub(super) fn get(&self) -> Option<V> {
        self.seen.front().map(|seen| seen.1)
    }
}
