//! The keys of applications that cannot run `adit`: made, found, changed, rotated and revoked. Of
//! each secret the register has the hash alone.

use std::collections::HashMap;

use proto::{
    api_key::{ApiKey, ApiKeyHash, KeyPrefix},
    identity::{DeviceId, Name, UserName},
    ollama::model::ModelPattern,
};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{
    Register, RegisterError,
    devices::{all_devices, models, refuse_like_id},
    epoch,
    key_errors::KeyError,
    names, parsed, users,
};
use crate::audit::entry::Subject;

/// The change to format 6.
pub(super) const CHANGE: &str = "
    CREATE TABLE api_key (
        id          TEXT PRIMARY KEY,
        name        TEXT NOT NULL UNIQUE,
        role        TEXT NOT NULL,
        models      TEXT,
        user        TEXT,
        created     INTEGER NOT NULL,
        revoked     INTEGER,
        seen        INTEGER
    ) STRICT;
    CREATE TABLE api_secret (
        prefix      TEXT PRIMARY KEY,
        hash        BLOB NOT NULL,
        key         TEXT NOT NULL,
        created     INTEGER NOT NULL,
        expires     INTEGER
    ) STRICT;
";

/// A key as the register knows it. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Unique among devices and keys; never changes and is never used again.
    pub id: DeviceId,
    /// Unique among devices and keys.
    pub name: Name,
    pub role: Name,
    /// The only models that it may use, in addition to its role's restrictions; `None` for no such
    /// list.
    pub models: Option<Vec<ModelPattern>>,
    /// The person to whom it belongs, if that was said.
    pub user: Option<UserName>,
    pub created: i64,
    pub revoked: Option<i64>,
    /// When it was last used, to within some minutes.
    pub seen: Option<i64>,
    /// Its secrets, the newest first: more than one for a while after it was rotated, none when it
    /// was revoked.
    pub secrets: Vec<KeySecret>,
}

/// One secret of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySecret {
    pub prefix: KeyPrefix,
    pub hash: ApiKeyHash,
    /// In Unix time.
    pub created: i64,
    /// When it ends, in Unix time; `None` for never.
    pub expires: Option<i64>,
}

impl KeySecret {
    /// Whether it is valid at `now`, in Unix time.
    pub fn is_valid(&self, now: i64) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

impl Key {
    /// Its secret with this prefix.
    pub(super) fn secret(&self, prefix: &KeyPrefix) -> Option<&KeySecret> {
        self.secrets.iter().find(|secret| secret.prefix == *prefix)
    }

    /// The key, as the audit log names it.
    pub fn subject(&self) -> Subject {
        Subject {
            device: self.name.clone(),
            device_id: self.id,
            device_uid: None,
            is_key: true,
            is_token: false,
            user: self.user.clone(),
            enrolled: None,
        }
    }
}

/// What a new key may do.
#[derive(Debug, Clone)]
pub(crate) struct NewKey {
    pub name: Name,
    pub role: Name,
    pub models: Option<Vec<ModelPattern>>,
    pub user: Option<UserName>,
    /// When its first secret ends, in Unix time; `None` for never.
    pub expires: Option<i64>,
}

/// The keys in memory.
#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: HashMap<DeviceId, Key>,
    /// The keys by the prefixes of their secrets.
    prefixes: HashMap<KeyPrefix, DeviceId>,
}

impl Keys {
    /// The key with this secret, and that secret, if it is valid at `now`.
    pub(super) fn find(&self, sent: &ApiKey, now: i64) -> Option<(&Key, &KeySecret)> {
        // A prefix is no secret, so that a map may be asked for it; the hash of the whole is
        // compared in constant time.
        let prefix = sent.prefix();
        let key = self.keys.get(self.prefixes.get(&prefix)?)?;
        let secret = key.secret(&prefix)?;
        (secret.hash == sent.hash() && secret.is_valid(now)).then_some((key, secret))
    }

    /// The key with this id, if its secret with this prefix was neither revoked nor replaced.
    pub(super) fn admits(&self, id: DeviceId, prefix: &KeyPrefix) -> Option<&Key> {
        let key = self.keys.get(&id).filter(|key| key.revoked.is_none())?;
        key.secret(prefix).map(|_| key)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }
}

impl Register {
    /// All keys, by name.
    pub(crate) fn keys(&self) -> Result<Vec<Key>, RegisterError> {
        self.read(all_keys)
    }

