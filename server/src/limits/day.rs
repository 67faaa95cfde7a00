//! Tokens per day: how many each device has used since midnight, UTC.

use std::{collections::HashMap, time::Duration};

use proto::identity::DeviceId;
use serde::{Deserialize, Serialize};

const SECONDS: i64 = 86_400;

/// A day in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Day(i64);

impl Day {
    /// The day of `now`, in Unix seconds.
    pub(crate) fn of(now: i64) -> Self {
        Self(now.div_euclid(SECONDS))
    }

    /// How long the day lasts from `now`.
    pub(crate) fn left(self, now: i64) -> Duration {
        let end = (self.0 + 1).saturating_mul(SECONDS);
        Duration::from_secs(u64::try_from(end.saturating_sub(now)).unwrap_or(0))
    }
}

/// The usage of one day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Usage {
    day: Day,
    tokens: HashMap<DeviceId, u64>,
    #[serde(skip)]
    changed: bool,
    /// Changes that the process which has replaced this one does not know yet. That one keeps the
    /// file.
    #[serde(skip)]
    untold: Option<HashMap<DeviceId, i64>>,
}

impl Usage {
    /// How many tokens a device has used on `day`.
    pub(crate) fn used(&self, id: DeviceId, day: Day) -> u64 {
        if day == self.day { self.tokens.get(&id).copied().unwrap_or(0) } else { 0 }
    }

    /// Changes a cost from `before` to `tokens`. Usage of any other day is forgotten, also of a
    /// later day: a clock that ran ahead must not stop the counting.
    pub(crate) fn change(&mut self, id: DeviceId, before: u64, tokens: u64, day: Day) {
        if day != self.day {
            self.tokens.clear();
            self.day = day;
        }
        let used = self.tokens.entry(id).or_default();
        *used = used.saturating_sub(before).saturating_add(tokens);
        self.changed = true;
        if let Some(untold) = &mut self.untold {
            let more = signed(tokens).saturating_sub(signed(before));
            let change = untold.entry(id).or_default();
            *change = change.saturating_add(more);
        }
    }

    /// Adds changes of another process.
    pub(crate) fn add(&mut self, changes: &HashMap<DeviceId, i64>, day: Day) {
        for (id, change) in changes {
            match u64::try_from(*change) {
                Ok(more) => self.change(*id, 0, more, day),
                Err(_) => self.change(*id, change.unsigned_abs(), 0, day),
            }
        }
    }

    /// A copy for the process that replaces this one. From now on [`Usage::untold`] has the changes,
    /// and [`Usage::unsaved`] has nothing.
    pub(crate) fn give(&mut self) -> Self {
        self.untold = Some(HashMap::new());
        Self { untold: None, changed: true, ..self.clone() }
    }

    /// The changes since the last call, for the process that has replaced this one; `None` if there
    /// are none.
    pub(crate) fn untold(&mut self) -> Option<HashMap<DeviceId, i64>> {
        let untold = std::mem::take(self.untold.as_mut()?);
        (!untold.is_empty()).then_some(untold)
    }

    /// Takes a copy of another process over.
    pub(crate) fn take(&mut self, given: Self) {
        *self = Self { changed: true, untold: None, ..given };
    }

    /// Forgets devices that are no longer enrolled.
    pub(crate) fn retain(&mut self, is_enrolled: impl Fn(DeviceId) -> bool) {
        self.tokens.retain(|id, _| is_enrolled(*id));
    }

    /// A copy to save, if anything has changed since the last call.
    pub(crate) fn unsaved(&mut self) -> Option<Self> {
        let is_kept_here = self.untold.is_none();
        (std::mem::take(&mut self.changed) && is_kept_here).then(|| self.clone())
    }
}

fn signed(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_older_process_charges_is_counted_once_and_saved_by_the_newer_one() {
        let (id, today) = (DeviceId::generate(), Day::of(1_800_000_000));
        let mut older = Usage::default();
        older.change(id, 0, 500, today);
        let mut newer = Usage::default();
        newer.take(older.give());
        older.change(id, 0, 100, today);
        older.change(id, 100, 130, today);
        newer.change(id, 0, 7, today);
        assert_eq!((older.used(id, today), newer.used(id, today)), (630, 507));
        newer.add(&older.untold().expect("130"), today);
        assert_eq!(newer.used(id, today), 637);
        assert!(older.untold().is_none() && older.unsaved().is_none());
        // Settled for less than was charged.
        older.change(id, 130, 90, today);
        newer.add(&older.untold().expect("-40"), today);
        assert_eq!((older.used(id, today), newer.used(id, today)), (590, 597));
        assert_eq!(newer.unsaved().map(|saved| saved.used(id, today)), Some(597));
    }
}
