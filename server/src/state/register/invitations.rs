//! The invitations in the register: each enrolls one device, or opens sign-ins for many.

use proto::{
    crypto::sha256,
    identity::{KeyHash, Name, UserName},
    invitation::Secret,
    rotation::{CaNumber, CaState},
    wire::EnrollRefusal,
};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::Serialize;

use super::{
    Device, DeviceError, Register, RegisterError, cas,
    devices::{NewDevice, all_devices, insert_device, refuse_like_id},
    names, parsed, users,
};

/// How many invitations may be open at once. As many used ones are kept until they expire, so that
/// a device that did not get its answer can ask again.
pub(crate) const MOST_INVITATIONS: i64 = 64;

/// An invitation that is not used yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Invited {
    /// The name of the device.
    pub name: Name,
    /// The role of the device.
    pub role: Name,
    /// The person to whom the device will belong, or null.
    pub user: Option<UserName>,
    /// Whether its code opens sign-ins, for any number of devices. The name is the code's own then.
    pub sso: bool,
    /// When it expires, in Unix time.
    pub expires: i64,
}

impl Register {
    /// Makes an invitation. An older one for the same name is withdrawn; returns whether there was
    /// one. `ca` is the CA that the code names: another process may have put a newer one in force
    /// since.
    ///
    /// # Errors
    /// The name is taken, the person is revoked, too many invitations are open, or that CA has
    /// ended.
    pub(crate) fn add_invitation(
        &self,
        invited: &Invited,
        secret: &Secret,
        ca: CaNumber,
        now: i64,
    ) -> Result<bool, DeviceError> {
        let Invited { name, role, user, sso, expires } = invited;
        let user = user.as_ref();
        refuse_like_id(name)?;
        let taken = self.devices()?.into_iter().find(|device| device.name == *name);
        match taken {
            Some(device) if device.revoked.is_some() => {
                return Err(DeviceError::NameOfRevoked(device.name));
            }
            Some(device) => return Err(DeviceError::NameTaken(device.name)),
            None if self.read(|t| names::is_of_key(t, name))? => {
                return Err(DeviceError::NameOfKey(name.clone()));
            }
            None => {}
        }
        self.change(|t| {
            if let Some(revoked) = users::refuses(t, user, None)? {
                return Ok(Err(DeviceError::UserRevoked(revoked)));
            }
            if !matches!(cas::read(t)?.state(ca), Some(CaState::Current | CaState::Old)) {
                return Ok(Err(DeviceError::CaEnded));
            }
            t.execute("DELETE FROM invitation WHERE expires <= ?1", params![now])?;
            let withdrawn =
                t.execute("DELETE FROM invitation WHERE device_name = ?1 AND device IS NULL", params![name.as_str()])?;
            let open: i64 = t.query_row(
                "SELECT count(*) FROM invitation WHERE device IS NULL",
                [],
                |row| row.get(0),
            )?;
            if open >= MOST_INVITATIONS {
                return Ok(Err(DeviceError::TooManyInvitations));
            }
            // First packets are checked against these, too: the oldest are deleted.
            t.execute(
                "DELETE FROM invitation WHERE device IS NOT NULL AND rowid NOT IN
                 (SELECT rowid FROM invitation WHERE device IS NOT NULL ORDER BY rowid DESC LIMIT ?1)",
                params![MOST_INVITATIONS],
            )?;
            t.execute(
                "INSERT INTO invitation (token, door_key, device_name, expires, role, user, sso, ca) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![sha256(&*secret.token()), secret.knock_key().as_bytes(), name.as_str(), expires, role.as_str(), user.map(UserName::as_str), sso, ca],
            )?;
            Ok(Ok(withdrawn > 0))
        })?
    }

    /// The open invitations, by name.
    pub(crate) fn invitations(&self, now: i64) -> Result<Vec<Invited>, RegisterError> {
        self.read(|t| open_invitations(t, now))
    }

    /// Withdraws the open invitation for a device of this name; returns whether there was one.
    pub(crate) fn withdraw(&self, name: &str, now: i64) -> Result<bool, RegisterError> {
        let withdrawn = self.change(|t| {
            t.execute(
                "DELETE FROM invitation WHERE device_name = ?1 AND device IS NULL AND expires > ?2",
                params![name, now],
            )
        })?;
        Ok(withdrawn > 0)
    }

