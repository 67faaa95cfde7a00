//! Users as the commands print them, for people and for programs.

use std::collections::HashSet;

use common::machine::{
    format,
    process::{day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::{
    human::{self, count},
    identity::{DeviceId, Name, UserName},
    wire::Reason,
};
use serde::Serialize;

use crate::{
    commands::{beside::Beside, status},
    state::register::{Device, Key, KnownUser},
};

#[derive(Serialize)]
pub(super) struct Listing {
    pub(super) schema: u32,
    pub(super) users: Vec<Shown>,
}

#[derive(Serialize)]
pub(super) struct Single {
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) user: Shown,
}

/// A user, as the commands print it. Times are Unix seconds.
#[derive(Serialize)]
pub(super) struct Shown {
    name: UserName,
    /// The role of devices that it enrolls over SSH later; null for the default role.
    role: Option<Name>,
    revoked: Option<i64>,
    /// Why it was revoked, in the owner's words, or null.
    reason: Option<Reason>,
    /// When any of its devices or keys was last used.
    seen: Option<i64>,
    devices: Vec<Belonging>,
    keys: Vec<Belonging>,
    /// The names of devices with open invitations.
    invitations: Vec<Name>,
}

/// A device or key of a user.
#[derive(Serialize)]
struct Belonging {
    name: Name,
    id: DeviceId,
    role: Name,
    seen: Option<i64>,
    /// When it was revoked itself.
    revoked: Option<i64>,
    /// Whether it is connected now; for a key, whether it runs requests.
    connected: bool,
}

pub(super) async fn shown(users: Vec<KnownUser>, beside: &Beside) -> Vec<Shown> {
    // Who is connected only a running server knows.
    let status = status::ask(&beside.dir).await.ok().flatten();
    let sessions = status.iter().flat_map(|status| &status.sessions).map(|one| one.device_id);
    let callers = status.iter().flat_map(|status| &status.https).flat_map(|https| &https.callers);
    let callers = callers.filter(|caller| caller.running > 0).map(|caller| caller.id);
    let connected: HashSet<DeviceId> = sessions.chain(callers).collect();
    let device = |device: Device| Belonging {
        connected: connected.contains(&device.id),
        name: device.name,
        id: device.id,
        role: device.role,
        seen: device.seen,
        revoked: device.revoked,
    };
    let key = |key: Key| Belonging {
        connected: connected.contains(&key.id),
        name: key.name,
        id: key.id,
        role: key.role,
        seen: key.seen,
        revoked: key.revoked,
    };
    let one = |user: KnownUser| {
        let devices: Vec<_> = user.devices.into_iter().map(device).collect();
        let keys: Vec<_> = user.keys.into_iter().map(key).collect();
        Shown {
            name: user.name,
            role: user.role,
            revoked: user.revoked,
            reason: user.reason,
            seen: devices.iter().chain(&keys).filter_map(|one| one.seen).max(),
            devices,
            keys,
            invitations: user.invitations.into_iter().map(|invited| invited.name).collect(),
        }
    };
    users.into_iter().map(one).collect()
}

pub(super) fn list(users: &[Shown]) -> Result<(), Failure> {
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

pub(super) fn show(user: &Shown) -> Result<(), Failure> {
    let mut text = format!("User         {}\nAccess       {}\n", user.name, standing(user));
    if let Some(reason) = &user.reason {
        text += &format!("Reason       {reason}\n");
    }
    if let Some(role) = &user.role {
        text += &format!("Role         {role}, also of devices that it enrolls over SSH later\n");
    }
    text += &format!("Seen         {}", seen(user));
    for (kind, all) in [("Devices", &user.devices), ("Keys", &user.keys)] {
        for (i, one) in all.iter().enumerate() {
            text += &format!("\n{:<13}{}", if i == 0 { kind } else { "" }, line(one));
        }
    }
    if !user.invitations.is_empty() {
        let names: Vec<_> = user.invitations.iter().map(ToString::to_string).collect();
        text += &format!("\nInvited      {}", names.join(", "));
    }
    data(text)
}

fn line(one: &Belonging) -> String {
    let state = match (one.revoked, one.connected, one.seen) {
        (Some(at), _, _) => format!("revoked {}", day(at)),
        (None, true, _) => "in use now".to_owned(),
        (None, false, Some(at)) => format!("seen {} ago", ago(at)),
        (None, false, None) => "never seen".to_owned(),
    };
    format!("{} {}, role {}, {state}", one.name, one.id, one.role)
}

/// The roles of all that the user has, each once.
fn roles(user: &Shown) -> String {
    let mut roles: Vec<_> =
        user.devices.iter().chain(&user.keys).map(|one| one.role.as_str()).collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "-".to_owned() } else { roles.join(", ") }
}

fn seen(user: &Shown) -> String {
    let in_use = user.devices.iter().chain(&user.keys).filter(|one| one.connected).count();
    match (in_use, user.seen) {
        (0, Some(at)) => format!("{} ago", ago(at)),
        (0, None) => "never".to_owned(),
        (in_use, _) => format!("now ({})", count(in_use as u64, "connection")),
    }
}

fn standing(user: &Shown) -> String {
    match user.revoked {
        Some(at) => format!("revoked {}", day(at)),
        None => "yes".to_owned(),
    }
}

/// How long ago a time was, as text.
fn ago(at: i64) -> String {
    human::time(std::time::Duration::from_secs(unix_now().saturating_sub(at).max(0) as u64))
}
