//! How much a device may ask for: requests per minute and at once, the size of a body, tokens per
//! day.
//!
//! The limits come from three layers of settings (`settings`); this module counts the usage of each
//! device. The clock and the time of day are passed in.

mod day;
mod settings;
mod store;

pub(crate) use day::{Day, Usage};
pub(crate) use settings::{LimitSettings, LimitTable, Limits, Size};
pub(crate) use store::UsageFile;

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use proto::{
    human::{self, count},
    identity::{DeviceId, Name},
};

use crate::record::CallerKind;

/// The `Retry-After` when nobody knows how long a running request takes.
const SOON: Duration = Duration::from_secs(1);

/// Counts the usage of every device, and refuses requests above a limit. Without settings nothing
/// is limited.
pub(crate) struct Limiter<C: Clock = DefaultClock> {
    clock: C,
    inner: Mutex<Inner<C>>,
}

struct Inner<C: Clock> {
    table: Arc<LimitTable>,
    devices: HashMap<DeviceId, Counter<C>>,
    tokens: Usage,
}

type Rate<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

struct Counter<C: Clock> {
    limits: Limits,
    rate: Option<Rate<C>>,
    at_once: u32,
}

/// The device or key of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitedDevice<'a> {
    pub kind: CallerKind,
    /// Usage is counted by the device's id, so that a new name gives no new allowance.
    pub id: DeviceId,
    pub name: &'a Name,
    pub role: &'a str,
}

/// A limit that was exceeded. Its text is a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Exceeded {
    pub limit: Limit,
    pub kind: CallerKind,
    pub device: Name,
    /// When trying again may help; `None` if never.
    pub retry_after: Option<Duration>,
}

/// A limit and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Requests per minute.
    Rate(NonZeroU32),
    /// Requests at once.
    AtOnce(NonZeroU32),
    /// Bytes of a request's body.
    Body(u64),
    /// Tokens per UTC day.
    Tokens(u64),
}

impl Limit {
    /// The name in metrics and in the audit log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rate(_) => "requests_per_minute",
            Self::AtOnce(_) => "at_once",
            Self::Body(_) => "body",
            Self::Tokens(_) => "tokens_per_day",
        }
    }
}

impl Exceeded {
    /// The HTTP status of the refusal.
    pub(crate) fn status(&self) -> u16 {
        if matches!(self.limit, Limit::Body(_)) { 413 } else { 429 }
    }

    /// The value of `Retry-After` in whole seconds, rounded up: a client that comes back too early
    /// is refused again.
    pub(crate) fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after
            .map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
            .map(|secs| secs.max(1))
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, device, .. } = self;
        match self.limit {
            Limit::Rate(most) => {
                let requests = count(most.get(), "request");
                write!(f, "{kind} `{device}` may make {requests} per minute")?
            }
            Limit::AtOnce(most) => {
                let requests = count(most.get(), "request");
                write!(f, "{kind} `{device}` may have {requests} running at once")?
            }
            Limit::Body(most) => {
                let most = human::size(most);
                write!(f, "{kind} `{device}` may send {most} with a request (limit `body`)")?
            }
            Limit::Tokens(most) => {
                let tokens = count(most, "token");
                write!(f, "{kind} `{device}` may use {tokens} per day (UTC), and has used them")?
            }
        }
        match (self.limit, self.retry_after_secs()) {
            (Limit::AtOnce(_), _) => f.write_str("; try again when one has ended"),
            (_, Some(secs)) => {
                write!(f, "; try again in {}", human::time(Duration::from_secs(secs)))
            }
            (_, None) => Ok(()),
        }
    }
}

