//! The calls about certificate authorities.

use std::sync::Arc;

use common::machine::process::unix_now;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{blocking, change, failed::Failed, with_schema};
use crate::{audit::Event, running::Server};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retire {
    /// Although devices do not have the newest one.
    #[serde(default)]
    force: bool,
}

pub(super) async fn status(server: &Arc<Server>) -> Result<Value, Failed> {
    let at = server.clone();
    with_schema(&blocking(move || Ok(at.state.ca_status(unix_now())?)).await?)
}

pub(super) async fn rotate(server: &Arc<Server>, uid: u32) -> Result<Value, Failed> {
    let (ca, _) = change(server, move |server| {
        let ca = server.state.rotate_ca(OffsetDateTime::now_utc())?;
        server.accounting.audit.note(Event::CaRotate { ca, uid });
        Ok(ca)
    })
    .await?;
    // `null` if this process can't use it yet: it was logged why.
    let sha256 = server.state.authorities.get().get(ca).map(|authority| authority.fingerprint());
    Ok(json!({"schema": 1, "ca": ca, "sha256": sha256}))
}

pub(super) async fn retire(
    server: &Arc<Server>,
    uid: u32,
    Retire { force }: Retire,
) -> Result<Value, Failed> {
    let (retired, _) = change(server, move |server| {
        let retired = server.state.retire_cas(force, unix_now())?;
        for ca in retired.numbers.iter().copied() {
            let without = retired.without.iter().filter(|device| device.ca <= ca).count();
            server.accounting.audit.note(Event::CaRetire { ca, without, uid });
        }
        Ok(retired)
    })
    .await?;
    Ok(json!({"schema": 1, "retired": retired.numbers, "behind": retired.without,
        "invitations_ended": retired.invitations}))
}
