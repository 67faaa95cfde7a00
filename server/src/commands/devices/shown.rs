//! Devices as the commands print them, for people and for programs.

use std::collections::HashMap;

use common::machine::{
    format,
    process::{self, day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::{
    human,
    identity::{DeviceId, Name, UserName},
    ollama::model::ModelPattern,
    wire::Reason,
};
use serde::Serialize;

use crate::{
    commands::{beside::Beside, status},
    policy::roles::either,
    record::CarrierKind,
    running::{TokensToday, sessions::SessionStatus},
    state::register::{Device, Register, UserError},
};

#[derive(Serialize)]
pub(super) struct Listing {
    pub(super) schema: u32,
    pub(super) devices: Vec<Shown>,
}

#[derive(Serialize)]
pub(super) struct Single {
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) device: Shown,
    /// Set if the server runs and the device has used tokens today or has a daily limit.
    pub(super) tokens_today: Option<TokensToday>,
}

/// A device, as the commands print it. Times are Unix seconds.
#[derive(Serialize)]
pub(super) struct Shown {
    name: String,
    pub(super) id: DeviceId,
    role: Name,
    /// The models that it may use; null if its role decides.
    models: Option<Vec<ModelPattern>>,
    enrolled: i64,
    /// The user of this machine who enrolled it over SSH, or null.
    uid: Option<u32>,
    /// The name of that user, if this machine knows it.
    login: Option<String>,
    /// The person to whom it belongs; null if it counts as a user of its own.
    user: Option<UserName>,
    /// Whether that user is revoked: then the device is not let in either.
    user_revoked: bool,
    seen: Option<i64>,
    certificate_until: i64,
    revoked: Option<i64>,
    /// Since when it is held back until it is confirmed, or null.
    pub(super) to_confirm: Option<i64>,
    /// Whether its person has signed in at the provider.
    sso: bool,
    /// Since when the provider says that the sign-in has ended, or null.
    signed_out: Option<i64>,
    /// Why it was revoked, in the owner's words, or null.
    reason: Option<Reason>,
    session: Option<SessionStatus>,
    #[serde(skip)]
    role_is_known: bool,
}

pub(super) async fn shown(
    register: &Register,
    devices: Vec<Device>,
    beside: &Beside,
) -> Vec<Shown> {
    // Sessions are known only to a running server. The rest is in the register.
    let status = status::ask(&beside.dir).await.ok().flatten();
    let sessions = status.map_or_else(Vec::new, |status| status.sessions);
    let mut sessions: HashMap<_, _> = sessions.into_iter().map(|s| (s.device_id, s)).collect();
    let is_revoked = |user: &UserName| {
        matches!(register.must_not_be_revoked(user), Err(UserError::Revoked { .. }))
    };
    let one = |d: Device| Shown {
        session: sessions.remove(&d.id),
        name: d.name.to_string(),
        id: d.id,
        role_is_known: beside.knows(&d.role),
        role: d.role,
        models: d.models,
        enrolled: d.enrolled,
        uid: d.uid,
        login: d.uid.and_then(process::login),
        user_revoked: d.user.as_ref().is_some_and(is_revoked),
        user: d.user,
        seen: d.seen,
        certificate_until: d.not_after,
        revoked: d.revoked,
        reason: d.reason,
        to_confirm: d.held,
        sso: d.sign_in.is_some(),
        signed_out: d.sign_in.and_then(|sign_in| sign_in.ended),
    };
    devices.into_iter().map(one).collect()
}

pub(super) fn list(devices: &[Shown]) -> Result<(), Failure> {
    if devices.is_empty() {
        say(typed("No devices yet: invite one with `aditd invite NAME`."));
        return Ok(());
    }
    let rows = devices.iter().map(|device| {
        [
            device.name.clone(),
            device.id.to_string(),
            marked(device),
            device.user.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            seen(device),
            certificate(device),
        ]
    });
    data(format::table(["NAME", "ID", "ROLE", "USER", "SEEN", "CERTIFICATE"], rows))
}

pub(super) fn show(device: &Shown, tokens: Option<TokensToday>) -> Result<(), Failure> {
    let mut text = format!(
        "Device       {} {}\nRole         {}\nEnrolled     {}{}\nSeen         {}\n",
        device.name,
        device.id,
        role(device),
        day(device.enrolled),
        by_user(device),
        seen(device)
    );
    if let Some(user) = &device.user {
        text += &format!("User         {user}\n");
    }
    if let Some(ended) = device.signed_out {
        text += &format!(
            "Sign-in      ended at the provider {} ago: the device can do nothing\n",
            ago(ended)
        );
    } else if device.sso {
        text += "Sign-in      at the provider\n";
    }
    text += &format!("Certificate  {}", certificate(device));
    if let Some(reason) = &device.reason {
        text += &format!("\nReason       {reason}");
    }
    if let Some(session) = &device.session {
        let from = from(&session.remote);
        text += &format!(
            "\nSession      from {from} since {}, {:.1} ms",
            ago(session.since),
            session.rtt_ms
        );
        if let Some(away) = session.away_since {
            text += &format!("\nAway         since {}: what it runs is kept", ago(away));
        }
        text += &format!(
            "\nStreams      {} open, {} to it, {} from it",
            session.streams,
            human::size(session.sent),
            human::size(session.received)
        );
    }
    if let Some(today) = tokens {
        text += &format!("\nTokens       {} used today (UTC)", today.used);
        text += &today.limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
        if let Some(all) = today.user {
            text += &format!("; its user {} with all devices and keys", all.used);
            text += &all.limit.map(|limit| format!(", of {limit}")).unwrap_or_default();
        }
    }
    data(text)
}

/// Where a session comes from. The address of a relay on this machine says nothing about the
/// device's network.
fn from(remote: &str) -> String {
    match remote.parse().map(CarrierKind::of) {
        Ok(CarrierKind::Ssh) => format!("SSH, relayed at {remote},"),
        _ => remote.to_owned(),
    }
}

/// The user who enrolled the device, as text.
fn by_user(device: &Shown) -> String {
    match (device.uid, &device.login) {
        (Some(uid), Some(user)) => format!(" by {user} (uid {uid})"),
        (Some(uid), None) => format!(" by uid {uid}"),
        (None, _) => String::new(),
    }
}

fn role(device: &Shown) -> String {
    match &device.models {
        Some(models) => format!("{}, only {}", marked(device), either(models)),
        None => marked(device),
    }
}

fn marked(device: &Shown) -> String {
    if device.role_is_known {
        device.role.to_string()
    } else {
        format!("{} (not in the configuration)", device.role)
    }
}

fn seen(device: &Shown) -> String {
    match (&device.session, device.seen) {
        (Some(SessionStatus { away_since: Some(since), .. }), _) => {
            format!("away since {}", ago(*since))
        }
        (Some(_), _) => "now".to_owned(),
        (None, Some(at)) => format!("{} ago", ago(at)),
        (None, None) => "never".to_owned(),
    }
}

fn certificate(device: &Shown) -> String {
    match (device.revoked, device.to_confirm) {
        (Some(at), _) => format!("revoked {}", day(at)),
        (None, _) if device.user_revoked => "user revoked".to_owned(),
        (None, Some(_)) => "to confirm".to_owned(),
        (None, None) => format!("until {}", day(device.certificate_until)),
    }
}

/// What to do about devices that are held back. `lost` is how many revocations are known to be lost.
pub(super) fn to_confirm(lost: u64) -> String {
    let lost = match lost {
        0 => "Revocations since the backup are not in the register".to_owned(),
        lost => format!(
            "{} since the backup {} lost, or more",
            human::count(lost, "revocation"),
            if lost == 1 { "is" } else { "are" }
        ),
    };
    typed(format!(
        "{lost}. Let each device in that should be: `aditd device confirm NAME`; end the others: `aditd device revoke NAME`."
    ))
}

/// How long ago a time was, as text.
fn ago(at: i64) -> String {
    human::time(std::time::Duration::from_secs(unix_now().saturating_sub(at).max(0) as u64))
}
