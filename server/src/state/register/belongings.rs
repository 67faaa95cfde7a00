//! The people to whom devices and keys belong. A user exists as soon as a device, a key or an
//! invitation names it. A device or key without one counts as a user of its own.

use std::collections::BTreeMap;

use proto::{
    identity::{Name, UserName},
    wire::Reason,
};
use rusqlite::params;

use super::{
    Device, Invited, Key, Register, RegisterError,
    devices::all_devices,
    epoch,
    invitations::open_invitations,
    keys::all_keys,
    shared_knock,
    user_errors::UserError,
    users::{UserRow, revoked, rows},
};

/// A user and what belongs to it.
#[derive(Debug, Clone)]
pub(crate) struct KnownUser {
    pub name: UserName,
    /// The role that devices get which this user enrolls over SSH; `None` for the default role.
    pub role: Option<Name>,
    /// When it was revoked, in Unix time.
    pub revoked: Option<i64>,
    /// Why it was revoked, in the owner's words.
    pub reason: Option<Reason>,
    /// The revoked ones too.
    pub devices: Vec<Device>,
    /// The revoked ones too.
    pub keys: Vec<Key>,
    /// Those that are open.
    pub invitations: Vec<Invited>,
}

impl Register {
    /// All users, by name. `now` is Unix time.
    pub(crate) fn users(&self, now: i64) -> Result<Vec<KnownUser>, RegisterError> {
        self.read(|t| {
            let mut users = BTreeMap::new();
            for UserRow { name, role, revoked, reason } in rows(t)? {
                let user = known(&mut users, &name);
                (user.role, user.revoked, user.reason) = (role, revoked, reason);
            }
            for device in all_devices(t)? {
                if let Some(user) = device.user.clone() {
                    known(&mut users, &user).devices.push(device);
                }
            }
            for key in all_keys(t)? {
                if let Some(user) = key.user.clone() {
                    known(&mut users, &user).keys.push(key);
                }
            }
            for invited in open_invitations(t, now)? {
                if let Some(user) = invited.user.clone() {
                    known(&mut users, &user).invitations.push(invited);
                }
            }
            Ok(users.into_values().collect())
        })
    }

    /// The user of this name. `now` is Unix time.
    ///
    /// # Errors
    /// [`UserError::Unknown`] if no device, key or invitation names it.
    pub(crate) fn find_user(&self, name: &str, now: i64) -> Result<KnownUser, UserError> {
        let users = self.users(now)?;
        match users.iter().find(|user| user.name.as_str() == name) {
            Some(user) => Ok(user.clone()),
            None => Err(UserError::Unknown {
                text: name.to_owned(),
                known: users.into_iter().map(|user| user.name).collect(),
            }),
        }
    }

    /// Checks that something new may belong to this user.
    ///
    /// # Errors
    /// [`UserError::Revoked`].
    pub(crate) fn must_not_be_revoked(&self, user: &UserName) -> Result<(), UserError> {
        let revoked = self.read(revoked)?;
        revoked.of(Some(user)).map_or(Ok(()), |found| {
            Err(UserError::Revoked { user: user.clone(), reason: found.reason.clone() })
        })
    }

    /// Ends the access of a user: of all devices and keys, and of those that would be made later.
    /// Its invitations end for ever, its devices and keys until [`Register::restore_user`].
    pub(crate) fn revoke_user(
        &self,
        user: &UserName,
        reason: Option<&Reason>,
        now: i64,
    ) -> Result<(), RegisterError> {
        self.change(|t| {
            let devices = all_devices(t)?;
            for device in devices.iter().filter(|device| device.user.as_ref() == Some(user)) {
                t.execute("DELETE FROM invitation WHERE device = ?1", [device.id.to_string()])?;
                shared_knock::revoked(t, device.id)?;
            }
            t.execute("DELETE FROM invitation WHERE user = ?1", [user.as_str()])?;
            epoch::advance(t)?;
            t.execute(
                "INSERT INTO user (name, revoked, reason) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET revoked = ?2, reason = ?3",
                params![user.as_str(), now, reason.map(ToString::to_string)],
            )
        })
        .map(drop)?;
        self.remember();
        Ok(())
    }

