//! Keys as the commands print them, for people and for programs.

use common::machine::{
    format,
    process::{day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::human;

use crate::{
    commands::beside::Beside,
    documents::{KeyShown, SecretShown},
    policy::roles::either,
};

pub(super) fn list(keys: &[KeyShown], beside: &Beside) -> Result<(), Failure> {
    if keys.is_empty() {
        say(typed("No keys yet: make one with `aditd key create NAME`."));
        return Ok(());
    }
    let rows = keys.iter().map(|key| {
        [
            key.name.to_string(),
            key.id.to_string(),
            marked(key, beside),
            key.user.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            key.seen.map_or_else(|| "never".to_owned(), ago),
            secrets(key),
        ]
    });
    data(format::table(["NAME", "ID", "ROLE", "USER", "SEEN", "SECRETS"], rows))
}

pub(super) fn show(key: &KeyShown, beside: &Beside) -> Result<(), Failure> {
    let role = match &key.models {
        Some(models) => format!("{}, only {}", marked(key, beside), either(models)),
        None => marked(key, beside),
    };
    let mut text = format!("Key          {} {}\nRole         {role}\n", key.name, key.id);
    if let Some(user) = &key.user {
        text += &format!("User         {user}\n");
    }
    let seen = match (key.running, key.seen) {
        (0, seen) => seen.map_or_else(|| "never".to_owned(), ago),
        (running, _) => format!("now, {} running", human::count(running as u64, "request")),
    };
    text += &format!("Created      {}\nSeen         {seen}\n", day(key.created));
    text += &format!("Secrets      {}", secrets(key));
    data(text)
}

/// When a secret ends, in words.
pub(super) fn until(expires: Option<i64>) -> String {
    expires.map_or_else(|| "without an end".to_owned(), |at| format!("until {}", day(at)))
}

fn marked(key: &KeyShown, beside: &Beside) -> String {
    if beside.knows(&key.role) {
        key.role.to_string()
    } else {
        format!("{} (not in the configuration)", key.role)
    }
}

fn secrets(key: &KeyShown) -> String {
    if let Some(at) = key.revoked {
        return format!("revoked {}", day(at));
    }
    let now = unix_now();
    let one = |secret: &SecretShown| match secret.expires {
        Some(at) if at <= now => format!("{}… ended {}", secret.prefix, day(at)),
        expires => format!("{}… {}", secret.prefix, until(expires)),
    };
    key.secrets.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn ago(at: i64) -> String {
    let seconds = unix_now().saturating_sub(at).max(0) as u64;
    format!("{} ago", human::time(std::time::Duration::from_secs(seconds)))
}
