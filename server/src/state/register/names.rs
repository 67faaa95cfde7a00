//! Who may use a device's name. A name stands for a person in `authorize` and in the audit log, so
//! the name of a forgotten device does not pass to another user by itself.

use proto::identity::{DeviceId, Name};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{Device, DeviceError, Register, RegisterError};

/// The change to format 3: who enrolled a device, and the names of forgotten devices.
pub(super) const CHANGE: &str = "
    ALTER TABLE device ADD COLUMN uid INTEGER;
    CREATE TABLE freed_name (name TEXT PRIMARY KEY, uid INTEGER) STRICT;
";

/// A user of this machine who enrolls a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    /// Whether the user may write the server's state, and so may choose any name.
    pub is_owner: bool,
}

impl User {
    /// Somebody who is no user of this machine: the user id that none has (`(uid_t) -1`).
    pub(crate) const NOBODY: Self = Self { uid: u32::MAX, is_owner: false };
}

/// The name of a forgotten device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreedName {
    /// The user who enrolled that device over SSH; `None` if it used an invitation.
    pub uid: Option<u32>,
}

impl FreedName {
    /// Whether this user may use the name.
    fn is_for(self, user: User) -> bool {
        match self.uid {
            Some(uid) => uid == user.uid,
            None => user.is_owner,
        }
    }
}

impl Register {
    /// Who had this name, if its device was forgotten and no device has the name now.
    pub(crate) fn freed_name(&self, name: &Name) -> Result<Option<FreedName>, RegisterError> {
        self.read(|t| freed(t, name))
    }

    /// Frees the name of a forgotten device for any user. Returns who had it; `None` if it was not
    /// reserved.
    pub(crate) fn free_name(&self, name: &Name) -> Result<Option<FreedName>, RegisterError> {
        self.change(|t| free(t, name))
    }
}

/// See [`Register::free_name`].
pub(super) fn free(t: &Transaction<'_>, name: &Name) -> rusqlite::Result<Option<FreedName>> {
    let had = freed(t, name)?;
    taken(t, name)?;
    Ok(had)
}

/// Whether this user may give a new device this name; `device` is the device that has it now.
pub(super) fn check(
    t: &Transaction<'_>,
    name: &Name,
    user: User,
    device: Option<&Device>,
    now: i64,
) -> rusqlite::Result<Result<(), DeviceError>> {
    Ok(judge(name, user, device, freed(t, name)?, !user.is_owner && invited(t, name, now)?))
}

fn judge(
    name: &Name,
    user: User,
    device: Option<&Device>,
    freed: Option<FreedName>,
    is_invited: bool,
) -> Result<(), DeviceError> {
    match (device, freed) {
        _ if name.looks_like_id() => Err(DeviceError::LooksLikeId(name.clone())),
        (Some(device), _) if device.revoked.is_some() => {
            Err(DeviceError::NameOfRevoked(name.clone()))
        }
        (Some(_), _) => Err(DeviceError::NameTaken(name.clone())),
        (None, Some(freed)) if !freed.is_for(user) => {
            Err(DeviceError::NameOfAnother { name: name.clone(), uid: freed.uid })
        }
        _ if is_invited && !user.is_owner => Err(DeviceError::NameInvited(name.clone())),
        _ => Ok(()),
    }
}

/// Whether the owner of the server may give a device this name; `device` is the one that has it.
/// The owner may take a reserved name, and no name that a code was made for.
pub(super) fn check_new(
    t: &Transaction<'_>,
    name: &Name,
    device: Option<&Device>,
    now: i64,
) -> rusqlite::Result<Result<(), DeviceError>> {
    Ok(if name.looks_like_id() {
        Err(DeviceError::LooksLikeId(name.clone()))
    } else if let Some(device) = device {
        Err(match device.revoked {
            Some(_) => DeviceError::NameOfRevoked(name.clone()),
            None => DeviceError::NameTaken(name.clone()),
        })
    } else if invited(t, name, now)? {
        Err(DeviceError::NameInvited(name.clone()))
    } else {
        Ok(())
    })
}

/// A device was forgotten: its name is reserved for its user.
pub(super) fn forgotten(
    t: &Transaction<'_>,
    name: &Name,
    uid: Option<u32>,
) -> rusqlite::Result<()> {
    t.execute("INSERT OR REPLACE INTO freed_name VALUES (?1, ?2)", params![name.as_str(), uid])
        .map(drop)
}

/// A device has this name now, or any user may use it.
pub(super) fn taken(t: &Transaction<'_>, name: &Name) -> rusqlite::Result<()> {
    t.execute("DELETE FROM freed_name WHERE name = ?1", params![name.as_str()]).map(drop)
}

/// Whether a key that was not revoked has this name.
pub(super) fn is_of_key(t: &Transaction<'_>, name: &Name) -> rusqlite::Result<bool> {
    t.prepare_cached("SELECT 1 FROM api_key WHERE name = ?1 AND revoked IS NULL")?
        .exists([name.as_str()])
}

/// Whether a key has or had this id.
pub(super) fn is_id_of_key(t: &Transaction<'_>, id: DeviceId) -> rusqlite::Result<bool> {
    t.prepare_cached("SELECT 1 FROM api_key WHERE id = ?1")?.exists([id.to_string()])
}

fn freed(t: &Transaction<'_>, name: &Name) -> rusqlite::Result<Option<FreedName>> {
    let mut query = t.prepare_cached("SELECT uid FROM freed_name WHERE name = ?1")?;
    query.query_row([name.as_str()], |row| Ok(FreedName { uid: row.get(0)? })).optional()
}

fn invited(t: &Transaction<'_>, name: &Name, now: i64) -> rusqlite::Result<bool> {
    t.prepare_cached(
        "SELECT 1 FROM invitation WHERE device_name = ?1 AND device IS NULL AND expires > ?2",
    )?
    .exists(params![name.as_str(), now])
}

#[cfg(test)]
mod tests {
    use proto::identity::KeyHash;

    use super::*;

    const ALICE: User = User { uid: 1000, is_owner: false };
    const BOB: User = User { uid: 1001, is_owner: false };
    const OWNER: User = User { uid: 0, is_owner: true };

    #[test]
    fn a_name_is_reserved_for_the_user_who_had_it() {
        let name: Name = "alice-laptop".parse().expect("a name");
        let device = |revoked| Device {
            ca: 1,
            key_storage: proto::device_key::KeyStorage::File,
            id: DeviceId::generate(),
            name: name.clone(),
            key: KeyHash([1; 32]),
            enrolled: 1,
            not_after: 2,
            revoked,
            reason: None,
            held: None,
            seen: None,
            role: crate::state::register::default_role(),
            models: None,
            uid: Some(ALICE.uid),
            user: None,
            sign_in: None,
        };
        let (enrolled, revoked) = (device(None), device(Some(1)));
        let of = |uid| Some(FreedName { uid });
        let table = [
            (None, None, false, [true, true, true]),
            (None, None, true, [false, false, true]),
            (None, of(Some(1000)), false, [true, false, false]),
            (None, of(None), false, [false, false, true]),
            (Some(&enrolled), None, false, [false; 3]),
            (Some(&revoked), None, false, [false; 3]),
            (Some(&revoked), of(Some(1000)), false, [false; 3]),
        ];
        for (device, freed, is_invited, expected) in table {
            let may = [ALICE, BOB, OWNER]
                .map(|user| judge(&name, user, device, freed, is_invited).is_ok());
            assert_eq!(may, expected, "{device:?} {freed:?} {is_invited}");
        }
    }
}
