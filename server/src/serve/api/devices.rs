//! The calls about devices and invitations.

use std::{collections::HashMap, sync::Arc};

use common::machine::process::unix_now;
use hyper::StatusCode;
use proto::{
    epoch::Standing,
    identity::{Name, RECOVER_WITHIN, UserName},
    invitation::{Invitation, Secret},
    ollama::model::ModelPattern,
    wire::Reason,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{blocking, change, check_clock, failed::Failed, listed};
use crate::{
    audit::Event,
    running::{NOWHERE, Server},
    state::register::{Device, DeviceError, Invited, default_role},
};

/// The longest life of an invitation, and its default, in seconds.
const LONGEST: u64 = 7 * 86_400;
const TTL: u64 = 600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invite {
    device: Name,
    #[serde(default = "default_role")]
    role: Name,
    user: Option<UserName>,
    ttl_seconds: Option<u64>,
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
    Invite { device, role, user, ttl_seconds }: Invite,
) -> Result<Value, Failed> {
    must_know(server, &role)?;
    let ttl = ttl_seconds.unwrap_or(TTL);
    if !(1..=LONGEST).contains(&ttl) {
        return Err(Failed::bad(format!("`ttl_seconds` is a number from 1 to {LONGEST}")));
    }
    check_clock(server)?;
    let addresses = server.addresses();
    if addresses.is_empty() {
        return Err(Failed::new(StatusCode::CONFLICT, NOWHERE));
    }
    let expires = unix_now().saturating_add(ttl as i64);
    // Both are of the same moment: a code and its row name one CA.
    let authorities = server.state.authorities.get();
    let ca = authorities.current().number;
    let invitation = Invitation {
        addresses,
        ca: authorities.signing().key_hash(),
        expires,
        secret: Secret::generate(),
        sign_in: false,
    };
    let answer = json!({
        "schema": 1,
        "device": device,
        "role": role,
        "code": invitation.code().as_str(),
        "expires": expires,
        "addresses": invitation.addresses,
    });
    change(server, move |server| {
        let register = &server.state.register;
        let invited = Invited { name: device, role, user, sso: false, expires };
        register.add_invitation(&invited, &invitation.secret, ca, unix_now())?;
        let Invited { name: device, role, user, .. } = invited;
        server.accounting.audit.note(Event::Invite {
            device,
            sso: false,
            role,
            user,
            expires,
            uid,
        });
        Ok(())
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