    /// The key with this id or name.
    ///
    /// # Errors
    /// [`KeyError::Unknown`].
    pub(crate) fn find_key(&self, id_or_name: &str) -> Result<Key, KeyError> {
        let keys = self.keys()?;
        let by_id = id_or_name.parse().ok().and_then(|id| keys.iter().find(|key| key.id == id));
        let found = by_id.or_else(|| keys.iter().find(|key| key.name.as_str() == id_or_name));
        found.cloned().ok_or_else(|| KeyError::Unknown {
            text: id_or_name.to_owned(),
            known: keys.iter().map(|key| key.name.clone()).collect(),
        })
    }

    /// Adds a key with this secret. It takes the place of a revoked key of the same name.
    ///
    /// # Errors
    /// The name is that of a device, of another key, or of an open invitation; or its user is revoked.
    pub(crate) fn create_key(
        &self,
        new: &NewKey,
        secret: &ApiKey,
        now: i64,
    ) -> Result<Key, KeyError> {
        refuse_like_id(&new.name).map_err(|_| KeyError::LooksLikeId(new.name.clone()))?;
        self.change(|t| {
            if let Some(revoked) = users::refuses(t, new.user.as_ref(), None)? {
                return Ok(Err(KeyError::UserRevoked(revoked)));
            }
            if let Some(why) = taken(t, &new.name, now)? {
                return Ok(Err(why));
            }
            t.execute("DELETE FROM api_key WHERE name = ?1", [new.name.as_str()])?;
            let id = unused_id(t)?;
            t.execute(
                "INSERT INTO api_key (id, name, role, models, user, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    id.to_string(),
                    new.name.as_str(),
                    new.role.as_str(),
                    new.models.as_deref().map(listed),
                    new.user.as_ref().map(UserName::as_str),
                    now
                ],
            )?;
            insert_secret(t, id, secret, new.expires, now)?;
            Ok(all_keys(t)?.into_iter().find(|key| key.id == id).ok_or(KeyError::Gone))
        })?
    }

    /// Gives a key another secret. Its other secrets end at `overlap`, in Unix time, if they do not
    /// end before. Returns the key as it is now.
    ///
    /// # Errors
    /// The key was revoked.
    pub(crate) fn rotate_key(
        &self,
        id: DeviceId,
        secret: &ApiKey,
        expires: Option<i64>,
        overlap: i64,
        now: i64,
    ) -> Result<Key, KeyError> {
        self.change(|t| {
            t.execute(
                "UPDATE api_secret SET expires = ?2 WHERE key = ?1 AND (expires IS NULL OR expires > ?2)",
                params![id.to_string(), overlap],
            )?;
            t.execute("DELETE FROM api_secret WHERE key = ?1 AND expires <= ?2", params![id.to_string(), now])?;
            insert_secret(t, id, secret, expires, now)?;
            // The end of the older secrets is a revocation: an older register must not take it back.
            epoch::advance(t)?;
            let found = all_keys(t)?.into_iter().find(|key| key.id == id && key.revoked.is_none());
            Ok(found.ok_or(KeyError::Gone))
        })?
        .inspect(|_| self.remember())
    }

    /// Ends a key: all of its secrets are deleted.
    pub(crate) fn revoke_key(&self, id: DeviceId, now: i64) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute("DELETE FROM api_secret WHERE key = ?1", [id.to_string()])?;
            epoch::advance(t)?;
            t.execute(
                "UPDATE api_key SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL",
                params![id.to_string(), now],
            )
        })
        .map(drop)?;
        self.remember();
        Ok(())
    }

    /// Says to which person a key belongs; `None` makes it a user of its own.
    pub(crate) fn set_key_user(
        &self,
        id: DeviceId,
        user: Option<&UserName>,
    ) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE api_key SET user = ?2 WHERE id = ?1",
                params![id.to_string(), user.map(UserName::as_str)],
            )
        })
        .map(drop)
    }

    /// Changes the role of a key.
    pub(crate) fn set_key_role(&self, id: DeviceId, role: &Name) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute(
                "UPDATE api_key SET role = ?2 WHERE id = ?1",
                params![id.to_string(), role.as_str()],
            )
        })
        .map(drop)
    }

    /// Restricts a key to these models; `None` removes the restriction.
    pub(crate) fn set_key_models(
        &self,
        id: DeviceId,
        models: Option<&[ModelPattern]>,
    ) -> Result<(), RegisterError> {
        let text = models.map(listed);
        self.change(|t| {
            t.execute("UPDATE api_key SET models = ?2 WHERE id = ?1", params![id.to_string(), text])
        })
        .map(drop)
    }

    /// Notes that keys were used, each at a time in Unix seconds.
    pub(crate) fn keys_seen(&self, seen: &[(DeviceId, i64)]) -> Result<(), RegisterError> {
        self.change(|t| {
            for (id, at) in seen {
                t.execute(
                    "UPDATE api_key SET seen = ?2 WHERE id = ?1",
                    params![id.to_string(), at],
                )?;
            }
            Ok(())
        })
    }
}

