//! Keys as the commands print them, for people and for programs.

use common::machine::{
    format,
    process::{day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::{
    human,
    identity::{DeviceId, Name, UserName},
    ollama::model::ModelPattern,
};
use serde::Serialize;

use crate::{commands::beside::Beside, state::register::Key};

#[derive(Serialize)]
pub(super) struct Listing {
    pub(super) schema: u32,
    pub(super) keys: Vec<Shown>,
}

/// A key, as the commands print it. Times are Unix seconds.
#[derive(Serialize)]
pub(super) struct Shown {
    name: Name,
    id: DeviceId,
    role: Name,
    /// The models that it may use; null if its role decides.
    models: Option<Vec<ModelPattern>>,
    /// The person to whom it belongs, or null.
    user: Option<UserName>,
    created: i64,
    seen: Option<i64>,
    revoked: Option<i64>,
    /// Its secrets, the newest first.
    secrets: Vec<ShownSecret>,
    #[serde(skip)]
    role_is_known: bool,
}

#[derive(Serialize)]
struct ShownSecret {
    prefix: String,
    created: i64,
    /// When it ends; null for never.
    expires: Option<i64>,
}

pub(super) fn shown(keys: Vec<Key>, beside: &Beside) -> Vec<Shown> {
    let now = unix_now();
    let one = |key: Key| Shown {
        role_is_known: beside.knows(&key.role),
        name: key.name,
        id: key.id,
        role: key.role,
        models: key.models,
        user: key.user,
        created: key.created,
        seen: key.seen,
        revoked: key.revoked,
        secrets: key
            .secrets
            .into_iter()
            .enumerate()
            // Old secrets are listed until they end, the newest one always.
            .filter(|(i, secret)| *i == 0 || secret.is_valid(now))
            .map(|(_, secret)| ShownSecret {
                prefix: secret.prefix.to_string(),
                created: secret.created,
                expires: secret.expires,
            })
            .collect(),
    };
    keys.into_iter().map(one).collect()
}

pub(super) fn list(keys: &[Shown]) -> Result<(), Failure> {
    if keys.is_empty() {
        say(typed("No keys yet: make one with `aditd key create NAME`."));
        return Ok(());
    }
    let rows = keys.iter().map(|key| {
        [
            key.name.to_string(),
            key.id.to_string(),
            marked(key),
            key.user.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            key.seen.map_or_else(|| "never".to_owned(), ago),
            secrets(key),
        ]
    });
    data(format::table(["NAME", "ID", "ROLE", "USER", "SEEN", "SECRETS"], rows))
}

/// When a secret ends, in words.
pub(super) fn until(expires: Option<i64>) -> String {
    expires.map_or_else(|| "without an end".to_owned(), |at| format!("until {}", day(at)))
}

fn marked(key: &Shown) -> String {
    if key.role_is_known {
        key.role.to_string()
    } else {
        format!("{} (not in the configuration)", key.role)
    }
}

fn secrets(key: &Shown) -> String {
    if let Some(at) = key.revoked {
        return format!("revoked {}", day(at));
    }
    let now = unix_now();
    let one = |secret: &ShownSecret| match secret.expires {
        Some(at) if at <= now => format!("{}… ended {}", secret.prefix, day(at)),
        expires => format!("{}… {}", secret.prefix, until(expires)),
    };
    key.secrets.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn ago(at: i64) -> String {
    let seconds = unix_now().saturating_sub(at).max(0) as u64;
    format!("{} ago", human::time(std::time::Duration::from_secs(seconds)))
}
