//! Changes of keys.

use std::time::Duration;

use common::machine::process::unix_now;
use proto::{
    api_key::ApiKey,
    identity::{DeviceId, Name, UserName},
    ollama::model::ModelPattern,
};

use super::Changes;
use crate::{
    audit::Event,
    state::register::{Key, KeyError, NewKey, UserError},
};

/// A key with a new secret.
pub(crate) struct MadeKey {
    pub(crate) key: Key,
    /// It is not shown again.
    pub(crate) secret: ApiKey,
    /// When the secret ends, in Unix time; `None` for never.
    pub(crate) expires: Option<i64>,
}

/// Why nothing may belong to a user.
fn of_user(error: UserError) -> KeyError {
    match error {
        UserError::Register(e) => e.into(),
        other => KeyError::UserRevoked(other),
    }
}

impl Changes<'_> {
    fn key(&self, id: DeviceId) -> Result<Key, KeyError> {
        self.state.register.find_key(&id.to_string())
    }

    /// Finds a key that can be changed.
    fn valid_key(&self, name: &str) -> Result<Key, KeyError> {
        let key = self.state.register.find_key(name)?;
        if key.revoked.is_some() {
            return Err(KeyError::AlreadyRevoked(key.name));
        }
        Ok(key)
    }

    /// Makes a key. Its role exists, and the clock was checked.
    pub(crate) fn create_key(&self, new: &NewKey) -> Result<MadeKey, KeyError> {
        let secret = ApiKey::generate();
        let key = self.state.register.create_key(new, &secret, unix_now())?;
        self.note(Event::KeyCreate {
            key: key.subject(),
            role: key.role.clone(),
            prefix: secret.prefix().to_string(),
            expires: new.expires,
            uid: self.uid,
        });
        Ok(MadeKey { key, secret, expires: new.expires })
    }

    /// Gives a key a new secret, which ends at `expires`, or after as long a time as the old one. The
    /// old one works for `overlap`. The clock was checked.
    pub(crate) fn rotate_key(
        &self,
        name: &str,
        overlap: Duration,
        expires: Option<i64>,
    ) -> Result<MadeKey, KeyError> {
        let (key, now) = (self.valid_key(name)?, unix_now());
        let life = key.secrets.first().and_then(|secret| Some(secret.expires? - secret.created));
        let expires = expires.or_else(|| life.map(|life| now.saturating_add(life)));
        let secret = ApiKey::generate();
        let seconds = overlap.as_secs();
        let old_ends = now.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX));
        let key = self.state.register.rotate_key(key.id, &secret, expires, old_ends, now)?;
        self.note(Event::KeyRotate {
            key: key.subject(),
            prefix: secret.prefix().to_string(),
            expires,
            overlap: seconds,
            uid: self.uid,
        });
        Ok(MadeKey { key, secret, expires })
    }

    /// Gives a key another role, which exists.
    pub(crate) fn set_key_role(&self, name: &str, role: &Name) -> Result<Key, KeyError> {
        let key = self.valid_key(name)?;
        self.state.register.set_key_role(key.id, role)?;
        self.note(Event::Role {
            device: key.subject(),
            role: role.clone(),
            before: key.role,
            uid: self.uid,
        });
        self.key(key.id)
    }

    /// Lets a key use only these models; `None` if its role decides.
    pub(crate) fn set_key_models(
        &self,
        name: &str,
        models: Option<&[ModelPattern]>,
    ) -> Result<Key, KeyError> {
        let key = self.valid_key(name)?;
        self.state.register.set_key_models(key.id, models)?;
        let models = models.map(|all| all.iter().map(ToString::to_string).collect());
        self.note(Event::Models { device: key.subject(), models, uid: self.uid });
        self.key(key.id)
    }

    /// Says whose a key is; `None` for a user of its own.
    pub(crate) fn assign_key(&self, name: &str, user: Option<&UserName>) -> Result<Key, KeyError> {
        let key = self.valid_key(name)?;
        if let Some(user) = user {
            self.state.register.must_not_be_revoked(user).map_err(of_user)?;
        }
        self.state.register.set_key_user(key.id, user)?;
        let now = self.key(key.id)?;
        self.note(Event::Assign { device: now.subject(), before: key.user, uid: self.uid });
        Ok(now)
    }

    /// Ends a key.
    pub(crate) fn revoke_key(&self, name: &str) -> Result<Key, KeyError> {
        let key = self.valid_key(name)?;
        self.state.register.revoke_key(key.id, unix_now())?;
        self.note(Event::Revoke { device: key.subject(), reason: None, uid: self.uid });
        self.key(key.id)
    }
}
