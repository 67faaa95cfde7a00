//! The calls about keys.

use std::{sync::Arc, time::Duration};

use common::machine::process::unix_now;
use proto::{
    identity::{Name, UserName},
    ollama::model::ModelPattern,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    blocking, change, changes, check_clock,
    devices::{Assign, Models, Role, must_know},
    document,
    failed::Failed,
    view,
};
use crate::{
    changes::MadeKey,
    documents::{KeyWithSecret, Keys, OneKey},
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
    let at = server.clone();
    let keys = blocking(move || {
        let view = view(&at)?;
        Ok(at.state.register.keys()?.into_iter().map(|key| view.key(key)).collect())
    });
    document(Keys { keys: keys.await? })
}

pub(super) async fn show(server: &Arc<Server>, name: String) -> Result<Value, Failed> {
    let at = server.clone();
    let key = blocking(move || Ok(at.state.register.find_key(&name)?)).await?;
    shown(server, key).await
}

async fn shown(server: &Arc<Server>, key: Key) -> Result<Value, Failed> {
    let at = server.clone();
    let key = blocking(move || Ok(view(&at)?.key(key))).await?;
    document(OneKey { key })
}

fn ends_at(life: Option<u64>) -> Result<Option<i64>, Failed> {
    match life {
        None => Ok(None),
        Some(life @ 1..=LONGEST) => Ok(Some(unix_now().saturating_add(life as i64))),
        Some(_) => Err(Failed::bad(format!("`expires_seconds` is a number from 1 to {LONGEST}"))),
    }
}

/// Makes a secret; the answer shows it and its key.
async fn make(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> Result<MadeKey, KeyError> + Send + 'static,
) -> Result<Value, Failed> {
    let (answer, _) = change(server, move |server| {
        let made = work(server)?;
        document(KeyWithSecret::new(made, &view(server)?))
    })
    .await?;
    Ok(answer)
}

pub(super) async fn create(
    server: &Arc<Server>,
    uid: u32,
    Create { name, role, models, user, expires_seconds }: Create,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    check_clock(server)?;
    let new = NewKey { name, role, models, user, expires: ends_at(expires_seconds)? };
    make(server, move |server| changes(server, uid).create_key(&new)).await
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
    let (overlap, expires) = (Duration::from_secs(overlap), ends_at(expires_seconds)?);
    make(server, move |server| changes(server, uid).rotate_key(&name, overlap, expires)).await
}

/// Changes a key; the answer shows it as it is then.
async fn change_one(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> Result<Key, KeyError> + Send + 'static,
) -> Result<Value, Failed> {
    let (key, _) = change(server, |server| Ok(work(server)?)).await?;
    shown(server, key).await
}

pub(super) async fn role(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Role { role }: Role,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    change_one(server, move |server| changes(server, uid).set_key_role(&name, &role)).await
}

pub(super) async fn models(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Models { models }: Models,
) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).set_key_models(&name, models.as_deref()))
        .await
}

pub(super) async fn assign(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Assign { user }: Assign,
) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).assign_key(&name, user.as_ref())).await
}

pub(super) async fn revoke(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).revoke_key(&name)).await
}
