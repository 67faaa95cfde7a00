//! Users as the commands print them, for people and for programs.

use common::machine::{
    format,
    process::{day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::{
    human::{self, count},
    identity::{DeviceId, Name},
};

use crate::documents::{DeviceShown, KeyShown, UserShown};

/// A device or key of a user, in a line.
struct Belonging<'a> {
    name: &'a Name,
    id: DeviceId,
    role: &'a Name,
    seen: Option<i64>,
    /// When it was revoked itself.
    revoked: Option<i64>,
    /// Whether it is connected now; for a key, whether it runs requests.
    is_in_use: bool,
}

impl<'a> From<&'a DeviceShown> for Belonging<'a> {
    fn from(device: &'a DeviceShown) -> Self {
        let DeviceShown { name, id, role, seen, revoked, .. } = device;
        let is_in_use = device.session.is_some();
        Self { name, id: *id, role, seen: *seen, revoked: *revoked, is_in_use }
    }
}

impl<'a> From<&'a KeyShown> for Belonging<'a> {
    fn from(key: &'a KeyShown) -> Self {
        let KeyShown { name, id, role, seen, revoked, .. } = key;
        Self { name, id: *id, role, seen: *seen, revoked: *revoked, is_in_use: key.running > 0 }
    }
}

/// All that belongs to a user.
fn belongings(user: &UserShown) -> impl Iterator<Item = Belonging<'_>> {
    user.devices.iter().map(Belonging::from).chain(user.keys.iter().map(Belonging::from))
}

pub(super) fn list(users: &[UserShown]) -> Result<(), Failure> {
    if users.is_empty() {
        say(typed(
            "No users yet: say whose a device is with `aditd invite NAME --user USER` or `aditd device user DEVICE USER`.",
        ));
        return Ok(());
    }
    let rows = users.iter().map(|user| {
        [
            user.name.to_string(),
            user.devices.len().to_string(),
            user.keys.len().to_string(),
            roles(user),
            seen(user),
            standing(user),
        ]
    });
    data(format::table(["USER", "DEVICES", "KEYS", "ROLES", "SEEN", "ACCESS"], rows))
}

pub(super) fn show(user: &UserShown) -> Result<(), Failure> {
    let mut text = format!("User         {}\nAccess       {}\n", user.name, standing(user));
    if let Some(reason) = &user.reason {
        text += &format!("Reason       {reason}\n");
    }
    if let Some(role) = &user.role {
        text += &format!("Role         {role}, also of devices that it enrolls over SSH later\n");
    }
    text += &format!("Seen         {}", seen(user));
    for (i, device) in user.devices.iter().enumerate() {
        let kind = if i == 0 { "Devices" } else { "" };
        text += &format!("\n{kind:<13}{}", line(&device.into()));
    }
    for (i, key) in user.keys.iter().enumerate() {
        text += &format!("\n{:<13}{}", if i == 0 { "Keys" } else { "" }, line(&key.into()));
    }
    if !user.invitations.is_empty() {
        let names: Vec<_> = user.invitations.iter().map(|it| it.name.to_string()).collect();
        text += &format!("\nInvited      {}", names.join(", "));
    }
    data(text)
}

fn line(one: &Belonging<'_>) -> String {
    let state = match (one.revoked, one.is_in_use, one.seen) {
        (Some(at), _, _) => format!("revoked {}", day(at)),
        (None, true, _) => "in use now".to_owned(),
        (None, false, Some(at)) => format!("seen {} ago", ago(at)),
        (None, false, None) => "never seen".to_owned(),
    };
    format!("{} {}, role {}, {state}", one.name, one.id, one.role)
}

/// The roles of all that the user has, each once.
fn roles(user: &UserShown) -> String {
    let mut roles: Vec<_> = belongings(user).map(|one| one.role.as_str()).collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "-".to_owned() } else { roles.join(", ") }
}

fn seen(user: &UserShown) -> String {
    let in_use = belongings(user).filter(|one| one.is_in_use).count();
    match (in_use, user.seen) {
        (0, Some(at)) => format!("{} ago", ago(at)),
        (0, None) => "never".to_owned(),
        (in_use, _) => format!("now ({})", count(in_use as u64, "connection")),
    }
}

fn standing(user: &UserShown) -> String {
    match user.revoked {
        Some(at) => format!("revoked {}", day(at)),
        None => "yes".to_owned(),
    }
}

/// How long ago a time was, as text.
fn ago(at: i64) -> String {
    human::time(std::time::Duration::from_secs(unix_now().saturating_sub(at).max(0) as u64))
}
