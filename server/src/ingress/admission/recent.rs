//! A bounded map that forgets its oldest entries.

use std::{collections::HashMap, hash::Hash};

/// Remembers at least the last `most` keys that were put in, and at most twice as many.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    most: usize,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    pub(crate) fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most }
    }

    /// The value of `key`, if it is remembered.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match self.young.get_mut(key) {
            Some(value) => Some(value),
            None => self.old.get_mut(key),
        }
    }

    pub(crate) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_and_the_memory_is_bounded() {
        let mut recent = Recent::new(10);
        for key in 0..1000 {
            recent.put(key, key * 2);
            for last in (key - 9).max(0)..=key {
                assert_eq!(recent.get_mut(&last), Some(&mut (last * 2)), "{last} at {key}");
            }
            assert!(recent.young.len() + recent.old.len() <= 20);
        }
        assert_eq!(recent.get_mut(&900), None);
    }
}
