//! How much of their limits accounts use, for people and programs.

use governor::clock::Clock;
use proto::identity::{DeviceId, UserName};

use super::{Account, Counted, Day, LimitedDevice, Limiter};
use crate::record::Limits;

/// An account, its limits and its usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub account: Account,
    pub limits: Limits,
    /// Tokens of the UTC day.
    pub tokens: u64,
    /// Requests that run.
    pub running: u32,
}

impl<C: Clock + Clone> Limiter<C> {
    /// The accounts on which a request of this device counts: that of the device, if it has limits or
    /// turns of its own, and last that of its user. `now` is Unix time.
    pub(crate) fn shares(&self, device: LimitedDevice<'_>, now: i64) -> Vec<Share> {
        let (inner, today) = (self.lock(), Day::of(now));
        let mut counted = inner.counted(device);
        let last = counted.pop();
        let has_own = |one: &Counted| {
            one.limits.at_once.is_some()
                || one.limits.tokens_per_day.is_some()
                || one.limits.requests_per_minute.is_some()
        };
        let share = |one: Counted| Share {
            tokens: inner.used(&one.account, today),
            running: inner.running(&one.account),
            limits: one.limits,
            account: one.account,
        };
        counted.into_iter().filter(has_own).chain(last).map(share).collect()
    }

    /// Those who are not in the register: who has come with a token, and who was named by `authorize`.
    pub(crate) fn not_registered(&self) -> Vec<(DeviceId, UserName)> {
        self.lock().members.with_tokens().map(|(id, user)| (id, user.clone())).collect()
    }
}
