//! The errors of operations on keys, and how to correct them.

use common::machine::report::Failure;
use proto::identity::Name;

use super::{RegisterError, UserError};

/// How many of the existing keys an error lists.
const FEW: usize = 10;

/// An operation on a key that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("there is no key `{text}`")]
    Unknown {
        /// The name or id that was asked for.
        text: String,
        known: Vec<Name>,
    },
    /// The name of a new key looks like an id.
    #[error("`{0}` looks like an id, so it can't be a key's name")]
    LooksLikeId(Name),
    #[error("there is a device `{0}`, and a key can't have the name of a device")]
    NameOfDevice(Name),
    #[error("there is a key `{0}` already")]
    NameTaken(Name),
    #[error("an invitation for `{0}` is open, and a key can't have the name of a device")]
    NameInvited(Name),
    #[error("key `{0}` is revoked already")]
    AlreadyRevoked(Name),
    /// The key would belong to a user who is revoked.
    #[error(transparent)]
    UserRevoked(UserError),
    /// It was revoked or removed by another command, just now.
    #[error("another command has removed the key")]
    Gone,
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let hint = match &error {
            KeyError::Unknown { known, .. } if known.is_empty() => {
                "there is none yet: make one with `aditd key create NAME`".to_owned()
            }
            KeyError::Unknown { known, .. } => {
                let names = known.iter().take(FEW).map(|name| format!("`{name}`"));
                let others = if known.len() > FEW { " and others" } else { "" };
                format!(
                    "the keys are {}{others}; `aditd key list` says more",
                    names.collect::<Vec<_>>().join(", ")
                )
            }
            KeyError::LooksLikeId(_) => {
                "choose a name that says who or what uses it, like `alice-phone`".to_owned()
            }
            KeyError::NameOfDevice(_) => "choose another name".to_owned(),
            KeyError::NameTaken(name) => format!(
                "choose another name; or give it a new secret with `aditd key rotate {name}`; or end it with `aditd key revoke {name}`"
            ),
            KeyError::NameInvited(name) => {
                format!("choose another name, or withdraw that: `aditd device revoke {name}`")
            }
            KeyError::AlreadyRevoked(name) => {
                format!("make a new one: `aditd key create {name}`")
            }
            KeyError::Gone => "see the keys that there are: `aditd key list`".to_owned(),
            KeyError::UserRevoked(_) | KeyError::Register(_) => String::new(),
        };
        match error {
            KeyError::Register(e) => e.into(),
            KeyError::UserRevoked(e) => e.into(),
            other => Self::from_error(other).hint(hint),
        }
    }
}
