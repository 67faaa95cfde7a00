//! The calls about keys.

use std::sync::Arc;

use common::machine::process::unix_now;
use proto::{
    api_key::ApiKey,
    identity::{Name, UserName},
    ollama::model::ModelPattern,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    blocking, change, check_clock,
    devices::{Models, Role, must_know},
    failed::Failed,
    listed,
};
use crate::{
    audit::Event,
    running::Server,
    state::register::{Key, KeyError, NewKey, default_role},
};

/// The longest time after which a secret may end, and the default overlap, in seconds.
const LONGEST: u64 = 3650 * 86_400;
const OVERLAP: u64 = 86_400;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: Name,
    #[serde(default = "default_role")]
    role: Name,
    models: Option<Vec<ModelPattern>>,
    user: Option<UserName>,
    expires_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    overlap_seconds: Option<u64>,
    expires_seconds: Option<u64>,
}

pub(super) async fn list(server: &Arc<Server>) -> Result<Value, Failed> {
    let keys = server.in_register(|register| register.keys()).await?;
    let keys: Vec<_> = keys.iter().map(listed::key).collect();
    Ok(json!({"schema": 1, "keys": keys}))
}

pub(super) async fn show(server: &Arc<Server>, name: String) -> Result<Value, Failed> {
    let at = server.clone();
    let key = blocking(move || Ok(at.state.register.find_key(&name)?)).await?;
    Ok(json!({"schema": 1, "key": listed::key(&key)}))
}

fn ends_at(life: Option<u64>) -> Result<Option<i64>, Failed> {
    match life {
        None => Ok(None),
        Some(life @ 1..=LONGEST) => Ok(Some(unix_now().saturating_add(life as i64))),
        Some(_) => Err(Failed::bad(format!("`expires_seconds` is a number from 1 to {LONGEST}"))),
    }
}

pub(super) async fn create(
    server: &Arc<Server>,
    uid: u32,
    Create { name, role, models, user, expires_seconds }: Create,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    check_clock(server)?;
    let new = NewKey { name, role, models, user, expires: ends_at(expires_seconds)? };
    let ((key, secret), _) = change(server, move |server| {
        let secret = ApiKey::generate();
        let key = server.state.register.create_key(&new, &secret, unix_now())?;
        server.accounting.audit.note(Event::KeyCreate {
            key: key.subject(),
            role: key.role.clone(),
            prefix: secret.prefix().to_string(),
            expires: new.expires,
            uid,
        });
        let key = server.state.register.find_key(&key.id.to_string())?;
        Ok((key, secret))
    })
    .await?;
    Ok(json!({"schema": 1, "key": listed::key(&key), "secret": secret.reveal()}))
}

/// Finds a key that can be changed.
fn valid(key: Key) -> Result<Key, KeyError> {
    if key.revoked.is_some() { Err(KeyError::AlreadyRevoked(key.name)) } else { Ok(key) }
}

async fn change_one<T: Send + 'static>(
    server: &Arc<Server>,
    name: String,
    work: impl FnOnce(&Server, Key) -> Result<T, Failed> + Send + 'static,
) -> Result<(Value, T), Failed> {
    let ((key, done), _) = change(server, move |server| {
        let key = valid(server.state.register.find_key(&name)?)?;
        let id = key.id;
        let done = work(server, key)?;
        Ok((server.state.register.find_key(&id.to_string())?, done))
    })
    .await?;
    Ok((json!({"schema": 1, "key": listed::key(&key)}), done))
}

pub(super) async fn role(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Role { role }: Role,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    let changed = change_one(server, name, move |server, key| {
        server.state.register.set_key_role(key.id, &role)?;
        let (device, before) = (key.subject(), key.role);
        server.accounting.audit.note(Event::Role { device, role, before, uid });
        Ok(())
    });
    Ok(changed.await?.0)
}

pub(super) async fn models(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Models { models }: Models,
) -> Result<Value, Failed> {
    let changed = change_one(server, name, move |server, key| {
        server.state.register.set_key_models(key.id, models.as_deref())?;
        let models = models.map(|all| all.iter().map(ToString::to_string).collect());
        server.accounting.audit.note(Event::Models { device: key.subject(), models, uid });
        Ok(())
    });
    Ok(changed.await?.0)
}

pub(super) async fn rotate(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Rotate { overlap_seconds, expires_seconds }: Rotate,
) -> Result<Value, Failed> {
    check_clock(server)?;
    let overlap = overlap_seconds.unwrap_or(OVERLAP);
    if overlap > LONGEST {
        return Err(Failed::bad(format!("`overlap_seconds` is a number from 0 to {LONGEST}")));
    }
    let given = ends_at(expires_seconds)?;
    let (mut answer, secret) = change_one(server, name, move |server, key| {
        let now = unix_now();
        let before = key.secrets.first();
        // As long as the old one.
        let life = before.and_then(|secret| Some(secret.expires? - secret.created));
        let expires = given.or_else(|| life.map(|life| now.saturating_add(life)));
        let secret = ApiKey::generate();
        let old_ends = now.saturating_add(overlap as i64);
        server.state.register.rotate_key(key.id, &secret, expires, old_ends, now)?;
        server.accounting.audit.note(Event::KeyRotate {
            key: key.subject(),
            prefix: secret.prefix().to_string(),
            expires,
            overlap,
            uid,
        });
        Ok(secret)
    })
    .await?;
    answer["secret"] = secret.reveal().into();
    Ok(answer)
}

pub(super) async fn revoke(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    let changed = change_one(server, name, move |server, key| {
        server.state.register.revoke_key(key.id, unix_now())?;
        let device = key.subject();
        server.accounting.audit.note(Event::Revoke { device, reason: None, uid });
        Ok(())
    });
    Ok(changed.await?.0)
}
