//! The devices in the register: found, added, changed, revoked and forgotten.

use proto::{
    device_key::KeyStorage,
    epoch::Standing,
    identity::{DeviceId, KeyHash, Name, UserName},
    ollama::model::ModelPattern,
    rotation::CaNumber,
    wire::Reason,
};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{
    DeviceError, Register, RegisterError, User, cas, epoch, names, names::FreedName, parsed,
    shared_knock, users,
};
use crate::audit::entry::{EnrolledWith, Subject};

/// The role of a device for which none was chosen.
pub(crate) fn default_role() -> Name {
    "infer".parse().expect("a role's name is a name")
}

/// A device as the register knows it. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Unique; never changes and is never used again.
    pub id: DeviceId,
    pub name: Name,
    /// The key with which it enrolled.
    pub key: KeyHash,
    pub enrolled: i64,
    /// When its newest certificate expires.
    pub not_after: i64,
    pub revoked: Option<i64>,
    /// Why it was revoked, in the owner's words.
    pub reason: Option<Reason>,
    /// When its last session ended, or when the current one began.
    pub seen: Option<i64>,
    pub role: Name,
    /// Since when it is held back until the owner confirms it.
    pub held: Option<i64>,
    /// The only models that it may use, in addition to its role's restrictions; `None` for no such
    /// list.
    pub models: Option<Vec<ModelPattern>>,
    /// The user of this machine who enrolled it over SSH; `None` if it used an invitation.
    pub uid: Option<u32>,
    /// The person to whom it belongs; `None` if it counts as a user of its own.
    pub user: Option<UserName>,
    /// The sign-in with which it enrolled, if it did so.
    pub sign_in: Option<DeviceSignIn>,
    /// The newest CA that it is known to have stored.
    pub ca: CaNumber,
    /// How it keeps its key, as it says.
    pub key_storage: KeyStorage,
}

/// The sign-in of a device, in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSignIn {
    /// When the provider said that it has ended, in Unix time.
    pub ended: Option<i64>,
}

impl Device {
    /// The device, as the audit log names it.
    pub fn subject(&self) -> Subject {
        Subject {
            device: self.name.clone(),
            device_id: self.id,
            device_uid: self.uid,
            is_key: false,
            is_token: false,
            user: self.user.clone(),
            enrolled: self.sign_in.map(|_| EnrolledWith::Sso),
        }
    }

    /// Whether an enrollment of this login with this name and the device's key is the same device.
    pub(crate) fn is_enrolled_as(&self, name: &Name, login: User) -> bool {
        self.name == *name && self.uid.is_none_or(|uid| uid == login.uid)
    }

    /// Whether the provider has said that its sign-in has ended.
    pub(crate) fn has_signed_out(&self) -> bool {
        self.sign_in.is_some_and(|sign_in| sign_in.ended.is_some())
    }

    /// Whether it may connect.
    pub(crate) fn standing(&self) -> Standing {
        match (self.revoked, self.held) {
            (Some(_), _) => Standing::Revoked,
            (None, Some(_)) => Standing::Held,
            (None, None) => Standing::Admitted,
        }
    }
}

impl Register {
    /// All devices, by name.
    pub(crate) fn devices(&self) -> Result<Vec<Device>, RegisterError> {
        self.read(all_devices)
    }

    /// The device with this id or name.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`]; [`DeviceError::Ambiguous`] if it is the id of one device and the
    /// name of another.
    pub(crate) fn find(&self, id_or_name: &str) -> Result<Device, DeviceError> {
        let devices = self.devices()?;
        let by_id = id_or_name.parse().ok().and_then(|id| devices.iter().find(|d| d.id == id));
        let by_name = devices.iter().find(|device| device.name.as_str() == id_or_name);
        match (by_id, by_name) {
            (Some(by_id), Some(by_name)) if by_id.id != by_name.id => Err(DeviceError::Ambiguous {
                text: id_or_name.to_owned(),
                name: by_id.name.clone(),
                id: by_name.id,
            }),
            (Some(device), _) | (None, Some(device)) => Ok(device.clone()),
            (None, None) => Err(DeviceError::Unknown {
                text: id_or_name.to_owned(),
                known: devices.into_iter().map(|device| device.name).collect(),
            }),
        }
    }

