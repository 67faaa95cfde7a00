//! Changes of devices and of invitations.

use std::time::Duration;

use common::machine::process::unix_now;
use proto::{
    identity::{DeviceId, Name, RECOVER_WITHIN, UserName},
    ollama::model::ModelPattern,
    wire::Reason,
};

use super::Changes;
use crate::{
    audit::Event,
    state::{
        codes::{MadeCode, Opens},
        register::{Device, DeviceError, RegisterError, UserError},
    },
};

/// A device with another name.
pub(crate) struct Renamed {
    /// The name that it had: the same, if there was nothing to change.
    pub(crate) before: Name,
    pub(crate) device: Device,
}

/// A device that was removed.
pub(crate) struct Forgotten {
    pub(crate) name: Name,
    /// Its id; `None` if it was removed before.
    pub(crate) id: Option<DeviceId>,
    /// Whether any user may have its name now.
    pub(crate) name_is_free: bool,
}

/// Why nothing may belong to a user.
fn of_user(error: UserError) -> DeviceError {
    match error {
        UserError::Register(e) => e.into(),
        other => DeviceError::UserRevoked(other),
    }
}

impl Changes<'_> {
    fn device(&self, id: DeviceId) -> Result<Device, DeviceError> {
        self.state.register.find(&id.to_string())
    }

    /// Finds a device that is not revoked.
    fn enrolled(&self, name: &str) -> Result<Device, DeviceError> {
        let device = self.state.register.find(name)?;
        if device.revoked.is_some() {
            return Err(DeviceError::AlreadyRevoked(device.name));
        }
        Ok(device)
    }

    /// Makes a code. An older one of the same name is withdrawn.
    pub(crate) fn invite(
        &self,
        name: Name,
        opens: Opens,
        life: Duration,
        addresses: Vec<String>,
    ) -> Result<MadeCode, DeviceError> {
        let made = self.state.make_code(name, opens, life, addresses, unix_now())?;
        let invited = &made.invited;
        self.note(Event::Invite {
            device: invited.name.clone(),
            sso: invited.sso,
            role: invited.role.clone(),
            user: invited.user.clone(),
            expires: invited.expires,
            uid: self.uid,
        });
        Ok(made)
    }

    /// Withdraws the open invitation for this name. Returns whether there was one.
    pub(crate) fn withdraw(&self, name: &str) -> Result<bool, RegisterError> {
        let was_open = self.state.register.withdraw(name, unix_now())?;
        if was_open {
            self.note(Event::Withdraw { device: name.to_owned(), uid: self.uid });
        }
        Ok(was_open)
    }

    /// Gives a device another role, which exists.
    pub(crate) fn set_role(&self, name: &str, role: &Name) -> Result<Device, DeviceError> {
        let device = self.enrolled(name)?;
        self.state.register.set_role(device.id, role)?;
        self.note(Event::Role {
            device: device.subject(),
            role: role.clone(),
            before: device.role,
            uid: self.uid,
        });
        self.device(device.id)
    }

    /// Lets a device use only these models; `None` if its role decides.
    pub(crate) fn set_models(
        &self,
        name: &str,
        models: Option<&[ModelPattern]>,
    ) -> Result<Device, DeviceError> {
        let device = self.enrolled(name)?;
        self.state.register.set_models(device.id, models)?;
        let models = models.map(|all| all.iter().map(ToString::to_string).collect());
        self.note(Event::Models { device: device.subject(), models, uid: self.uid });
        self.device(device.id)
    }

    /// Says whose a device is; `None` for a user of its own.
    pub(crate) fn assign(
        &self,
        name: &str,
        user: Option<&UserName>,
    ) -> Result<Device, DeviceError> {
        let device = self.state.register.find(name)?;
        if let Some(user) = user {
            self.state.register.must_not_be_revoked(user).map_err(of_user)?;
        }
        self.state.register.set_user(device.id, user)?;
        let now = self.device(device.id)?;
        self.note(Event::Assign { device: now.subject(), before: device.user, uid: self.uid });
        Ok(now)
    }

    /// Gives a device another name.
    pub(crate) fn rename(&self, name: &str, to: &Name) -> Result<Renamed, DeviceError> {
        let device = self.state.register.find(name)?;
        if device.name == *to {
            return Ok(Renamed { before: to.clone(), device });
        }
        self.state.register.rename(device.id, to, unix_now())?;
        let (before, device) = (device.name, self.device(device.id)?);
        self.note(Event::Rename {
            device: device.subject(),
            before: before.clone(),
            uid: self.uid,
        });
        Ok(Renamed { before, device })
    }

    /// Ends the access of a device.
    pub(crate) fn revoke(&self, name: &str, reason: Option<Reason>) -> Result<Device, DeviceError> {
        let device = self.enrolled(name)?;
        self.state.register.revoke(device.id, reason.as_ref(), unix_now())?;
        self.note(Event::Revoke { device: device.subject(), reason, uid: self.uid });
        self.device(device.id)
    }

    /// Lets a revoked device in again. It stays out as long as its user is revoked.
    pub(crate) fn restore(&self, name: &str) -> Result<Device, DeviceError> {
        let device = self.state.register.find(name)?;
        if device.revoked.is_none() {
            // It is out because its user is: what is done with the device does not change that.
            if let Some(user) = &device.user {
                self.state.register.must_not_be_revoked(user).map_err(of_user)?;
            }
            return Err(DeviceError::NotRevoked(device.name));
        }
        if unix_now() > device.not_after + RECOVER_WITHIN {
            return Err(DeviceError::ExpiredTooLongAgo(device.name));
        }
        self.state.register.restore(device.id)?;
        self.note(Event::Restore { device: device.subject(), uid: self.uid });
        self.device(device.id)
    }

    /// Lets a device in that was held back after a restore; `None` for all of them. Returns those
    /// that were held back: if this fails, none is let in.
    pub(crate) fn confirm(&self, name: Option<&str>) -> Result<Vec<Device>, DeviceError> {
        let only = name.map(|name| self.state.register.find(name)).transpose()?;
        let confirmed = self.state.register.confirm(only.map(|device| device.id))?;
        for device in &confirmed {
            self.note(Event::Confirm { device: device.subject(), uid: self.uid });
        }
        Ok(confirmed)
    }

    /// Removes a revoked device. With `free_name` any user may have its name then, also if it was
    /// removed before.
    pub(crate) fn forget(&self, name: &str, free_name: bool) -> Result<Forgotten, DeviceError> {
        let (name, id, freed) = match (self.state.register.find(name), name.parse::<Name>()) {
            (Err(DeviceError::Unknown { .. }), Ok(name))
                if free_name && self.state.register.freed_name(&name)?.is_some() =>
            {
                let freed = self.state.register.free_name(&name)?;
                (name, None, freed)
            }
            (found, _) => {
                let device = found?;
                if device.revoked.is_none() {
                    return Err(DeviceError::StillEnrolled(device.name));
                }
                let freed = self.state.register.forget(device.id, free_name)?;
                self.note(Event::Forget { device: device.subject(), uid: self.uid });
                (device.name, Some(device.id), freed)
            }
        };
        if let Some(freed) = &freed {
            let (device, device_uid) = (name.clone(), freed.uid);
            self.note(Event::FreeName { device, device_uid, uid: self.uid });
        }
        Ok(Forgotten { name, id, name_is_free: freed.is_some() })
    }
}
