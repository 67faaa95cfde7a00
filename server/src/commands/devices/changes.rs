//! `aditd device restore` and `aditd device rename`.

use common::machine::{
    process::{self, unix_now},
    report::{Failure, say},
};
use proto::identity::{Name, RECOVER_WITHIN};

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
    if device.revoked.is_none() {
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
    say(format!(
        "{} {} may connect again. Its `adit up` tries when a request needs it, at the latest after an hour.",
        device.name, device.id
    ));
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
