//! The calls about devices and invitations.

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::machine::process::unix_now;
use hyper::StatusCode;
use proto::{
    epoch::Standing,
    identity::{Name, RECOVER_WITHIN, UserName},
    ollama::model::ModelPattern,
    wire::Reason,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{blocking, change, check_clock, failed::Failed, listed};
use crate::{
    audit::Event,
    running::{NOWHERE, Server},
    state::{
        codes::{MadeCode, Opens, SIGN_IN},
        register::{Device, DeviceError, Invited, default_role},
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
pub(super) struct Rename {
    name: Name,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Revoke {
    pub(super) reason: Option<Reason>,
}

/// Checks that there is such a role.
pub(super) fn must_know(server: &Server, role: &Name) -> Result<(), Failed> {
    if server.policy.rules().knows(role) {
        return Ok(());
    }
    Err(Failed::bad(format!("there is no role `{role}`: `GET /v1/roles` lists them")))
}

pub(super) async fn invitations(server: &Arc<Server>) -> Result<Value, Failed> {
    let open = server.in_register(|register| register.invitations(unix_now())).await?;
    Ok(json!({"schema": 1, "invitations": open}))
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
        let made = server.state.make_code(device, opens, life, addresses, unix_now())?;
        let MadeCode { invitation, invited, .. } = made;
        let Invited { name: device, role, user, sso, expires } = invited;
        let mut answer = json!({
            "schema": 1,
            "device": device,
            "code": invitation.code().as_str(),
            "expires": expires,
            "addresses": invitation.addresses,
        });
        match sso {
            true => answer["sso"] = true.into(),
            false => answer["role"] = role.as_str().into(),
        }
        server.accounting.audit.note(Event::Invite { device, sso, role, user, expires, uid });
        Ok(answer)
    })
    .await?;
    Ok(answer)
}

pub(super) async fn withdraw(
    server: &Arc<Server>,
    uid: u32,
    device: String,
) -> Result<Value, Failed> {
    let name = device.clone();
    change(server, move |server| {
        if !server.state.register.withdraw(&device, unix_now())? {
            let what = format!("no invitation for `{device}` is open");
            return Err(Failed::new(StatusCode::NOT_FOUND, what));
        }
        server.accounting.audit.note(Event::Withdraw { device, uid });
        Ok(())
    })
    .await?;
    Ok(json!({"schema": 1, "withdrawn": name}))
}

pub(super) async fn list(server: &Arc<Server>) -> Result<Value, Failed> {
    let devices = server.in_register(|register| register.devices()).await?;
    let sessions = server.live.status();
    let sessions: HashMap<_, _> =
        sessions.iter().map(|session| (session.device_id, session)).collect();
    let devices: Vec<_> = devices
        .iter()
        .map(|device| listed::device(device, sessions.get(&device.id).copied()))
        .collect();
    Ok(json!({"schema": 1, "devices": devices}))
}

pub(super) async fn show(server: &Arc<Server>, name: String) -> Result<Value, Failed> {
    let at = server.clone();
    let device = blocking(move || Ok(at.state.register.find(&name)?)).await?;
    Ok(shown(server, &device, 0))
}

/// A device, and how many sessions the change has cut.
fn shown(server: &Server, device: &Device, cut: usize) -> Value {
    let sessions = server.live.status();
    let session = sessions.iter().find(|session| session.device_id == device.id);
    json!({
        "schema": 1,
        "device": listed::device(device, session),
        "tokens_today": server.tokens_today(device.id),
        "cut": cut,
    })
}

/// Changes a device; the answer shows it as it is then.
async fn change_one(
    server: &Arc<Server>,
    name: String,
    work: impl FnOnce(&Server, Device) -> Result<(), Failed> + Send + 'static,
) -> Result<Value, Failed> {
    let (device, cut) = change(server, move |server| {
        let device = server.state.register.find(&name)?;
        let id = device.id;
        work(server, device)?;
        Ok(server.state.register.find(&id.to_string())?)
    })
    .await?;
    Ok(shown(server, &device, cut))
}

fn enrolled(device: Device) -> Result<Device, DeviceError> {
    if device.revoked.is_some() {
        Err(DeviceError::AlreadyRevoked(device.name))
    } else {
        Ok(device)
    }
}

pub(super) async fn role(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Role { role }: Role,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    change_one(server, name, move |server, device| {
        let device = enrolled(device)?;
        server.state.register.set_role(device.id, &role)?;
        let (device, before) = (device.subject(), device.role);
        server.accounting.audit.note(Event::Role { device, role, before, uid });
        Ok(())
    })
    .await
}

pub(super) async fn models(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Models { models }: Models,
) -> Result<Value, Failed> {
    change_one(server, name, move |server, device| {
        let device = enrolled(device)?;
        server.state.register.set_models(device.id, models.as_deref())?;
        let models = models.map(|all| all.iter().map(ToString::to_string).collect());
        server.accounting.audit.note(Event::Models { device: device.subject(), models, uid });
        Ok(())
    })
    .await
}

pub(super) async fn rename(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Rename { name: to }: Rename,
) -> Result<Value, Failed> {
    change_one(server, name, move |server, device| {
        if device.name == to {
            return Ok(());
        }
        server.state.register.rename(device.id, &to, unix_now())?;
        let before = device.name.clone();
        let device = Device { name: to, ..device }.subject();
        server.accounting.audit.note(Event::Rename { device, before, uid });
        Ok(())
    })
    .await
}

pub(super) async fn revoke(
    server: &Arc<Server>,
    uid: u32,
    name: String,
    Revoke { reason }: Revoke,
) -> Result<Value, Failed> {
    change_one(server, name, move |server, device| {
        let device = enrolled(device)?;
        server.state.register.revoke(device.id, reason.as_ref(), unix_now())?;
        server.accounting.audit.note(Event::Revoke { device: device.subject(), reason, uid });
        Ok(())
    })
    .await
}

pub(super) async fn restore(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    change_one(server, name, move |server, device| {
        if device.revoked.is_none() {
            return Err(DeviceError::NotRevoked(device.name).into());
        }
        if unix_now() > device.not_after + RECOVER_WITHIN {
            let what =
                format!("the certificate of `{}` expired too long ago to be renewed", device.name);
            return Err(Failed::new(StatusCode::CONFLICT, what));
        }
        server.state.register.restore(device.id)?;
        server.accounting.audit.note(Event::Restore { device: device.subject(), uid });
        Ok(())
    })
    .await
}

pub(super) async fn confirm(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    change_one(server, name, move |server, device| {
        if device.standing() != Standing::Held {
            let what = format!("`{}` is not held back: nothing is to be confirmed", device.name);
            return Err(Failed::new(StatusCode::CONFLICT, what));
        }
        server.state.register.confirm(device.id)?;
        server.accounting.audit.note(Event::Confirm { device: device.subject(), uid });
        Ok(())
    })
    .await
}

pub(super) async fn forget(server: &Arc<Server>, uid: u32, name: String) -> Result<Value, Failed> {
    let (device, _) = change(server, move |server| {
        let device = server.state.register.find(&name)?;
        if device.revoked.is_none() {
            return Err(DeviceError::StillEnrolled(device.name).into());
        }
        server.state.register.forget(device.id)?;
        server.accounting.audit.note(Event::Forget { device: device.subject(), uid });
        Ok(device)
    })
    .await?;
    Ok(json!({"schema": 1, "forgotten": device.name}))
}
