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
    }

    /// Forgets devices that are no longer enrolled.
    pub(crate) fn retain(&mut self, is_enrolled: impl Fn(DeviceId) -> bool) {
        self.tokens.retain(|id, _| is_enrolled(*id));
    }

    /// A copy to save, if anything has changed since the last call.
    pub(crate) fn unsaved(&mut self) -> Option<Self> {
        std::mem::take(&mut self.changed).then(|| self.clone())
    }
}
