//! What `authorize` says of a request's limits: they hold besides those of the configuration, for the
//! person whom it names.

use governor::clock::Clock;
use proto::identity::{DeviceId, UserName};

use super::{
    Counted, Counter, Exceeded, Inner, LimitedDevice, Limiter,
    account::{Account, granted_id},
    rate,
    settings::Alone,
};
use crate::record::{Granted, Limits};

impl Limits {
    /// Lowers the limits to those that were granted. The rate is left out: it is counted apart,
    /// because a request has already been counted when `authorize` is asked.
    pub(super) fn lower(&mut self, granted: Option<&Granted>) {
        let Some(Granted { limits, .. }) = granted else { return };
        self.at_once = lowest(self.at_once, limits.at_once);
        self.body = lowest(self.body, limits.body);
        self.tokens_per_day = lowest(self.tokens_per_day, limits.tokens_per_day);
    }
}

/// Lowers the limits of a user; those of its device where only the device counts.
pub(super) fn lower(own: &mut Limits, user: &mut Limits, granted: Option<&Granted>, alone: Alone) {
    let (before, mut lowered) = (*user, *user);
    lowered.lower(granted);
    *user = lowered;
    let mut of_device = *own;
    of_device.lower(granted);
    if alone.at_once {
        (own.at_once, user.at_once) = (of_device.at_once, before.at_once);
    }
    if alone.tokens_per_day {
        (own.tokens_per_day, user.tokens_per_day) =
            (of_device.tokens_per_day, before.tokens_per_day);
    }
}

fn lowest<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl<C: Clock + Clone> Limiter<C> {
    /// Counts a request by the rate that `authorize` has answered, and remembers on whose account it
    /// is.
    pub(super) fn enter_granted(
        &self,
        inner: &mut Inner<C>,
        device: LimitedDevice<'_>,
        granted: &Granted,
        counted: &[Counted],
    ) -> Result<(), Exceeded> {
        if let Some(user) = &granted.user
            && inner.members.user(device.id) != Some(user)
        {
            inner.members.add_tokens(granted_id(user), user);
        }
        let Some(most) = granted.limits.requests_per_minute else { return Ok(()) };
        let is_alone = |user: &UserName| {
            inner.table.alone(user.as_str(), device.configured()).requests_per_minute
        };
        let at = match counted.last().map(|last| &last.account) {
            Some(Account::User(user)) if is_alone(user) => counted.first(),
            _ => counted.last(),
        };
        let Some(Counted { account, whose, .. }) = at else { return Ok(()) };
        let counter = inner.counters.entry(account.clone()).or_insert_with(Counter::new);
        let rate = rate(&mut counter.granted, most, granted.limits.burst, &self.clock);
        self.check(rate, most, whose.clone())
    }
}

impl<C: Clock> Inner<C> {
    /// The user on whose account a request counts, if there is one.
    pub(super) fn user<'d>(&'d self, device: &LimitedDevice<'d>) -> Option<&'d UserName> {
        let granted = device.granted.and_then(|granted| granted.user.as_ref());
        granted.or_else(|| self.members.user(device.id))
    }

    /// By which id the tokens of a request are counted: that of its device or key, unless `authorize`
    /// has named another person, who pays then. A device with a limit of its own pays for itself.
    pub(super) fn payer(&self, device: LimitedDevice<'_>) -> DeviceId {
        match device.granted.and_then(|granted| granted.user.as_ref()) {
            Some(user)
                if self.members.user(device.id) != Some(user)
                    && !self.table.alone(user.as_str(), device.configured()).tokens_per_day =>
            {
                granted_id(user)
            }
            _ => device.id,
        }
    }
}
