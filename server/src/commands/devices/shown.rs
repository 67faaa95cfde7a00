//! Devices as the commands print them, for people and for programs.

use common::machine::{
    format,
    process::{self, day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::{device_key::KeyStorage, human};

use crate::{
    commands::beside::Beside,
    documents::{DeviceShown, OneDevice},
    policy::roles::either,
    record::CarrierKind,
    running::sessions::SessionStatus,
};

/// The device, with the name of the user of this machine who enrolled it.
pub(in crate::commands) fn with_login(device: DeviceShown) -> DeviceShown {
    DeviceShown { login: device.uid.and_then(process::login), ..device }
}

pub(super) fn list(devices: &[DeviceShown], beside: &Beside) -> Result<(), Failure> {
    if devices.is_empty() {
        say(typed("No devices yet: invite one with `aditd invite NAME`."));
        return Ok(());
    }
    let rows = devices.iter().map(|device| {
        [
            device.name.to_string(),
            device.id.to_string(),
            marked(device, beside),
            device.user.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            device.key_storage.word().to_owned(),
            seen(device),
            certificate(device),
        ]
    });
    data(format::table(["NAME", "ID", "ROLE", "USER", "KEY", "SEEN", "CERTIFICATE"], rows))
}

pub(super) fn show(one: &OneDevice, beside: &Beside) -> Result<(), Failure> {
    let device = &one.device;
    let mut text = format!(
        "Device       {} {}\nRole         {}\nEnrolled     {}{}\nSeen         {}\n",
        device.name,
        device.id,
        role(device, beside),
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
    if device.key_storage != KeyStorage::File {
        let place = device.key_storage.place();
        text += &format!("Key          {place}, as the device says\n");
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
    if let Some(today) = &one.tokens_today {
        text += &format!("\nTokens       {} used today (UTC)", today.used);
        text += &today.limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
        if let Some(all) = &today.user {
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
fn by_user(device: &DeviceShown) -> String {
    match (device.uid, &device.login) {
        (Some(uid), Some(user)) => format!(" by {user} (uid {uid})"),
        (Some(uid), None) => format!(" by uid {uid}"),
        (None, _) => String::new(),
    }
}

fn role(device: &DeviceShown, beside: &Beside) -> String {
    match &device.models {
        Some(models) => format!("{}, only {}", marked(device, beside), either(models)),
        None => marked(device, beside),
    }
}

fn marked(device: &DeviceShown, beside: &Beside) -> String {
    if beside.knows(&device.role) {
        device.role.to_string()
    } else {
        format!("{} (not in the configuration)", device.role)
    }
}

fn seen(device: &DeviceShown) -> String {
    match (&device.session, device.seen) {
        (Some(SessionStatus { away_since: Some(since), .. }), _) => {
            format!("away since {}", ago(*since))
        }
        (Some(_), _) => "now".to_owned(),
        (None, Some(at)) => format!("{} ago", ago(at)),
        (None, None) => "never".to_owned(),
    }
}

fn certificate(device: &DeviceShown) -> String {
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
