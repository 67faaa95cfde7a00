//! The calls about devices and invitations.

use std::{sync::Arc, time::Duration};

use hyper::StatusCode;
use proto::{
    identity::{Name, UserName},
    ollama::model::ModelPattern,
    wire::Reason,
};
use serde::Deserialize;
use serde_json::Value;

use super::{blocking, change, changes, check_clock, document, failed::Failed, view};
use crate::{
    documents::{CodeShown, Devices, ForgottenDevice, Invitations, OneDevice, Withdrawn},
    running::{NOWHERE, Server},
    state::{
        codes::{Opens, SIGN_IN},
        register::{Device, DeviceError, default_role},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invite {
    device: Option<Name>,
    /// Whether the code opens sign-ins; the name is its own then.
    #[serde(default)]
    sso: bool,
    role: Option<Name>,
    user: Option<UserName>,
    ttl_seconds: Option<u64>,
}

impl Invite {
    /// The name, and for what the code is made.
    fn settle(self) -> Result<(Name, Opens), &'static str> {
        match self {
            Self { sso: true, role: None, user: None, device, .. } => Ok((
                device.or_else(|| SIGN_IN.parse().ok()).ok_or("`device` is missing")?,
                Opens::SignIn,
            )),
            Self { sso: true, .. } => {
                Err("`role` and `user` are the provider's to say where `sso` is true")
            }
            Self { device: None, .. } => Err("the field `device` is missing"),
            Self { device: Some(device), role, user, .. } => {
                let role = role.unwrap_or_else(default_role);
                Ok((device, Opens::Enrollment { role, user }))
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Role {
    pub(super) role: Name,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Models {
    /// `None` if the role decides. The field must be there.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) models: Option<Vec<ModelPattern>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Assign {
    /// `None` for a user of its own. The field must be there.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) user: Option<UserName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rename {
    name: Name,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Revoke {
    pub(super) reason: Option<Reason>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Forget {
    /// Whether any user may have the name then; also for a device that was removed before.
    #[serde(default)]
    free_name: bool,
}

/// Checks that there is such a role.
pub(super) fn must_know(server: &Server, role: &Name) -> Result<(), Failed> {
    if server.policy.rules().knows(role) {
        return Ok(());
    }
    Err(Failed::bad(format!("there is no role `{role}`: `GET /v1/roles` lists them")))
}

pub(super) async fn invitations(server: &Arc<Server>) -> Result<Value, Failed> {
    let now = common::machine::process::unix_now();
    let invitations = server.in_register(move |register| register.invitations(now)).await?;
    document(Invitations { invitations })
}

pub(super) async fn invite(
    server: &Arc<Server>,
    uid: u32,
    invite: Invite,
) -> Result<Value, Failed> {
    let ttl = invite.ttl_seconds.map(Duration::from_secs);
    let (device, opens) = invite.settle().map_err(Failed::bad)?;
    match &opens {
        Opens::Enrollment { role, .. } => must_know(server, role)?,
        Opens::SignIn if server.sign_ins.provider().is_none() => {
            let what = "this server has no provider at which people sign in: `[oidc]` names one";
            return Err(Failed::new(StatusCode::CONFLICT, what));
        }
        Opens::SignIn => {}
    }
    let life = opens.life(ttl).map_err(|range| Failed::bad(format!("`ttl_seconds`: {range}")))?;
    check_clock(server)?;
    let addresses = server.addresses();
    if addresses.is_empty() {
        return Err(Failed::new(StatusCode::CONFLICT, NOWHERE));
    }
    let (answer, _) = change(server, move |server| {
        let made = changes(server, uid).invite(device, opens, life, addresses)?;
        document(CodeShown::from(&made))
    })
    .await?;
    Ok(answer)
}

pub(super) async fn withdraw(
    server: &Arc<Server>,
    uid: u32,
    device: String,
) -> Result<Value, Failed> {
    let (withdrawn, _) = change(server, move |server| {
        if !changes(server, uid).withdraw(&device)? {
            let what = format!("no invitation for `{device}` is open");
            return Err(Failed::new(StatusCode::NOT_FOUND, what));
        }
        Ok(device)
    })
    .await?;
    document(Withdrawn { withdrawn })
}

pub(super) async fn list(server: &Arc<Server>) -> Result<Value, Failed> {
    let at = server.clone();
    let devices = blocking(move || {
        let view = view(&at)?;
        let devices = at.state.register.devices()?;
        Ok(devices.into_iter().map(|device| view.device(device)).collect())
    });
    document(Devices { devices: devices.await? })
}

pub(super) async fn show(server: &Arc<Server>, name: String) -> Result<Value, Failed> {
    let at = server.clone();
    let device = blocking(move || Ok(at.state.register.find(&name)?)).await?;
    shown(server, device, 0).await
}

/// A device, and how many sessions the change has cut.
async fn shown(server: &Arc<Server>, device: Device, cut: usize) -> Result<Value, Failed> {
    let at = server.clone();
    let tokens_today = server.tokens_today(device.id);
    let device = blocking(move || Ok(view(&at)?.device(device))).await?;
    document(OneDevice { device, tokens_today, cut })
}

/// Changes a device; the answer shows it as it is then.
async fn change_one(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> Result<Device, DeviceError> + Send + 'static,
) -> Result<Value, Failed> {
    let (device, cut) = change(server, |server| Ok(work(server)?)).await?;
    shown(server, device, cut).await
}

pub(super) async fn role(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Role { role }: Role,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    change_one(server, move |server| changes(server, uid).set_role(&name, &role)).await
}

pub(super) async fn models(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Models { models }: Models,
) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).set_models(&name, models.as_deref()))
        .await
}

pub(super) async fn assign(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Assign { user }: Assign,
) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).assign(&name, user.as_ref())).await
}

pub(super) async fn rename(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Rename { name: to }: Rename,
) -> Result<Value, Failed> {
    let rename = move |server: &Server| Ok(changes(server, uid).rename(&name, &to)?.device);
    change_one(server, rename).await
}

pub(super) async fn revoke(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Revoke { reason }: Revoke,
) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).revoke(&name, reason)).await
}

pub(super) async fn restore(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    change_one(server, move |server| changes(server, uid).restore(&name)).await
}

pub(super) async fn confirm(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    let (device, cut) = change(server, move |server| {
        let confirmed = changes(server, uid).confirm(Some(&name))?.pop();
        confirmed.ok_or_else(|| {
            let what = format!("`{name}` is not held back: nothing is to be confirmed");
            Failed::new(StatusCode::CONFLICT, what)
        })
    })
    .await?;
    shown(server, device, cut).await
}

pub(super) async fn forget(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Forget { free_name }: Forget,
) -> Result<Value, Failed> {
    let forget = move |server: &Server| Ok(changes(server, uid).forget(&name, free_name)?);
    let (forgotten, _) = change(server, forget).await?;
    document(ForgottenDevice { forgotten: forgotten.name, name_is_free: forgotten.name_is_free })
}
