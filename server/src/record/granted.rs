//! What `authorize` says of the limits of one request.

use std::num::NonZeroU32;

use proto::identity::UserName;

/// The limits of a device, a key or a user. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub requests_per_minute: Option<NonZeroU32>,
    pub burst: Option<NonZeroU32>,
    pub at_once: Option<NonZeroU32>,
    /// Bytes of a request's body.
    pub body: Option<u64>,
    /// Tokens per UTC day.
    pub tokens_per_day: Option<u64>,
}

/// What `authorize` has answered about one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    /// The person on whose account the request counts, in place of the register's.
    pub user: Option<UserName>,
    /// Limits that hold besides those of the configuration.
    pub limits: Limits,
}
