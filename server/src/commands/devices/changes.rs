//! `aditd device restore`, `confirm`, `user` and `rename`.

use common::machine::{
    process::{self, unix_now},
    report::{Failure, say},
};
use proto::{
    epoch::Standing,
    identity::{Name, RECOVER_WITHIN, UserName},
};

use super::in_force;
use crate::{
    audit::{self, AuditSettings, Event},
    state::{
        State,
        register::{Device, DeviceError},
    },
};

/// Lets a revoked device in again.
pub(super) async fn restore(
    state: &State,
    audit: &AuditSettings,
    name: &str,
) -> Result<(), Failure> {
    let device = state.register.find(name)?;
    // It is not let in while its user is revoked, whatever is done with the device.
    let of_user =
        device.user.as_ref().map_or(Ok(()), |user| state.register.must_not_be_revoked(user));
    if device.revoked.is_none() {
        of_user?;
        return Err(DeviceError::NotRevoked(device.name).into());
    }
    if unix_now() > device.not_after + RECOVER_WITHIN {
        let device = device.name;
        return Err(Failure::new(format!(
            "the certificate of `{device}` expired too long ago to be renewed"
        ))
        .hint(format!(
            "enroll it again: `aditd device forget {device}` and `aditd invite {device}`; then, on that computer, `adit enroll --replace`"
        )));
    }
    state.register.restore(device.id)?;
    let event = Event::Restore { device: device.subject(), uid: process::uid() };
    audit::note_or_say(audit, &event);
    in_force(state).await?;
    if let Err(why) = of_user {
        return Err(Failure::from(why));
    }
    say(format!(
        "{} {} may connect again. A running `adit up` tries within a minute; one that has ended has to be started again.",
        device.name, device.id
    ));
    Ok(())
}

/// Lets a device in that was held back after a restore; `None` for all of them.
pub(super) async fn confirm(
    state: &State,
    audit: &AuditSettings,
    name: Option<&str>,
) -> Result<(), Failure> {
    let held = match name {
        Some(name) => vec![state.register.find(name)?],
        None => state.register.devices()?,
    };
    let held: Vec<Device> =
        held.into_iter().filter(|device| device.standing() == Standing::Held).collect();
    if held.is_empty() {
        say(match name {
            Some(name) => format!("`{name}` is not held back: nothing is to be confirmed."),
            None => "No device is held back: nothing is to be confirmed.".to_owned(),
        });
        return Ok(());
    }
    for device in &held {
        state.register.confirm(device.id)?;
        let event = Event::Confirm { device: device.subject(), uid: process::uid() };
        audit::note_or_say(audit, &event);
    }
    in_force(state).await?;
    for device in held {
        say(format!("{} {} may connect again.", device.name, device.id));
    }
    Ok(())
}

/// Says whose a device is; `None` for a user of its own.
pub(super) async fn user(
    state: &State,
    audit: &AuditSettings,
    name: &str,
    user: Option<&UserName>,
) -> Result<(), Failure> {
    let device = state.register.find(name)?;
    if let Some(user) = user {
        state.register.must_not_be_revoked(user)?;
    }
    state.register.set_user(device.id, user)?;
    let now = Device { user: user.cloned(), ..device.clone() };
    let event = Event::Assign { device: now.subject(), before: device.user, uid: process::uid() };
    audit::note_or_say(audit, &event);
    in_force(state).await?;
    say(match user {
        Some(user) => format!("{} {} belongs to the user `{user}` now.", now.name, now.id),
        None => format!("{} {} counts as a user of its own now.", now.name, now.id),
    });
    Ok(())
}

/// Gives a device another name.
pub(super) async fn rename(
    state: &State,
    audit: &AuditSettings,
    old: &str,
    new: &Name,
) -> Result<(), Failure> {
    let device = state.register.find(old)?;
    if device.name == *new {
        say(format!("{} {} has that name already.", device.name, device.id));
        return Ok(());
    }
    state.register.rename(device.id, new, unix_now())?;
    let before = device.name.clone();
    let renamed = Device { name: new.clone(), ..device };
    let event =
        Event::Rename { device: renamed.subject(), before: before.clone(), uid: process::uid() };
    audit::note_or_say(audit, &event);
    in_force(state).await?;
    say(format!(
        "{before} {} is `{new}` now. Settings below `[devices.{before}]` of the configuration do not follow.",
        renamed.id
    ));
    Ok(())
}