/// Everything about keys that decides who may do what.
pub(super) fn read(t: &Transaction<'_>) -> rusqlite::Result<Keys> {
    let keys = all_keys(t)?;
    let prefixes = keys
        .iter()
        .flat_map(|key| key.secrets.iter().map(|secret| (secret.prefix.clone(), key.id)))
        .collect();
    Ok(Keys { keys: keys.into_iter().map(|key| (key.id, key)).collect(), prefixes })
}

fn taken(t: &Transaction<'_>, name: &Name, now: i64) -> rusqlite::Result<Option<KeyError>> {
    if all_devices(t)?.iter().any(|device| device.name == *name) {
        return Ok(Some(KeyError::NameOfDevice(name.clone())));
    }
    if names::is_of_key(t, name)? {
        return Ok(Some(KeyError::NameTaken(name.clone())));
    }
    let invited = t
        .prepare_cached(
            "SELECT 1 FROM invitation WHERE device_name = ?1 AND device IS NULL AND expires > ?2",
        )?
        .exists(params![name.as_str(), now])?;
    Ok(invited.then(|| KeyError::NameInvited(name.clone())))
}

fn unused_id(t: &Transaction<'_>) -> rusqlite::Result<DeviceId> {
    loop {
        let id = DeviceId::generate();
        let is_device = t
            .query_row("SELECT 1 FROM device WHERE id = ?1", [id.to_string()], |_| Ok(()))
            .optional()?
            .is_some();
        if !is_device && !names::is_id_of_key(t, id)? {
            return Ok(id);
        }
    }
}

fn insert_secret(
    t: &Transaction<'_>,
    id: DeviceId,
    secret: &ApiKey,
    expires: Option<i64>,
    now: i64,
) -> rusqlite::Result<()> {
    t.execute(
        "INSERT INTO api_secret VALUES (?1, ?2, ?3, ?4, ?5)",
        params![secret.prefix().as_str(), secret.hash().as_bytes(), id.to_string(), now, expires],
    )
    .map(drop)
}

pub(super) fn all_keys(t: &Transaction<'_>) -> rusqlite::Result<Vec<Key>> {
    let mut secrets: HashMap<DeviceId, Vec<KeySecret>> = HashMap::new();
    let mut query = t.prepare_cached(
        "SELECT key, prefix, hash, created, expires FROM api_secret ORDER BY created DESC, rowid DESC",
    )?;
    let rows = query.query_map([], |row| {
        let secret = KeySecret {
            prefix: KeyPrefix::from(row.get::<_, String>(1)?),
            hash: ApiKeyHash::from(row.get::<_, [u8; 32]>(2)?),
            created: row.get(3)?,
            expires: row.get(4)?,
        };
        Ok((parsed(row.get(0)?)?, secret))
    })?;
    for row in rows {
        let (key, secret) = row?;
        secrets.entry(key).or_default().push(secret);
    }
    let mut query = t.prepare_cached(
        "SELECT id, name, role, models, user, created, revoked, seen FROM api_key ORDER BY name",
    )?;
    let rows = query.query_map([], |row| {
        let id = parsed(row.get(0)?)?;
        Ok(Key {
            id,
            name: parsed(row.get(1)?)?,
            role: parsed(row.get(2)?)?,
            models: row.get::<_, Option<String>>(3)?.map(models).transpose()?,
            user: row.get::<_, Option<String>>(4)?.map(parsed).transpose()?,
            created: row.get(5)?,
            revoked: row.get(6)?,
            seen: row.get(7)?,
            secrets: secrets.remove(&id).unwrap_or_default(),
        })
    })?;
    rows.collect()
}

