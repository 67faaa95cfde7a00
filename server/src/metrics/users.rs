//! Metrics of users. Their number is bounded: each value of a label is kept for as long as the
//! server runs.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use proto::identity::UserName;

use crate::record::{End, RequestRecord, charge::Charge};

/// How many users have a label of their own. All others are counted together.
pub(super) const MOST_USERS: usize = 200;
/// The label of all others. No user can have this name.
const OTHERS: &str = "(others)";

/// The counters of users.
#[derive(Default)]
pub(super) struct UserMetrics {
    known: RwLock<HashSet<UserName>>,
    requests: Family<UserLabels, Counter>,
    refused: Family<UserLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UserLabels {
    user: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    user: String,
    direction: &'static str,
}

impl UserMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "user_requests",
            "Requests of users that have ended",
            self.requests.clone(),
        );
        registry.register(
            "user_requests_refused",
            "Requests of users that were refused",
            self.refused.clone(),
        );
        registry.register(
            "user_tokens",
            "Tokens of users that were read and written",
            self.tokens.clone(),
        );
    }

    /// Counts a request that has ended, if it is known whose it is.
    pub(super) fn ended(&self, record: &RequestRecord, charge: &Charge) {
        let Some(user) = &record.asker.user else { return };
        let user = self.label(user);
        let labels = UserLabels { user: user.clone() };
        self.requests.get_or_create(&labels).inc();
        if matches!(record.end, End::Refused(_)) {
            self.refused.get_or_create(&labels).inc();
        }
        for (direction, tokens) in [("in", charge.read), ("out", charge.written)] {
            if let Some(tokens) = tokens {
                let labels = TokenLabels { user: user.clone(), direction };
                self.tokens.get_or_create(&labels).inc_by(tokens);
            }
        }
    }

    fn label(&self, user: &UserName) -> String {
        // No user is ever forgotten: when the set is full, nobody has to wait to write to it.
        let label = |known: &HashSet<UserName>| match known.contains(user) {
            true => Some(user.to_string()),
            false => (known.len() >= MOST_USERS).then(|| OTHERS.to_owned()),
        };
        let found = label(&self.known.read().unwrap_or_else(PoisonError::into_inner));
        found.unwrap_or_else(|| {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            label(&known).unwrap_or_else(|| {
                known.insert(user.clone());
                user.to_string()
            })
        })
    }
}