    /// Lets a revoked user in again, with all devices and keys that were not revoked themselves.
    pub(crate) fn restore_user(&self, user: &UserName) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE user SET revoked = NULL, reason = NULL WHERE name = ?1",
                [user.as_str()],
            )
        })
        .map(drop)
    }

    /// Gives all devices and keys of a user this role, and the devices that it enrolls over SSH later.
    pub(crate) fn set_user_role(&self, user: &UserName, role: &Name) -> Result<(), RegisterError> {
        self.change(|t| {
            let change = params![user.as_str(), role.as_str()];
            t.execute("UPDATE device SET role = ?2 WHERE user = ?1", change)?;
            t.execute("UPDATE api_key SET role = ?2 WHERE user = ?1", change)?;
            t.execute(
                "INSERT INTO user (name, role) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET role = ?2",
                change,
            )
        })
        .map(drop)
    }
}

fn known<'u>(users: &'u mut BTreeMap<UserName, KnownUser>, name: &UserName) -> &'u mut KnownUser {
    users.entry(name.clone()).or_insert_with(|| KnownUser::new(name.clone()))
}

impl KnownUser {
    /// A user to whom nothing belongs.
    pub(crate) fn new(name: UserName) -> Self {
        Self {
            name,
            role: None,
            revoked: None,
            reason: None,
            devices: Vec::new(),
            keys: Vec::new(),
            invitations: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::{
        api_key::ApiKey,
        identity::KeyHash,
        invitation::Secret,
        wire::{Code, Revocation},
    };

    use super::*;
    use crate::state::register::{DeviceError, KeyError, NewKey, User, default_role};

    fn user(name: &str) -> UserName {
        name.parse().expect("a user")
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    const ALICE: User = User { uid: 1000, is_owner: false };

    /// A register in which Alice has a laptop (enrolled over SSH), a phone (by a code) and a key, and
    /// `desk` belongs to nobody.
    fn filled() -> (tempfile::TempDir, Register, ApiKey) {
        let tmp = tempfile::tempdir().expect("tempdir");
        let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
        let alice = user("alice");
        let enroll = |device: &str, owner: Option<&UserName>, login, key| {
            register.enroll(&name(device), login, owner, KeyHash([key; 32]), 200, 1)
        };
        enroll("laptop", Some(&alice), ALICE, 1).expect("enrolled");
        enroll("desk", None, User { uid: 0, is_owner: true }, 3).expect("enrolled");
        let secret = Secret::generate();
        register
            .invite(&name("phone"), &default_role(), Some(&alice), &secret, 100, 1)
            .expect("invited");
        let phone = register.redeem(&*secret.token(), KeyHash([2; 32]), 200, 1).expect("read");
        assert_eq!(phone.expect("redeemed").user, Some(alice.clone()));
        let key = ApiKey::generate();
        register.create_key(&new_key("ci", Some(alice)), &key, 1).expect("made");
        (tmp, register, key)
    }

    fn new_key(text: &str, user: Option<UserName>) -> NewKey {
        NewKey { name: name(text), role: default_role(), models: None, user, expires: None }
    }

    #[test]
    fn a_user_has_the_devices_and_keys_that_name_it() {
        let (_tmp, register, _) = filled();
        let alice = register.find_user("alice", 1).expect("known");
        let devices: Vec<_> = alice.devices.iter().map(|device| device.name.as_str()).collect();
        let keys: Vec<_> = alice.keys.iter().map(|key| key.name.as_str()).collect();
        assert_eq!((devices, keys), (vec!["laptop", "phone"], vec!["ci"]));
        let unknown = register.find_user("alcie", 1).err();
        assert!(
            matches!(&unknown, Some(UserError::Unknown { known, .. }) if *known == [user("alice")])
        );
        let desk = register.find("desk").expect("there");
        register.set_user(desk.id, Some(&user("bob"))).expect("set");
        assert_eq!(register.find_user("bob", 1).expect("known").devices.len(), 1);
    }

    #[test]
    fn a_revoked_user_has_no_access_and_gets_none_until_it_is_restored() {
        let (_tmp, register, key) = filled();
        let (alice, secret) = (user("alice"), Secret::generate());
        register
            .invite(&name("tablet"), &default_role(), Some(&alice), &secret, 100, 1)
            .expect("invited");
        let before = register.history().expect("read").epoch;
        let reason: Reason = "left".parse().expect("a reason");
        register.revoke_user(&alice, Some(&reason), 5).expect("revoked");
        let snapshot = register.snapshot().expect("read");
        assert_eq!(register.history().expect("read").epoch, before.next());
        for device in register.find_user("alice", 5).expect("known").devices {
            assert_eq!(snapshot.judge(device.id, device.key).err(), Some(Code::Revoked));
            let revocation = Revocation { user: Some(alice.clone()), reason: Some(reason.clone()) };
            assert_eq!(snapshot.revocation(device.id, device.key), Some(revocation));
            assert_eq!(snapshot.key(device.id), None, "its knocks are not answered");
        }
        let desk = register.find("desk").expect("there");
        assert!(snapshot.admits(desk.id, desk.key).is_some(), "it is not hers");
        let (ci, _) = snapshot.key_of(&key, 5).expect("found");
        assert!(snapshot.revoked_user(ci.user.as_ref()).is_some());
        // Nothing new, by whatever way.
        let redeemed = register.redeem(&*secret.token(), KeyHash([4; 32]), 200, 5).expect("read");
        assert!(redeemed.is_err(), "{redeemed:?}");
        let invited = register.invite(&name("new"), &default_role(), Some(&alice), &secret, 100, 5);
        assert!(matches!(invited, Err(DeviceError::UserRevoked(_))), "{invited:?}");
        let made =
            register.create_key(&new_key("new", Some(alice.clone())), &ApiKey::generate(), 5);
        assert!(matches!(made, Err(KeyError::UserRevoked(_))), "{made:?}");
        // Over SSH: by her name, and by her login under another name.
        for (login, by) in
            [(ALICE, &alice), (ALICE, &user("alice2")), (User { uid: 0, is_owner: true }, &alice)]
        {
            let enrolled = register.enroll(&name("new"), login, Some(by), KeyHash([5; 32]), 200, 5);
            assert!(matches!(enrolled, Err(DeviceError::UserRevoked(_))), "{login:?} {by}");
        }
        let bob = User { uid: 1001, is_owner: false };
        register
            .enroll(&name("bobs"), bob, Some(&user("bob")), KeyHash([6; 32]), 200, 5)
            .expect("he is not revoked");
        // What was revoked by itself stays so.
        let phone = register.find("phone").expect("there");
        register.revoke(phone.id, None, 6).expect("revoked");
        register.restore_user(&alice).expect("restored");
        let snapshot = register.snapshot().expect("read");
        let laptop = register.find("laptop").expect("there");
        assert!(snapshot.admits(laptop.id, laptop.key).is_some());
        assert!(snapshot.admits(phone.id, phone.key).is_none());
        assert!(snapshot.revoked_user(Some(&alice)).is_none());
    }

    #[test]
    fn the_role_of_a_user_is_that_of_what_it_has_and_of_what_it_enrolls_later() {
        let (_tmp, register, _) = filled();
        let (alice, role) = (user("alice"), name("models"));
        register.set_user_role(&alice, &role).expect("set");
        let known = register.find_user("alice", 1).expect("known");
        assert!(known.devices.iter().all(|device| device.role == role));
        assert!(known.keys.iter().all(|key| key.role == role));
        let later = register.enroll(&name("new"), ALICE, Some(&alice), KeyHash([7; 32]), 200, 1);
        assert_eq!(later.expect("enrolled").role, role);
        assert_eq!(register.find("desk").expect("there").role, default_role());
    }
}