/// Separated by spaces: no model's name has one.
fn listed(models: &[ModelPattern]) -> String {
    models.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::register::{DeviceError, User, default_role};
    use proto::identity::KeyHash;

    fn register() -> (tempfile::TempDir, Register) {
        let tmp = tempfile::tempdir().expect("tempdir");
        let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
        (tmp, register)
    }

    fn new(name: &str, expires: Option<i64>) -> NewKey {
        NewKey {
            name: name.parse().expect("a name"),
            role: default_role(),
            models: None,
            user: Some("alice@example.com".parse().expect("a user")),
            expires,
        }
    }

    #[test]
    fn a_key_is_found_by_its_secret_alone_and_until_it_ends() {
        let (_tmp, register) = register();
        let (secret, other) = (ApiKey::generate(), ApiKey::generate());
        let key = register.create_key(&new("ci", Some(100)), &secret, 1).expect("made");
        let snapshot = register.snapshot().expect("read");
        let (found, _) = snapshot.key_of(&secret, 99).expect("valid");
        assert_eq!(*found, key);
        assert_eq!(found.user.as_ref().map(UserName::as_str), Some("alice@example.com"));
        assert!(snapshot.key_of(&secret, 100).is_none() && snapshot.key_of(&other, 2).is_none());
        // The prefix of one key and the secret of another are no key.
        let forged =
            format!("{}{}", secret.prefix(), &other.reveal()[secret.prefix().as_str().len()..]);
        assert!(snapshot.key_of(&ApiKey::parse(&forged).expect("a key"), 2).is_none());
    }

    #[test]
    fn a_rotated_key_has_both_secrets_until_the_overlap_ends() {
        let (_tmp, register) = register();
        let (old, now) = (ApiKey::generate(), ApiKey::generate());
        let key = register.create_key(&new("ci", None), &old, 1).expect("made");
        register.rotate_key(key.id, &now, None, 50, 10).expect("rotated");
        let snapshot = register.snapshot().expect("read");
        assert!(snapshot.key_of(&old, 49).is_some() && snapshot.key_of(&old, 50).is_none());
        assert!(snapshot.key_of(&now, 1000).is_some());
        let last = |secret: &ApiKey| snapshot.last_second_of_key(key.id, &secret.prefix());
        assert_eq!((last(&old), last(&now)), (Some(49), None));
        let last = ApiKey::generate();
        register.rotate_key(key.id, &last, None, 60, 60).expect("rotated without an overlap");
        let snapshot = register.snapshot().expect("read");
        assert!(snapshot.admits_key(key.id, &now.prefix()).is_none(), "what runs is cut");
        assert!(snapshot.admits_key(key.id, &last.prefix()).is_some());
        register.revoke_key(key.id, 70).expect("revoked");
        let snapshot = register.snapshot().expect("read");
        assert!(
            snapshot.key_of(&last, 71).is_none()
                && snapshot.admits_key(key.id, &last.prefix()).is_none()
        );
        assert!(matches!(
            register.rotate_key(key.id, &ApiKey::generate(), None, 9, 72),
            Err(KeyError::Gone)
        ));
        register.create_key(&new("ci", None), &ApiKey::generate(), 80).expect("the name is free");
    }

    #[test]
    fn a_name_is_that_of_one_device_or_one_key() {
        let (_tmp, register) = register();
        let user = User { uid: 1000, is_owner: true };
        let laptop = "laptop".parse().expect("a name");
        register.enroll(&laptop, user, None, KeyHash([1; 32]), 200, 1).expect("enrolled");
        let made = register.create_key(&new("laptop", None), &ApiKey::generate(), 1);
        assert!(matches!(made, Err(KeyError::NameOfDevice(_))), "{made:?}");
        register.create_key(&new("ci", None), &ApiKey::generate(), 1).expect("made");
        let again = register.create_key(&new("ci", None), &ApiKey::generate(), 1);
        assert!(matches!(again, Err(KeyError::NameTaken(_))), "{again:?}");
        let ci: Name = "ci".parse().expect("a name");
        let enrolled = register.enroll(&ci, user, None, KeyHash([2; 32]), 200, 1);
        assert!(matches!(enrolled, Err(DeviceError::NameOfKey(_))), "{enrolled:?}");
        let secret = proto::invitation::Secret::generate();
        let invited = register.invite(&ci, &default_role(), None, &secret, 100, 1);
        assert!(matches!(invited, Err(DeviceError::NameOfKey(_))), "{invited:?}");
        register
            .invite(&"desk".parse().expect("a name"), &default_role(), None, &secret, 100, 1)
            .expect("invited");
        let made = register.create_key(&new("desk", None), &ApiKey::generate(), 1);
        assert!(matches!(made, Err(KeyError::NameInvited(_))), "{made:?}");
    }
}
