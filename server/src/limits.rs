//! How much a user may ask for: requests per minute and at once, the size of a body, tokens per
//! day.
//!
//! The limits come from layers of settings (`settings`); this module counts the usage of each user
//! and device. A device without a user counts as one. The clock and the time of day are passed in.

mod account;
mod day;
mod exceeded;
mod granted;
mod settings;
mod shares;
mod store;

pub(crate) use account::Account;
pub(crate) use day::{Day, Usage};
pub(crate) use exceeded::{Exceeded, Limit, Whose};
pub(crate) use settings::{LimitSettings, LimitTable, Size};
pub(crate) use shares::Share;
pub(crate) use store::UsageFile;

use std::{
    collections::{HashMap, HashSet},
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
use proto::identity::{DeviceId, Name, UserName};

use self::account::Members;
use crate::record::{Asker, CallerKind, Granted, Limits};

/// The `Retry-After` when nobody knows how long a running request takes.
const SOON: Duration = Duration::from_secs(1);

/// Counts the usage of every user and device, and refuses requests above a limit. Without settings nothing
/// is limited.
pub(crate) struct Limiter<C: Clock = DefaultClock> {
    clock: C,
    inner: Mutex<Inner<C>>,
}

struct Inner<C: Clock> {
    table: Arc<LimitTable>,
    counters: HashMap<Account, Counter<C>>,
    members: Members,
    /// The devices and keys of the register.
    known: HashSet<DeviceId>,
    /// Of each device, key and user with tokens; that of a user is their sum.
    tokens: Usage,
}

type Rate<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// By requests per minute and burst.
type Rates<C> = HashMap<(NonZeroU32, Option<NonZeroU32>), Rate<C>>;

/// The most rates of one user that are remembered: one for each role of its devices.
const MOST_RATES: usize = 8;

struct Counter<C: Clock> {
    /// Devices of one user may have different roles.
    rates: Rates<C>,
    /// The same for rates that `authorize` has answered: they do not displace those of the
    /// configuration.
    granted: Rates<C>,
    at_once: u32,
}

/// An account on which a request counts, and the limits there.
struct Counted {
    account: Account,
    limits: Limits,
    whose: Whose,
    /// Whether the request counts as running there.
    counts_at_once: bool,
}

/// The device or key of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitedDevice<'a> {
    pub kind: CallerKind,
    /// Usage is counted by the device's id, so that a new name gives no new allowance.
    pub id: DeviceId,
    pub name: &'a Name,
    pub role: &'a str,
    /// What `authorize` has said of this request, if it has.
    pub granted: Option<&'a Granted>,
}

impl<'a> LimitedDevice<'a> {
    /// The device or key of a request that has this role.
    pub(crate) fn of(asker: &'a Asker, role: &'a Name) -> Self {
        let Asker { kind, id, name, .. } = asker;
        Self { kind: *kind, id: *id, name, role: role.as_str(), granted: None }
    }

    /// What `authorize` has said counts, too.
    pub(crate) fn with(self, granted: Option<&'a Granted>) -> Self {
        Self { granted, ..self }
    }

    /// Its name in the configuration. A person with a token has none there: the name may be that of a
    /// device by chance.
    fn configured(&self) -> &str {
        if self.kind == CallerKind::Token { "" } else { self.name.as_str() }
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
        let inner = Inner {
            table: Arc::new(table),
            counters: HashMap::new(),
            members: Members::default(),
            known: HashSet::new(),
            tokens,
        };
        Arc::new(Self { clock, inner: Mutex::new(inner) })
    }

    /// Puts other settings in force. Running requests continue, and usage is kept.
    pub(crate) fn update(&self, table: LimitTable) {
        self.lock().table = Arc::new(table);
    }

