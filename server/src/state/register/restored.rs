//! A register that was restored from a backup, or put back by hand: which of its devices are held
//! back until the owner confirms them.

use common::machine::{files, process::unix_now};
use proto::{
    epoch::{Epoch, Memory, Standing},
    identity::{DeviceId, UserName},
};
use rusqlite::params;
use tracing::warn;

use super::{
    Device, Register, RegisterError,
    devices::all_devices,
    epoch::{self, EPOCH, LOST, RESTORED_FROM, set},
    keys, users,
};

/// A register that is there while another is restored over it.
pub(crate) struct Replaced {
    epoch: Epoch,
    devices: Vec<Device>,
    /// The prefixes of the secrets of its keys.
    secrets: Vec<String>,
    users: Vec<users::UserRow>,
}

impl Replaced {
    /// What this register knows.
    pub(crate) fn of(register: &Register) -> Result<Self, RegisterError> {
        let secrets = register.keys()?.into_iter().flat_map(|key| key.secrets);
        Ok(Self {
            epoch: register.history()?.epoch,
            devices: register.devices()?,
            users: register.user_rows()?,
            secrets: secrets.map(|secret| secret.prefix.to_string()).collect(),
        })
    }
}

impl Register {
    /// Holds back every device that is not revoked, and begins a new line of epochs. Open
    /// invitations end: some may have been used.
    pub(crate) fn hold_all(&self, lost: u64) -> Result<(), RegisterError> {
        let now = unix_now();
        self.change(|t| {
            t.execute(
                "UPDATE device SET held = ?1 WHERE revoked IS NULL AND held IS NULL",
                params![now],
            )?;
            t.execute("DELETE FROM invitation", [])?;
            keys::end_all_but(t, &[], now)?;
            let before = epoch::read(t)?;
            set(t, RESTORED_FROM, &before.epoch.to_string())?;
            set(t, LOST, &lost.to_string())?;
            set(t, EPOCH, &Epoch::begin().to_string())
        })?;
        self.remember();
        Ok(())
    }

    /// Notes that at least so many revocations are lost.
    pub(crate) fn note_lost(&self, lost: u64) -> Result<(), RegisterError> {
        self.change(|t| set(t, LOST, &lost.to_string()))
    }

    /// Lets a device in that was held back.
    pub(crate) fn confirm(&self, id: DeviceId) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute("UPDATE device SET held = NULL WHERE id = ?1", params![id.to_string()])
        })
        .map(drop)
    }

    /// Makes this register, which comes from a backup, the successor of the one that it replaces, or
    /// of an unknown one: each device stands as `proto::epoch::standing` says.
    /// Keys for programs are secrets that cannot be held back: without a successor they end.
    pub(crate) fn succeed(&self, replaced: Option<&Replaced>) -> Result<(), RegisterError> {
        let own = self.history()?.epoch;
        let successor = replaced.filter(|replaced| {
            own.line == replaced.epoch.line && own.count <= replaced.epoch.count
        });
        let now = unix_now();
        self.change(|t| {
            for device in all_devices(t)? {
                let known = successor.map(|replaced| {
                    replaced
                        .devices
                        .iter()
                        .find(|other| other.id == device.id && other.key == device.key)
                });
                let after = proto::epoch::standing(
                    device.standing(),
                    known.map(|known| known.map(Device::standing)),
                );
                let user = known.flatten().map_or(&device.user, |known| &known.user);
                let revoked = known.flatten().and_then(|known| known.revoked).or(device.revoked);
                let reason = known.flatten().and_then(|known| known.reason.clone());
                let reason = reason.or_else(|| device.reason.clone()).map(|why| why.to_string());
                let (revoked, held) = match after {
                    Standing::Admitted => (None, None),
                    Standing::Held => (None, Some(now)),
                    Standing::Revoked => (Some(revoked.unwrap_or(now)), None),
                };
                t.execute(
                    "UPDATE device SET revoked = ?2, held = ?3, reason = ?4, user = ?5 WHERE id = ?1",
                    params![
                        device.id.to_string(),
                        revoked,
                        held,
                        reason.filter(|_| revoked.is_some()),
                        user.as_ref().map(UserName::as_str)
                    ],
                )?;
            }
            users::keep(t, successor.map(|replaced| &*replaced.users).unwrap_or_default())?;
            t.execute("DELETE FROM invitation", [])?;
            let kept = successor.map(|replaced| &*replaced.secrets).unwrap_or_default();
            keys::end_all_but(t, kept, now)?;
            match successor {
                Some(replaced) => set(t, EPOCH, &replaced.epoch.to_string()),
                None => {
                    set(t, RESTORED_FROM, &own.to_string())?;
                    set(t, LOST, "0")?;
                    set(t, EPOCH, &Epoch::begin().to_string())
                }
            }
        })?;
        self.remember();
        Ok(())
    }

    /// Compares the register with the file, as it is opened.
    pub(super) fn check_memory(&self) -> Result<(), RegisterError> {
        let remembered = match files::read_to_string(&self.memory()) {
            Ok(text) => text.parse::<Epoch>().ok(),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e.into()),
        };
        let lost = match remembered.map(|remembered| self.history().map(|own| (own, remembered))) {
            None => None,
            Some(found) => {
                let (own, remembered) = found?;
                match own.epoch.compare(remembered) {
                    Memory::Agrees => None,
                    Memory::Lost(lost) => Some(lost),
                    Memory::OtherLine => Some(0),
                }
            }
        };
        if let Some(lost) = lost {
            warn!(
                "the register is older than it was: its devices are held back until they are confirmed (`aditd device list`)"
            );
            return self.hold_all(lost);
        }
        self.remember();
        Ok(())
    }
}
