//! The calls about users: the people to whom devices and keys belong.

use std::sync::Arc;

use common::machine::process::unix_now;
use serde_json::Value;

use super::{
    blocking, change, changes,
    devices::{Revoke, Role, must_know},
    document,
    failed::Failed,
    view,
};
use crate::{
    changes::ChangedUser,
    documents::{OneUser, Users},
    running::Server,
    state::register::{KnownUser, UserError},
};

pub(super) async fn list(server: &Arc<Server>) -> Result<Value, Failed> {
    let at = server.clone();
    let users = blocking(move || {
        let view = view(&at)?;
        let users = at.state.register.users(unix_now())?;
        Ok(users.into_iter().map(|user| view.user(user)).collect())
    });
    document(Users { users: users.await? })
}

pub(super) async fn show(server: &Arc<Server>, name: String) -> Result<Value, Failed> {
    let at = server.clone();
    let user = blocking(move || Ok(at.state.register.find_user(&name, unix_now())?)).await?;
    shown(server, user, 0).await
}

async fn shown(server: &Arc<Server>, user: KnownUser, cut: usize) -> Result<Value, Failed> {
    let at = server.clone();
    let user = blocking(move || Ok(view(&at)?.user(user))).await?;
    document(OneUser { user, cut })
}

/// Changes a user; the answer shows it as it is then.
async fn change_one(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> Result<ChangedUser, UserError> + Send + 'static,
) -> Result<Value, Failed> {
    let (user, cut) = change(server, |server| Ok(work(server)?.now)).await?;
    shown(server, user, cut).await
}

pub(super) async fn revoke(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Revoke { reason }: Revoke,
) -> Result<Value, Failed> {
    let by_token = server.policy.tokens().is_some();
    change_one(server, move |server| changes(server, uid).revoke_user(&name, reason, by_token))
        .await
}

pub(super) async fn restore(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).restore_user(&name)).await
}

pub(super) async fn role(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Role { role }: Role,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    change_one(server, move |server| changes(server, uid).set_user_role(&name, &role)).await
}
