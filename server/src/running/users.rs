//! Who uses the server now or has used it today, and how near they are to their limits.

use std::{cmp::Reverse, collections::HashMap};

use common::machine::process::unix_now;
use proto::identity::{Name, UserName};
use serde::{Deserialize, Serialize};

use super::Server;
use crate::{
    accounting::LiveRequest,
    limits::{Account, LimitedDevice, Share},
    record::{CallerKind, Granted},
};

/// A user, or a device or key that counts as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserStatus {
    /// The person; `None` for a device or key that counts by itself.
    pub user: Option<UserName>,
    /// The device or key that counts by itself.
    pub device: Option<Name>,
    /// How many requests run, and how many may at once, if limited.
    pub running: u32,
    pub at_once: Option<u32>,
    /// Tokens that were used today, in UTC, and how many may be, if limited.
    pub tokens: u64,
    pub tokens_per_day: Option<u64>,
    /// How many requests it may make per minute, if limited.
    pub requests_per_minute: Option<u32>,
    /// What runs, the oldest first.
    pub requests: Vec<UserRequest>,
}

/// A request of a user that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRequest {
    /// Its number, as in the audit log.
    pub request: u64,
    /// `device`, `key` or `token`.
    pub kind: String,
    pub device: Name,
    pub service: Name,
    pub method: String,
    pub path: String,
    pub model: Option<String>,
    /// When it was let pass, in Unix time.
    pub since: i64,
}

impl Server {
    /// Everybody who runs something now or has used tokens today; who uses most comes first.
    pub(super) fn users(&self) -> Vec<UserStatus> {
        let (register, limiter, now) =
            (self.policy.snapshot(), &self.accounting.limiter, unix_now());
        let mut users = Users::default();
        let devices = register.devices().filter(|device| device.revoked.is_none());
        let devices = devices.map(|one| (CallerKind::Device, one.id, &one.name, &one.role));
        let keys = register.keys().filter(|key| key.revoked.is_none());
        let keys = keys.map(|one| (CallerKind::Key, one.id, &one.name, &one.role));
        for (kind, id, name, role) in devices.chain(keys) {
            let role = role.as_str();
            let device = LimitedDevice { kind, id, name, role, granted: None };
            users.add(name, limiter.shares(device, now));
        }
        let nobody = crate::state::register::default_role();
        for (id, user) in limiter.not_registered() {
            let granted = Granted { user: Some(user), ..Granted::default() };
            let (kind, name, granted) = (CallerKind::Token, &nobody, Some(&granted));
            // The role comes with each request: without one, the limits of all roles apply.
            users.add(
                name,
                limiter.shares(LimitedDevice { kind, id, name, role: "", granted }, now),
            );
        }
        for request in self.accounting.live.list() {
            let granted = Granted { user: request.who.user.clone(), ..Granted::default() };
            let device = LimitedDevice {
                kind: request.kind(),
                id: request.who.device_id,
                name: &request.who.device,
                role: request.role.as_str(),
                granted: Some(&granted),
            };
            users.run(&request, limiter.shares(device, now));
        }
        users.busy()
    }
}

#[derive(Default)]
struct Users(HashMap<Account, UserStatus>);

impl Users {
    /// Adds the accounts of a device or key of this name, the last of which is its user's. Of several
    /// limits, which devices of different roles have, the lowest is shown.
    fn add(&mut self, device: &Name, shares: Vec<Share>) {
        for Share { account, limits, tokens, running } in shares {
            let (user, device) = match &account {
                Account::User(user) => (Some(user.clone()), None),
                Account::Device(_) => (None, Some(device.clone())),
            };
            let now = UserStatus {
                user,
                device,
                running,
                at_once: limits.at_once.map(Into::into),
                tokens,
                tokens_per_day: limits.tokens_per_day,
                requests_per_minute: limits.requests_per_minute.map(Into::into),
                requests: Vec::new(),
            };
            let known = self.0.entry(account).or_insert_with(|| now.clone());
            known.at_once = lowest(known.at_once, now.at_once);
            known.tokens_per_day = lowest(known.tokens_per_day, now.tokens_per_day);
            known.requests_per_minute = lowest(known.requests_per_minute, now.requests_per_minute);
        }
    }

    /// Adds a request that runs on the last of these accounts.
    fn run(&mut self, request: &LiveRequest, shares: Vec<Share>) {
        let account = shares.last().map(|last| last.account.clone());
        self.add(&request.who.device, shares);
        if let Some(known) = account.and_then(|account| self.0.get_mut(&account)) {
            known.requests.push(UserRequest {
                request: request.request,
                kind: request.kind().to_string(),
                device: request.who.device.clone(),
                service: request.service.clone(),
                method: request.method.clone(),
                path: request.path.clone(),
                model: request.model.clone(),
                since: request.since,
            });
        }
    }

    /// Those who run something or have used tokens.
    fn busy(self) -> Vec<UserStatus> {
        let is_busy =
            |one: &UserStatus| one.running > 0 || one.tokens > 0 || !one.requests.is_empty();
        let mut all: Vec<_> = self.0.into_values().filter(is_busy).collect();
        all.sort_by_cached_key(|one| {
            let name = one.user.as_ref().map(ToString::to_string);
            let name = name.or_else(|| one.device.as_ref().map(ToString::to_string));
            (Reverse(one.requests.len()), Reverse(one.running), Reverse(one.tokens), name)
        });
        all
    }
}

fn lowest<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use proto::identity::DeviceId;

    use super::*;
    use crate::record::Limits;

    fn share(account: &Account, tokens: u64, running: u32, at_once: u32) -> Share {
        let limits = Limits { at_once: at_once.try_into().ok(), ..Limits::default() };
        Share { account: account.clone(), limits, tokens, running }
    }

    #[test]
    fn only_who_runs_something_or_has_used_tokens_is_shown_once_with_the_lowest_limits() {
        let (name, user) = (|text: &str| text.parse::<Name>().expect("a name"), Account::User);
        let [alice, bob, eve] =
            ["alice", "bob", "eve"].map(|name| user(name.parse().expect("a user")));
        let desk = Account::Device(DeviceId::generate());
        let mut users = Users::default();
        users.add(&name("laptop"), vec![share(&alice, 7, 0, 4)]);
        users.add(&name("phone"), vec![share(&alice, 7, 0, 2)]);
        users.add(&name("other"), vec![share(&eve, 0, 0, 2)]);
        users.add(&name("desk"), vec![share(&desk, 9, 0, 0)]);
        users.add(&name("pad"), vec![share(&bob, 0, 1, 0)]);
        let shown: Vec<_> = users
            .busy()
            .into_iter()
            .map(|one| {
                let name = one.user.map(|user| user.to_string());
                let name = name.or(one.device.map(|device| device.to_string()));
                (name.expect("one of them"), one.running, one.at_once, one.tokens)
            })
            .collect();
        let row =
            |name: &str, running, at_once, tokens| (name.to_owned(), running, at_once, tokens);
        assert_eq!(
            shown,
            [row("bob", 1, None, 0), row("desk", 0, None, 9), row("alice", 0, Some(2), 7)]
        );
    }
}
