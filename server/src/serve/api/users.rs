//! The calls about users: the people to whom devices and keys belong.

use std::sync::Arc;

use common::machine::process::unix_now;
use serde_json::{Value, json};

use super::{
    blocking, change,
    devices::{Revoke, Role, must_know},
    failed::Failed,
    listed,
};
use crate::{
    audit::Event,
    running::Server,
    state::register::{KnownUser, UserError},
};

pub(super) async fn list(server: &Arc<Server>) -> Result<Value, Failed> {
    let users = server.in_register(|register| register.users(unix_now())).await?;
    let users: Vec<_> = users.iter().map(shown).collect();
    Ok(json!({"schema": 1, "users": users}))
}

pub(super) async fn show(server: &Arc<Server>, name: String) -> Result<Value, Failed> {
    let at = server.clone();
    let user = blocking(move || Ok(at.state.register.find_user(&name, unix_now())?)).await?;
    Ok(json!({"schema": 1, "user": shown(&user)}))
}

fn shown(user: &KnownUser) -> Value {
    json!({
        "name": user.name,
        "role": user.role,
        "revoked": user.revoked,
        "reason": user.reason,
        "devices": user.devices.iter().map(|device| listed::device(device, None)).collect::<Vec<_>>(),
        "keys": user.keys.iter().map(listed::key).collect::<Vec<_>>(),
        "invitations": user.invitations,
    })
}

/// Changes a user; the answer shows it as it is then.
async fn change_one(
    server: &Arc<Server>,
    name: String,
    work: impl FnOnce(&Server, &KnownUser) -> Result<(), Failed> + Send + 'static,
) -> Result<Value, Failed> {
    let (user, cut) = change(server, move |server| {
        let user = server.state.register.find_user(&name, unix_now())?;
        work(server, &user)?;
        Ok(server.state.register.find_user(&name, unix_now())?)
    })
    .await?;
    Ok(json!({"schema": 1, "user": shown(&user), "cut": cut}))
}

pub(super) async fn revoke(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Revoke { reason }: Revoke,
) -> Result<Value, Failed> {
    change_one(server, name, move |server, user| {
        if user.revoked.is_some() {
            return Err(UserError::AlreadyRevoked(user.name.clone()).into());
        }
        let user = user.name.clone();
        server.state.register.revoke_user(&user, reason.as_ref(), unix_now())?;
        server.accounting.audit.note(Event::UserRevoke { user, reason, uid });
        Ok(())
    })
    .await
}

pub(super) async fn restore(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    change_one(server, name, move |server, user| {
        let name = user.name.clone();
        if user.revoked.is_none() {
            return Err(UserError::NotRevoked(name).into());
        }
        server.state.register.restore_user(&name)?;
        server.accounting.audit.note(Event::UserRestore { user: name, uid });
        Ok(())
    })
    .await
}

pub(super) async fn role(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Role { role }: Role,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    change_one(server, name, move |server, user| {
        server.state.register.set_user_role(&user.name, &role)?;
        let (user, before) = (user.name.clone(), user.role.clone());
        server.accounting.audit.note(Event::UserRole { user, role, before, uid });
        Ok(())
    })
    .await
}