    /// Enrolls a device without an invitation: sshd has authenticated the `login`, which is that of
    /// the person `user`. The same key of the same login with the same name is the same device.
    ///
    /// # Errors
    /// The name is not available to this login, or the user is revoked.
    pub(crate) fn enroll(
        &self,
        name: &Name,
        login: User,
        user: Option<&UserName>,
        key: KeyHash,
        not_after: i64,
        now: i64,
    ) -> Result<Device, DeviceError> {
        self.change(|t| {
            if let Some(revoked) = users::refuses(t, user, Some(login))? {
                return Ok(Err(DeviceError::UserRevoked(revoked)));
            }
            let is_same = |device: &Device| {
                device.key == key && device.revoked.is_none() && device.is_enrolled_as(name, login)
            };
            if let Some(device) = all_devices(t)?.into_iter().find(is_same) {
                return Ok(Ok(device));
            }
            if names::is_of_key(t, name)? {
                return Ok(Err(DeviceError::NameOfKey(name.clone())));
            }
            let has = all_devices(t)?.into_iter().find(|device| device.name == *name);
            if let Err(why) = names::check(t, name, login, has.as_ref(), now)? {
                return Ok(Err(why));
            }
            let role = users::role(t, user)?.unwrap_or_else(default_role);
            let new = NewDevice { name, role: &role, uid: Some(login.uid), user };
            insert_device(t, new, key, not_after, now).map(Ok)
        })?
    }

    /// Ends a device's access, and everything else that it knows and that could still get an
    /// answer: its invitation, and the knock key that it shares with others.
    pub(crate) fn revoke(
        &self,
        id: DeviceId,
        reason: Option<&Reason>,
        now: i64,
    ) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute("DELETE FROM invitation WHERE device = ?1", params![id.to_string()])?;
            shared_knock::revoked(t, id)?;
            epoch::advance(t)?;
            t.execute(
                "UPDATE device SET revoked = ?2, reason = ?3, held = NULL WHERE id = ?1 AND revoked IS NULL",
                params![id.to_string(), now, reason.map(ToString::to_string)],
            )
        })
        .map(drop)?;
        self.remember();
        Ok(())
    }

    /// Lets a revoked device in again, with the key that it had. What else ended with the revocation
    /// (its invitation, the knock key that it shared with others) does not come back.
    pub(crate) fn restore(&self, id: DeviceId) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE device SET revoked = NULL, reason = NULL WHERE id = ?1",
                params![id.to_string()],
            )
        })
        .map(drop)
    }

    /// Gives a device another name. The old one is reserved for the device's user, as that of a
    /// forgotten device.
    ///
    /// # Errors
    /// The name is not available.
    pub(crate) fn rename(&self, id: DeviceId, to: &Name, now: i64) -> Result<(), DeviceError> {
        self.change(|t| {
            let devices = all_devices(t)?;
            let Some(device) = devices.iter().find(|device| device.id == id) else {
                return Ok(Ok(()));
            };
            if names::is_of_key(t, to)? {
                return Ok(Err(DeviceError::NameOfKey(to.clone())));
            }
            let has = devices.iter().find(|other| other.name == *to);
            if let Err(why) = names::check_new(t, to, has, now)? {
                return Ok(Err(why));
            }
            names::forgotten(t, &device.name, device.uid)?;
            names::taken(t, to)?;
            t.execute(
                "UPDATE device SET name = ?2 WHERE id = ?1",
                params![id.to_string(), to.as_str()],
            )?;
            Ok(Ok(()))
        })?
    }

    /// Removes a revoked device. Its name is reserved for the user who enrolled it; with `free_name` it
    /// is freed at once: see [`Register::free_name`].
    pub(crate) fn forget(
        &self,
        id: DeviceId,
        free_name: bool,
    ) -> Result<Option<FreedName>, RegisterError> {
        self.change(|t| {
            let revoked = |device: &Device| device.id == id && device.revoked.is_some();
            let Some(device) = all_devices(t)?.into_iter().find(revoked) else { return Ok(None) };
            t.execute("DELETE FROM device WHERE id = ?1", params![id.to_string()])?;
            t.execute("DELETE FROM sign_in WHERE device = ?1", params![id.to_string()])?;
            names::forgotten(t, &device.name, device.uid)?;
            if free_name { names::free(t, &device.name) } else { Ok(None) }
        })
    }

    /// Says to which person a device belongs; `None` makes it a user of its own.
    pub(crate) fn set_user(
        &self,
        id: DeviceId,
        user: Option<&UserName>,
    ) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE device SET user = ?2 WHERE id = ?1",
                params![id.to_string(), user.map(UserName::as_str)],
            )
        })
        .map(drop)
    }

    /// Changes the role of a device.
    pub(crate) fn set_role(&self, id: DeviceId, role: &Name) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE device SET role = ?2 WHERE id = ?1",
                params![id.to_string(), role.as_str()],
            )
        })
        .map(drop)
    }

    /// Restricts a device to these models; `None` removes the restriction.
    pub(crate) fn set_models(
        &self,
        id: DeviceId,
        models: Option<&[ModelPattern]>,
    ) -> Result<(), RegisterError> {
        let text = models
            .map(|models| models.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        self.change(|t| {
            t.execute("UPDATE device SET models = ?2 WHERE id = ?1", params![id.to_string(), text])
        })
        .map(drop)
    }

    /// Notes that a device was seen at `now`.
    pub(crate) fn seen(&self, id: DeviceId, now: i64) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute("UPDATE device SET seen = ?2 WHERE id = ?1", params![id.to_string(), now])
        })
        .map(drop)
    }

    /// Notes how a device keeps its key, as it says.
    pub(crate) fn keeps_key(&self, id: DeviceId, kept: KeyStorage) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE device SET key_storage = ?2 WHERE id = ?1",
                params![id.to_string(), kept.word()],
            )
        })
        .map(drop)
    }

    /// The role that a device with this key has or would get: that of the device for which `is_same`
    /// holds, or that of its `user`. `None` if neither says.
    pub(crate) fn role_for(
        &self,
        key: KeyHash,
        user: Option<&UserName>,
        is_same: impl Fn(&Device) -> bool,
    ) -> Result<Option<Name>, RegisterError> {
        self.read(|t| {
            let is_same =
                |device: &Device| device.key == key && device.revoked.is_none() && is_same(device);
            let known = all_devices(t)?.into_iter().find(is_same);
            match known {
                Some(device) => Ok(Some(device.role)),
                None => users::role(t, user),
            }
        })
    }

    /// Notes when a device's newest certificate expires.
    pub(crate) fn renewed(&self, id: DeviceId, not_after: i64) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE device SET not_after = ?2 WHERE id = ?1",
                params![id.to_string(), not_after],
            )
        })
        .map(drop)
    }
}

