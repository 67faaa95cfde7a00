//! A limit that was exceeded, in words.

use std::{fmt, num::NonZeroU32, time::Duration};

use proto::{
    human::{self, count},
    identity::{Name, UserName},
};

use crate::record::CallerKind;

/// A limit that was exceeded. Its text is a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Exceeded {
    pub limit: Limit,
    pub whose: Whose,
    /// When trying again may help; `None` if never.
    pub retry_after: Option<Duration>,
}

/// Who has exceeded a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A device or key alone.
    Caller { kind: CallerKind, name: Name },
    /// A user, with all devices and keys.
    User(UserName),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller { kind, name } => write!(f, "{kind} `{name}`"),
            Self::User(user) => write!(f, "user `{user}`"),
        }
    }
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
        let Self { whose, .. } = self;
        match self.limit {
            Limit::Rate(most) => {
                let requests = count(most.get(), "request");
                write!(f, "{whose} may make {requests} per minute")?
            }
            Limit::AtOnce(most) => {
                let requests = count(most.get(), "request");
                write!(f, "{whose} may have {requests} running at once")?
            }
            Limit::Body(most) => {
                let most = human::size(most);
                write!(f, "{whose} may send {most} with a request (limit `body`)")?
            }
            Limit::Tokens(most) => {
                let tokens = count(most, "token");
                write!(f, "{whose} may use {tokens} per day (UTC), and has used them")?
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