    /// Takes over which devices and keys there are, each with its name and its user, and forgets those
    /// that are no longer there. Who has come with a token is remembered.
    pub(crate) fn know<'r>(
        &self,
        all: impl IntoIterator<Item = (DeviceId, &'r Name, Option<&'r UserName>)>,
    ) {
        let (mut members, mut known) = (Members::default(), HashSet::new());
        for (id, name, user) in all {
            known.insert(id);
            if let Some(user) = user {
                members.add(id, name, user);
            }
        }
        let mut inner = self.lock();
        for (id, user) in inner.members.with_tokens() {
            members.add_tokens(id, user);
        }
        let of_users = members.ids();
        inner.counters.retain(|account, counter| {
            let is_known = match account {
                Account::Device(id) => known.contains(id) || of_users.contains(id),
                Account::User(user) => members.has(user),
            };
            counter.at_once > 0 || is_known
        });
        // What was never in the register may be that of tokens, which come later.
        let before = std::mem::replace(&mut inner.known, known);
        let Inner { tokens, known, .. } = &mut *inner;
        tokens.retain(|id| known.contains(&id) || of_users.contains(&id) || !before.contains(&id));
        inner.members = members;
    }

    /// Takes over that the tokens of a user count by this id.
    pub(crate) fn know_tokens(&self, id: DeviceId, user: &UserName) {
        self.lock().members.add_tokens(id, user);
    }

    /// On whose account a request takes turns.
    pub(crate) fn account(&self, device: LimitedDevice<'_>) -> Account {
        let inner = self.lock();
        let user = inner.user(&device).cloned();
        user.map_or(Account::Device(device.id), Account::User)
    }

    /// By which id the tokens of a request are counted.
    pub(crate) fn payer(&self, device: LimitedDevice<'_>) -> DeviceId {
        if device.granted.is_none_or(|granted| granted.user.is_none()) {
            return device.id;
        }
        self.lock().payer(device)
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
        let counted = self.lock().counted(device);
        let lowest = counted.into_iter().filter_map(|one| Some((one.limits.body?, one.whose)));
        let Some((most, whose)) = lowest.min_by_key(|(most, _)| *most) else { return Ok(None) };
        match length.is_some_and(|length| length > most) {
            true => Err(Exceeded { limit: Limit::Body(most), whose, retry_after: None }),
            false => Ok(Some(most)),
        }
    }

    /// Counts a request that has arrived, whatever becomes of it.
    ///
    /// # Errors
    /// If the device or its user sends too many; then this one is not counted there.
    pub(crate) fn arrive(&self, device: LimitedDevice<'_>) -> Result<(), Exceeded> {
        let mut inner = self.lock();
        for Counted { account, limits, whose, .. } in inner.counted(device) {
            let Some(most) = limits.requests_per_minute else { continue };
            let counter = inner.counters.entry(account).or_insert_with(Counter::new);
            let rate = rate(&mut counter.rates, most, limits.burst, &self.clock);
            self.check(rate, most, whose)?;
        }
        Ok(())
    }

    fn check(&self, rate: &Rate<C>, most: NonZeroU32, whose: Whose) -> Result<(), Exceeded> {
        rate.check().map_err(|until| {
            let retry_after = Some(until.wait_time_from(self.clock.now()));
            Exceeded { limit: Limit::Rate(most), whose, retry_after }
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
        let (counted, today) = (inner.counted(device), Day::of(now));
        if let Some(granted) = device.granted {
            self.enter_granted(&mut inner, device, granted, &counted)?;
        }
        for Counted { account, limits, whose, .. } in &counted {
            let exceeded =
                |limit, retry_after| Err(Exceeded { limit, whose: whose.clone(), retry_after });
            if let Some(most) = limits.body.filter(|most| body.is_some_and(|body| body > *most)) {
                return exceeded(Limit::Body(most), None);
            }
            let used = || inner.used(account, today);
            if let Some(most) = limits.tokens_per_day.filter(|most| used() >= *most) {
                return exceeded(Limit::Tokens(most), Some(today.left(now)));
            }
            let running = inner.running(account);
            if let Some(most) = limits.at_once.filter(|most| running >= most.get()) {
                return exceeded(Limit::AtOnce(most), Some(SOON));
            }
        }
        let mut accounts = Vec::with_capacity(counted.len());
        for Counted { account, .. } in counted.into_iter().filter(|one| one.counts_at_once) {
            inner.counters.entry(account.clone()).or_insert_with(Counter::new).at_once += 1;
            accounts.push(account);
        }
        Ok(RunningCount { limiter: self.clone(), accounts })
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
    /// If the device or its user has used more tokens than its limit. At exactly the limit, running
    /// requests may finish.
    pub(crate) fn within(&self, device: LimitedDevice<'_>, now: i64) -> Result<(), Exceeded> {
        let (inner, today) = (self.lock(), Day::of(now));
        for Counted { account, limits, whose, .. } in inner.counted(device) {
            let Some(most) = limits.tokens_per_day else { continue };
            if inner.used(&account, today) > most {
                let retry_after = Some(today.left(now));
                return Err(Exceeded { limit: Limit::Tokens(most), whose, retry_after });
            }
        }
        Ok(())
    }

    /// How many tokens a device and its user have used on the UTC day of `now`, each with its limit:
    /// first the device alone, then its user. A device without a user has no second entry. `now` is
    /// Unix time.
    pub(crate) fn tokens(&self, device: LimitedDevice<'_>, now: i64) -> Vec<(u64, Option<u64>)> {
        let (inner, today) = (self.lock(), Day::of(now));
        let one = |one: Counted| (inner.used(&one.account, today), one.limits.tokens_per_day);
        inner.counted(device).into_iter().map(one).collect()
    }

    /// The limits of a device, the tokens that count for it on the day of `now` in UTC, and how many
    /// requests run that count for it: its own where it has a limit of its own, else its user's. `now`
    /// is Unix time.
    pub(crate) fn standing(&self, asker: LimitedDevice<'_>, now: i64) -> (Limits, u64, u32) {
        let (inner, today) = (self.lock(), Day::of(now));
        let limits = inner.table.limits(asker.role, asker.configured());
        let counted = inner.counted(asker);
        let by = |has: fn(&Limits) -> bool| counted.iter().find(|one| has(&one.limits));
        let tokens = by(|limits| limits.tokens_per_day.is_some());
        let at_once = by(|limits| limits.at_once.is_some());
        let rate = by(|limits| limits.requests_per_minute.is_some());
        let own = Account::Device(asker.id);
        let limits = Limits {
            requests_per_minute: rate.and_then(|one| one.limits.requests_per_minute),
            at_once: at_once.and_then(|one| one.limits.at_once),
            tokens_per_day: tokens.and_then(|one| one.limits.tokens_per_day),
            body: counted.iter().filter_map(|one| one.limits.body).min(),
            ..limits
        };
        (
            limits,
            inner.used(tokens.map_or(&own, |one| &one.account), today),
            inner.running(at_once.map_or(&own, |one| &one.account)),
        )
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

impl<C: Clock> Inner<C> {
    /// The accounts on which a request of this device counts. A device without a user has one, with
    /// all of its limits; else there are the device's own limits, and then those of its user.
    fn counted(&self, device: LimitedDevice<'_>) -> Vec<Counted> {
        let LimitedDevice { kind, id, name, role, granted } = device;
        let caller = Whose::Caller { kind, name: name.clone() };
        let own = |limits| Counted {
            account: Account::Device(id),
            limits,
            whose: caller,
            counts_at_once: true,
        };
        let (user, device) = (self.user(&device), device.configured());
        let Some(user) = user else {
            let mut all = own(self.table.limits(role, device));
            all.limits.lower(granted);
            return vec![all];
        };
        let alone = self.table.alone(user.as_str(), device);
        let mut of_user = Counted {
            account: Account::User(user.clone()),
            limits: self.table.of_user(user.as_str(), role, alone),
            whose: Whose::User(user.clone()),
            counts_at_once: !alone.at_once,
        };
        let mut own = own(self.table.of_device(role, device));
        if granted.is_some() {
            granted::lower(&mut own.limits, &mut of_user.limits, granted, alone);
        }
        vec![own, of_user]
    }

    fn used(&self, account: &Account, today: Day) -> u64 {
        match account {
            Account::Device(id) => self.tokens.used(*id, today),
            Account::User(user) => {
                let all = self.members.of(user);
                all.filter(|(_, name)| !self.table.alone(user.as_str(), name).tokens_per_day)
                    .fold(0, |sum: u64, (id, _)| sum.saturating_add(self.tokens.used(id, today)))
            }
        }
    }

    fn running(&self, account: &Account) -> u32 {
        self.counters.get(account).map_or(0, |counter| counter.at_once)
    }
}

impl<C: Clock + Clone> Counter<C> {
    fn new() -> Self {
        Self { rates: HashMap::new(), granted: HashMap::new(), at_once: 0 }
    }
}

/// The rate of these settings. A changed rate starts anew; an unchanged one keeps its state.
fn rate<'r, C: Clock + Clone>(
    rates: &'r mut Rates<C>,
    most: NonZeroU32,
    burst: Option<NonZeroU32>,
    clock: &C,
) -> &'r Rate<C> {
    if rates.len() >= MOST_RATES && !rates.contains_key(&(most, burst)) {
        rates.clear();
    }
    rates.entry((most, burst)).or_insert_with(|| {
        let quota = Quota::per_minute(most).allow_burst(burst.unwrap_or(most));
        RateLimiter::direct_with_clock(quota, clock.clone())
    })
}

/// A request that counts as running.
pub(crate) struct RunningCount<C: Clock = DefaultClock> {
    limiter: Arc<Limiter<C>>,
    /// At most two: the device's and its user's.
    accounts: Vec<Account>,
}

impl<C: Clock> fmt::Debug for RunningCount<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}

impl<C: Clock> Drop for RunningCount<C> {
    fn drop(&mut self) {
        let mut inner = self.limiter.lock();
        for account in &self.accounts {
            if let Some(counter) = inner.counters.get_mut(account) {
                counter.at_once = counter.at_once.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