/// A name that looks like an id could be mistaken for another device.
pub(super) fn refuse_like_id(name: &Name) -> Result<(), DeviceError> {
    if name.looks_like_id() { Err(DeviceError::LooksLikeId(name.clone())) } else { Ok(()) }
}

pub(super) fn all_devices(t: &Transaction<'_>) -> rusqlite::Result<Vec<Device>> {
    let mut query =
        t.prepare_cached("SELECT id, name, key, enrolled, not_after, revoked, seen, role, models, uid, reason, held, user, sign_in.device IS NOT NULL, sign_in.ended, device.ca, key_storage FROM device LEFT JOIN sign_in ON sign_in.device = id ORDER BY name")?;
    let rows = query.query_map([], |row| {
        Ok(Device {
            id: parsed(row.get(0)?)?,
            name: parsed(row.get(1)?)?,
            key: KeyHash(row.get(2)?),
            enrolled: row.get(3)?,
            not_after: row.get(4)?,
            revoked: row.get(5)?,
            seen: row.get(6)?,
            role: parsed(row.get(7)?)?,
            models: row.get::<_, Option<String>>(8)?.map(models).transpose()?,
            uid: row.get(9)?,
            reason: row.get::<_, Option<String>>(10)?.map(parsed).transpose()?,
            held: row.get(11)?,
            user: row.get::<_, Option<String>>(12)?.map(parsed).transpose()?,
            sign_in: match row.get(13)? {
                true => Some(DeviceSignIn { ended: row.get(14)? }),
                false => None,
            },
            ca: row.get(15)?,
            key_storage: KeyStorage::from_word(&row.get::<_, String>(16)?),
        })
    })?;
    rows.collect()
}

/// A device that is added to the register.
pub(super) struct NewDevice<'a> {
    pub(super) name: &'a Name,
    pub(super) role: &'a Name,
    /// The user of this machine who enrolls it over SSH.
    pub(super) uid: Option<u32>,
    /// The person to whom it belongs.
    pub(super) user: Option<&'a UserName>,
}

pub(super) fn insert_device(
    t: &Transaction<'_>,
    new: NewDevice<'_>,
    key: KeyHash,
    not_after: i64,
    now: i64,
) -> rusqlite::Result<Device> {
    let NewDevice { name, role, uid, user } = new;
    let unused = |id: &DeviceId| {
        t.query_row("SELECT 1 FROM device WHERE id = ?1", params![id.to_string()], |_| Ok(()))
            .optional()
    };
    let mut id = DeviceId::generate();
    while unused(&id)?.is_some() || names::is_id_of_key(t, id)? {
        id = DeviceId::generate();
    }
    let ca = cas::read(t)?.current().number;
    t.execute(
        "INSERT INTO device (id, name, key, enrolled, not_after, role, uid, user, ca) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![id.to_string(), name.as_str(), key.0, now, not_after, role.as_str(), uid, user.map(UserName::as_str), ca],
    )?;
    names::taken(t, name)?;
    let role = role.clone();
    Ok(Device {
        id,
        name: name.clone(),
        key,
        enrolled: now,
        not_after,
        revoked: None,
        reason: None,
        held: None,
        seen: None,
        role,
        models: None,
        uid,
        user: user.cloned(),
        sign_in: None,
        ca,
        key_storage: KeyStorage::File,
    })
}

/// Separated by spaces: no model's name has one.
pub(super) fn models(text: String) -> rusqlite::Result<Vec<ModelPattern>> {
    text.split(' ').filter(|name| !name.is_empty()).map(|name| parsed(name.to_owned())).collect()
}
