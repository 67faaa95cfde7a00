//! The errors of operations on users, and how to correct them.

use common::machine::report::Failure;
use proto::{identity::UserName, wire::Reason};

use super::RegisterError;

/// How many of the existing users an error lists.
const FEW: usize = 10;

/// An operation on a user that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No device, key or invitation names this user.
    #[error("there is no user `{text}`")]
    Unknown {
        /// The name that was asked for.
        text: String,
        known: Vec<UserName>,
    },
    /// A revoked user gets nothing new.
    #[error(
        "the user `{user}` is revoked{}",
        reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
    )]
    Revoked {
        user: UserName,
        /// Why, in the owner's words.
        reason: Option<Reason>,
    },
    #[error("the user `{0}` is revoked already")]
    AlreadyRevoked(UserName),
    /// Only a revoked user can be let in again.
    #[error("the user `{0}` is not revoked")]
    NotRevoked(UserName),
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl From<UserError> for Failure {
    fn from(error: UserError) -> Self {
        let hint = match &error {
            UserError::Unknown { known, .. } if known.is_empty() => {
                "no device or key belongs to a user yet: say whose a device is with `aditd device user DEVICE USER`"
                    .to_owned()
            }
            UserError::Unknown { known, .. } => {
                let names = known.iter().take(FEW).map(|name| format!("`{name}`"));
                let others = if known.len() > FEW { " and others" } else { "" };
                format!(
                    "the users are {}{others}; `aditd user list` says more",
                    names.collect::<Vec<_>>().join(", ")
                )
            }
            UserError::Revoked { user, .. } | UserError::AlreadyRevoked(user) => {
                format!("the owner of the server can let the user in again: `aditd user restore {user}`")
            }
            UserError::NotRevoked(user) => {
                format!("to see how it is: `aditd user show {user}`")
            }
            UserError::Register(_) => String::new(),
        };
        match error {
            UserError::Register(e) => e.into(),
            other => Self::from_error(other).hint(hint),
        }
    }
}