    /// An invitation that is not expired, by its token.
    pub(crate) fn invited(&self, token: &[u8], now: i64) -> Result<Option<Invited>, RegisterError> {
        self.read(|t| {
            let mut query = t.prepare_cached(
                "SELECT device_name, COALESCE((SELECT role FROM device WHERE device.id = invitation.device), role), expires, user, sso FROM invitation WHERE token = ?1 AND expires > ?2",
            )?;
            query
                .query_row(params![sha256(token), now], invited)
                .optional()
        })
    }

    /// Redeems an invitation for `key`: adds the device, or returns the one that the same key has
    /// added with it before.
    ///
    /// If several keys redeem one invitation at once, exactly one succeeds.
    pub(crate) fn redeem(
        &self,
        token: &[u8],
        key: KeyHash,
        not_after: i64,
        now: i64,
    ) -> Result<Result<Device, EnrollRefusal>, RegisterError> {
        self.change(|t| {
            let token = sha256(token);
            let found = t
                .query_row(
                    "SELECT device_name, role, device, key, user, sso FROM invitation WHERE token = ?1 AND expires > ?2",
                    params![token, now],
                    |row| {
                        Ok((
                            row.get::<_, String>(0)?,
                            row.get::<_, String>(1)?,
                            row.get::<_, Option<String>>(2)?,
                            row.get::<_, Option<[u8; 32]>>(3)?,
                            row.get::<_, Option<String>>(4)?,
                            row.get::<_, bool>(5)?,
                        ))
                    },
                )
                .optional()?;
            let Some((name, role, device, used_by, user, sso)) = found else {
                return Ok(Err(EnrollRefusal::Closed));
            };
            if sso {
                return Ok(Err(EnrollRefusal::SignIn));
            }
            if let Some(device) = device {
                let same_key = used_by == Some(key.0);
                let again = if same_key {
                    all_devices(t)?.into_iter().find(|d| d.id.to_string() == device && d.revoked.is_none())
                } else {
                    None
                };
                return Ok(again.ok_or(EnrollRefusal::Used));
            }
            let name: Name = parsed(name)?;
            if name.looks_like_id() {
                // The invitation was made by an older version.
                return Ok(Err(EnrollRefusal::Closed));
            }
            if all_devices(t)?.iter().any(|device| device.name == name) || names::is_of_key(t, &name)? {
                return Ok(Err(EnrollRefusal::Closed));
            }
            let user: Option<UserName> = user.map(parsed).transpose()?;
            if users::refuses(t, user.as_ref(), None)?.is_some() {
                return Ok(Err(EnrollRefusal::Closed));
            }
            let new =
                NewDevice { name: &name, role: &parsed(role)?, uid: None, user: user.as_ref() };
            let device = insert_device(t, new, key, not_after, now)?;
            t.execute(
                "UPDATE invitation SET device = ?2, key = ?3 WHERE token = ?1",
                params![token, device.id.to_string(), key.0],
            )?;
            Ok(Ok(device))
        })
    }
}

pub(super) fn open_invitations(t: &Transaction<'_>, now: i64) -> rusqlite::Result<Vec<Invited>> {
    let mut query = t.prepare_cached(
        "SELECT device_name, role, expires, user, sso FROM invitation WHERE device IS NULL AND expires > ?1 ORDER BY device_name",
    )?;
    query.query_map([now], invited)?.collect()
}

fn invited(row: &Row<'_>) -> rusqlite::Result<Invited> {
    Ok(Invited {
        name: parsed(row.get(0)?)?,
        role: parsed(row.get(1)?)?,
        expires: row.get(2)?,
        user: row.get::<_, Option<String>>(3)?.map(parsed).transpose()?,
        sso: row.get(4)?,
    })
}

#[cfg(test)]
impl Register {
    /// [`Register::add_invitation`] for a device, with a code of the newest CA.
    pub(crate) fn invite(
        &self,
        name: &Name,
        role: &Name,
        user: Option<&UserName>,
        secret: &Secret,
        expires: i64,
        now: i64,
    ) -> Result<bool, DeviceError> {
        let (name, role, user) = (name.clone(), role.clone(), user.cloned());
        let invited = Invited { name, role, user, sso: false, expires };
        self.add_invitation(&invited, secret, self.cas()?.current().number, now)
    }

    /// [`Register::add_invitation`] for a code that opens sign-ins.
    pub(crate) fn invite_sign_in(
        &self,
        name: &Name,
        secret: &Secret,
        expires: i64,
        now: i64,
    ) -> Result<bool, DeviceError> {
        let (name, role) = (name.clone(), super::default_role());
        let invited = Invited { name, role, user: None, sso: true, expires };
        self.add_invitation(&invited, secret, self.cas()?.current().number, now)
    }
}