impl Limiter {
    /// Applies `table`, and continues to count tokens from `tokens`.
    pub(crate) fn new(table: LimitTable, tokens: Usage) -> Arc<Self> {
        Self::with_clock(table, tokens, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Limiter<C> {
    fn with_clock(table: LimitTable, tokens: Usage, clock: C) -> Arc<Self> {
        let inner = Inner { table: Arc::new(table), devices: HashMap::new(), tokens };
        Arc::new(Self { clock, inner: Mutex::new(inner) })
    }

    /// Puts other settings in force. Running requests continue, and usage is kept.
    pub(crate) fn update(&self, table: LimitTable) {
        self.lock().table = Arc::new(table);
    }

    /// Forgets devices that are no longer enrolled.
    pub(crate) fn retain(&self, is_enrolled: impl Fn(DeviceId) -> bool) {
        let mut inner = self.lock();
        inner.devices.retain(|id, counter| counter.at_once > 0 || is_enrolled(*id));
        inner.tokens.retain(is_enrolled);
    }

    /// How many bytes a body may have. The caller counts a body of unknown length.
    ///
    /// # Errors
    /// If the length is known and above the limit.
    pub(crate) fn body(
        &self,
        device: LimitedDevice<'_>,
        length: Option<u64>,
    ) -> Result<Option<u64>, Exceeded> {
        let most = self.lock().table.limits(device.role, device.name.as_str()).body;
        match most.filter(|most| length.is_some_and(|length| length > *most)) {
            Some(most) => Err(Exceeded {
                limit: Limit::Body(most),
                kind: device.kind,
                device: device.name.clone(),
                retry_after: None,
            }),
            None => Ok(most),
        }
    }

    /// Counts a request that has arrived, whatever becomes of it.
    ///
    /// # Errors
    /// If the device sends too many; then this one is not counted.
    pub(crate) fn arrive(&self, device: LimitedDevice<'_>) -> Result<(), Exceeded> {
        let mut inner = self.lock();
        let Inner { table, devices, .. } = &mut *inner;
        let limits = table.limits(device.role, device.name.as_str());
        let counter = devices.entry(device.id).or_insert_with(|| Counter::new(limits, &self.clock));
        counter.apply(limits, &self.clock);
        let (Some(most), Some(rate)) = (limits.requests_per_minute, &counter.rate) else {
            return Ok(());
        };
        rate.check().map_err(|until| {
            let retry_after = Some(until.wait_time_from(self.clock.now()));
            Exceeded {
                limit: Limit::Rate(most),
                kind: device.kind,
                device: device.name.clone(),
                retry_after,
            }
        })
    }

    /// Counts one request, whose body has `body` bytes if that is known. It counts as running until
    /// the returned value is dropped. `now` is Unix time.
    ///
    /// # Errors
    /// The first limit that is exceeded; then nothing was counted.
    pub(crate) fn enter(
        self: &Arc<Self>,
        device: LimitedDevice<'_>,
        body: Option<u64>,
        now: i64,
    ) -> Result<RunningCount<C>, Exceeded> {
        let mut inner = self.lock();
        let Inner { table, devices, tokens } = &mut *inner;
        let limits = table.limits(device.role, device.name.as_str());
        let exceeded = |limit, retry_after| {
            Err(Exceeded { limit, kind: device.kind, device: device.name.clone(), retry_after })
        };
        if let Some(most) = limits.body.filter(|most| body.is_some_and(|body| body > *most)) {
            return exceeded(Limit::Body(most), None);
        }
        let today = Day::of(now);
        if let Some(most) =
            limits.tokens_per_day.filter(|most| tokens.used(device.id, today) >= *most)
        {
            return exceeded(Limit::Tokens(most), Some(today.left(now)));
        }
        let counter = devices.entry(device.id).or_insert_with(|| Counter::new(limits, &self.clock));
        counter.apply(limits, &self.clock);
        if let Some(most) = limits.at_once.filter(|most| counter.at_once >= most.get()) {
            return exceeded(Limit::AtOnce(most), Some(SOON));
        }
        counter.at_once += 1;
        Ok(RunningCount { limiter: self.clone(), id: device.id })
    }

    /// Changes the cost of a request from `before` to `tokens`. A request is charged while it runs,
    /// and settled when it has ended.
    pub(crate) fn settle(&self, id: DeviceId, before: u64, tokens: u64, now: i64) {
        if tokens != before {
            self.lock().tokens.change(id, before, tokens, Day::of(now));
        }
    }

    /// Whether the running requests of a device may continue.
    ///
    /// # Errors
    /// If the device has used more tokens than its limit. At exactly the limit, running requests
    /// may finish.
    pub(crate) fn within(&self, device: LimitedDevice<'_>, now: i64) -> Result<(), Exceeded> {
        let (used, most) = self.tokens(device, now);
        let Some(most) = most.filter(|most| used > *most) else { return Ok(()) };
        let retry_after = Some(Day::of(now).left(now));
        Err(Exceeded {
            limit: Limit::Tokens(most),
            kind: device.kind,
            device: device.name.clone(),
            retry_after,
        })
    }

    /// How many tokens a device has used on the UTC day of `now`, and its limit. `now` is Unix
    /// time.
    pub(crate) fn tokens(&self, device: LimitedDevice<'_>, now: i64) -> (u64, Option<u64>) {
        let inner = self.lock();
        (
            inner.tokens.used(device.id, Day::of(now)),
            inner.table.limits(device.role, device.name.as_str()).tokens_per_day,
        )
    }

    /// The limits of a device, the tokens that it has used on the day of `now` in UTC, and how many of
    /// its requests run. `now` is Unix time.
    pub(crate) fn standing(&self, asker: LimitedDevice<'_>, now: i64) -> (Limits, u64, u32) {
        let inner = self.lock();
        let running = inner.devices.get(&asker.id).map_or(0, |counter| counter.at_once);
        let used = inner.tokens.used(asker.id, Day::of(now));
        (inner.table.limits(asker.role, asker.name.as_str()), used, running)
    }

    /// The usage, for the process that replaces this one. From now on that one keeps it, and is told
    /// of changes here: [`Limiter::untold`].
    pub(crate) fn give(&self) -> Usage {
        self.lock().tokens.give()
    }

    /// Takes the usage of the process that this one has replaced.
    pub(crate) fn take(&self, given: Usage) {
        self.lock().tokens.take(given);
    }

    /// What has been charged here since the last call, if another process keeps the usage.
    pub(crate) fn untold(&self) -> Option<HashMap<DeviceId, i64>> {
        self.lock().tokens.untold()
    }

    /// Counts what an older process has charged. `now` is Unix time.
    pub(crate) fn add(&self, changes: &HashMap<DeviceId, i64>, now: i64) {
        self.lock().tokens.add(changes, Day::of(now));
    }

    /// The usage, to be saved; `None` if it has not changed since the last call, or another process
    /// keeps it.
    pub(crate) fn unsaved(&self) -> Option<Usage> {
        self.lock().tokens.unsaved()
    }
}

impl<C: Clock> Limiter<C> {
    fn lock(&self) -> MutexGuard<'_, Inner<C>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Clock + Clone> Counter<C> {
    fn new(limits: Limits, clock: &C) -> Self {
        Self { limits, rate: rate(limits, clock), at_once: 0 }
    }

    /// A changed rate starts anew; an unchanged one keeps its state.
    fn apply(&mut self, limits: Limits, clock: &C) {
        let changed = (self.limits.requests_per_minute, self.limits.burst)
            != (limits.requests_per_minute, limits.burst);
        if changed {
            self.rate = rate(limits, clock);
        }
        self.limits = limits;
    }
}

fn rate<C: Clock + Clone>(limits: Limits, clock: &C) -> Option<Rate<C>> {
    let per_minute = limits.requests_per_minute?;
    let quota = Quota::per_minute(per_minute).allow_burst(limits.burst.unwrap_or(per_minute));
    Some(RateLimiter::direct_with_clock(quota, clock.clone()))
}

/// A request that counts as running.
pub(crate) struct RunningCount<C: Clock = DefaultClock> {
    limiter: Arc<Limiter<C>>,
    id: DeviceId,
}

impl<C: Clock> fmt::Debug for RunningCount<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<C: Clock> Drop for RunningCount<C> {
    fn drop(&mut self) {
        if let Some(counter) = self.limiter.lock().devices.get_mut(&self.id) {
            counter.at_once = counter.at_once.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
