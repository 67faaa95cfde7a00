//! A register that was restored from a backup, or put back by hand: which of its devices are held
//! back until the owner confirms them.

use common::machine::{files, process::unix_now};
use proto::{
    epoch::{Epoch, Memory, Standing},
    identity::{DeviceId, UserName},
};
use rusqlite::{Transaction, params};
use tracing::warn;

use super::{
    Device, Register, RegisterError,
    devices::all_devices,
    epoch::{self, EPOCH, LOST, RESTORED_FROM, set},
    keys::{Key, all_keys},
    users,
};

/// A register that is there while another is restored over it.
pub(crate) struct Replaced {
    epoch: Epoch,
    devices: Vec<Device>,
    keys: Vec<Key>,
    users: Vec<users::UserRow>,
}

impl Replaced {
    /// What this register knows.
    pub(crate) fn of(register: &Register) -> Result<Self, RegisterError> {
        Ok(Self {
            epoch: register.history()?.epoch,
            devices: register.devices()?,
            users: register.user_rows()?,
            keys: register.keys()?,
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
            end_keys(t, &[], now)?;
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

    /// Lets devices in that are held back: this one, or all of them. Returns those that were. All of
    /// them are let in, or none is.
    pub(crate) fn confirm(&self, only: Option<DeviceId>) -> Result<Vec<Device>, RegisterError> {
        self.change(|t| {
            let mut devices = all_devices(t)?;
            devices.retain(|device| {
                device.standing() == Standing::Held && only.is_none_or(|id| id == device.id)
            });
            for device in &mut devices {
                t.execute("UPDATE device SET held = NULL WHERE id = ?1", [device.id.to_string()])?;
                device.held = None;
            }
            Ok(devices)
        })
    }

    /// Makes this register, which comes from a backup, the successor of the one that it replaces, or
    /// of an unknown one: each device stands as `proto::epoch::standing` says.
    /// Keys for programs are secrets that cannot be held back: what the other register does not know
    /// of them ends.
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
            end_keys(t, successor.map(|replaced| &*replaced.keys).unwrap_or_default(), now)?;
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
        let lost = match remembered {
            None => None,
            Some(remembered) => match self.history()?.epoch.compare(remembered) {
                Memory::Agrees => None,
                Memory::Lost(lost) => Some(lost),
                Memory::OtherLine => Some(0),
            },
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

/// Ends the secrets of keys that are not among those of `known`. The others end when those end, and
/// belong to whom those belong.
fn end_keys(t: &Transaction<'_>, known: &[Key], now: i64) -> rusqlite::Result<()> {
    for key in all_keys(t)? {
        let known = known.iter().find(|other| other.id == key.id);
        for secret in &key.secrets {
            let prefix = secret.prefix.as_str();
            match known.and_then(|known| known.secret(&secret.prefix)) {
                Some(known) if known.hash == secret.hash => {
                    let end = [known.expires, secret.expires].into_iter().flatten().min();
                    t.execute(
                        "UPDATE api_secret SET expires = ?2 WHERE prefix = ?1",
                        params![prefix, end],
                    )?;
                }
                _ => {
                    t.execute("DELETE FROM api_secret WHERE prefix = ?1", [prefix])?;
                }
            }
        }
        let user = known.map_or(&key.user, |known| &known.user);
        t.execute(
            "UPDATE api_key SET user = ?2 WHERE id = ?1",
            params![key.id.to_string(), user.as_ref().map(UserName::as_str)],
        )?;
    }
    t.execute(
        "UPDATE api_key SET revoked = ?1 WHERE revoked IS NULL
         AND id NOT IN (SELECT key FROM api_secret)",
        [now],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use proto::{api_key::ApiKey, identity::Name};

    use super::*;
    use crate::state::register::{KeyHash, User, default_role, keys::NewKey};

    fn opened(dir: &std::path::Path, name: &str) -> Register {
        let dir = dir.join(name);
        files::create_dir(&dir).expect("made");
        Register::open(&dir.join(Register::FILE)).expect("opened")
    }

    fn made(register: &Register, name: &str, user: &str) -> (DeviceId, ApiKey) {
        let new = NewKey {
            name: name.parse::<Name>().expect("a name"),
            role: default_role(),
            models: None,
            user: Some(user.parse().expect("a user")),
            expires: None,
        };
        let secret = ApiKey::generate();
        (register.create_key(&new, &secret, 1).expect("made").id, secret)
    }

    #[test]
    fn all_devices_that_are_held_back_are_confirmed_or_none_is() {
        let tmp = tempfile::tempdir().expect("a directory");
        let register = opened(tmp.path(), "now");
        let user = User { uid: 1000, is_owner: false };
        for (number, name) in ["desk", "laptop", "tablet"].into_iter().enumerate() {
            let (name, key) = (name.parse().expect("a name"), KeyHash([number as u8; 32]));
            register.enroll(&name, user, None, key, 200, 1).expect("enrolled");
        }
        register.hold_all(0).expect("held back");
        let held = || {
            let mut devices = register.devices().expect("read");
            devices.retain(|device| device.standing() == Standing::Held);
            devices.iter().map(|device| device.name.to_string()).collect::<Vec<_>>()
        };
        register
            .change(|t| {
                t.execute_batch(
                    "CREATE TRIGGER broken BEFORE UPDATE ON device WHEN NEW.name = 'laptop'
                     BEGIN SELECT RAISE(ABORT, 'broken'); END",
                )
            })
            .expect("made");
        assert!(register.confirm(None).is_err());
        assert_eq!(held(), ["desk", "laptop", "tablet"], "nothing is half done");
        register.change(|t| t.execute_batch("DROP TRIGGER broken")).expect("dropped");
        let desk = register.find("desk").expect("there").id;
        let names = |devices: Vec<Device>| {
            devices.iter().map(|device| device.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(register.confirm(Some(desk)).expect("confirmed")), ["desk"]);
        assert_eq!(names(register.confirm(None).expect("confirmed")), ["laptop", "tablet"]);
        assert!(register.confirm(None).expect("confirmed").is_empty() && held().is_empty());
    }

    #[test]
    fn what_became_of_keys_and_users_after_a_backup_is_kept_when_it_is_restored_over_a_register() {
        let tmp = tempfile::tempdir().expect("a directory");
        let register = opened(tmp.path(), "now");
        let (_, kept) = made(&register, "kept", "alice");
        let (revoked, stolen) = made(&register, "stolen", "alice");
        let (rotated, old) = made(&register, "rotated", "alice");
        let (given, of_other) = made(&register, "given", "alice");
        let (_, of_bob) = made(&register, "bobs", "bob");
        let copy = tmp.path().join("then");
        files::create_dir(&copy).expect("made");
        register.copy_to(&copy.join(Register::FILE)).expect("copied");
        register.revoke_key(revoked, 5).expect("revoked");
        let new = ApiKey::generate();
        register.rotate_key(rotated, &new, None, 50, 5).expect("rotated");
        register.set_key_user(given, Some(&"carol".parse().expect("a user"))).expect("set");
        for user in ["bob", "carol"] {
            let user: UserName = user.parse().expect("a user");
            register.revoke_user(&user, None, 5).expect("revoked");
        }
        let then = Register::open(&copy.join(Register::FILE)).expect("opened");
        let replaced = Replaced::of(&register).expect("read");
        then.succeed(Some(&replaced)).expect("put in its place");
        let snapshot = then.snapshot().expect("read");
        let works = |secret, now| {
            let found = snapshot.key_of(secret, now);
            found.is_some_and(|(key, _)| snapshot.revoked_user(key.user.as_ref()).is_none())
        };
        assert!(works(&kept, 1000));
        assert!(works(&old, 49) && !works(&old, 50), "it ends with the overlap");
        for ended in [&stolen, &new, &of_other, &of_bob] {
            assert!(!works(ended, 6));
        }
        // Without a register that knows what has become of them, all keys end.
        let (_, another) = made(&then, "another", "alice");
        then.succeed(None).expect("of an unknown one");
        let snapshot = then.snapshot().expect("read");
        for secret in [&kept, &old, &another] {
            assert!(snapshot.key_of(secret, 6).is_none());
        }
        let bob = "bob".parse().expect("a user");
        assert!(snapshot.revoked_user(Some(&bob)).is_some(), "what the backup knows stays");
        assert!(then.keys().expect("read").iter().all(|key| key.revoked.is_some()));
    }
}
