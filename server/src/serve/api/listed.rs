//! Devices and keys as the API shows them: the fields of `aditd device list --json` and
//! `aditd key list --json`. Times are Unix seconds.

use common::machine::process::unix_now;
use serde_json::{Value, json};

use crate::{
    running::sessions::SessionStatus,
    state::register::{Device, Key},
};

pub(super) fn device(device: &Device, session: Option<&SessionStatus>) -> Value {
    json!({
        "name": device.name,
        "id": device.id,
        "role": device.role,
        "models": device.models,
        "enrolled": device.enrolled,
        "uid": device.uid,
        "user": device.user,
        "seen": device.seen,
        "certificate_until": device.not_after,
        "revoked": device.revoked,
        "reason": device.reason,
        "to_confirm": device.held,
        "sso": device.sign_in.is_some(),
        "signed_out": device.sign_in.and_then(|sign_in| sign_in.ended),
        "session": session,
    })
}

pub(super) fn key(key: &Key) -> Value {
    let now = unix_now();
    let secrets = key.secrets.iter().enumerate();
    // Old secrets are listed until they end, the newest one always.
    let secrets = secrets.filter(|(i, secret)| *i == 0 || secret.is_valid(now));
    let secrets: Vec<_> = secrets
        .map(|(_, secret)| {
            json!({
                "prefix": secret.prefix.to_string(),
                "created": secret.created,
                "expires": secret.expires,
            })
        })
        .collect();
    json!({
        "name": key.name,
        "id": key.id,
        "role": key.role,
        "models": key.models,
        "user": key.user,
        "created": key.created,
        "seen": key.seen,
        "revoked": key.revoked,
        "secrets": secrets,
    })
}
