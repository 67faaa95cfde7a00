//! The calls about certificate authorities.

use std::sync::Arc;

use common::machine::process::unix_now;
use serde::Deserialize;
use serde_json::Value;

use super::{blocking, change, changes, document, failed::Failed};
use crate::{
    documents::{RetiredCas, RotatedCa},
    running::Server,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retire {
    /// Although devices do not have the newest one.
    #[serde(default)]
    force: bool,
}

pub(super) async fn status(server: &Arc<Server>) -> Result<Value, Failed> {
    let at = server.clone();
    document(blocking(move || Ok(at.state.ca_status(unix_now())?)).await?)
}

pub(super) async fn rotate(server: &Arc<Server>, uid: u32) -> Result<Value, Failed> {
    let (ca, _) = change(server, move |server| Ok(changes(server, uid).rotate_ca()?)).await?;
    // `null` if this process can't use it yet: it was logged why.
    let sha256 = server.state.authorities.get().get(ca).map(|authority| authority.fingerprint());
    document(RotatedCa { ca, sha256 })
}

pub(super) async fn retire(
    server: &Arc<Server>,
    uid: u32,
    Retire { force }: Retire,
) -> Result<Value, Failed> {
    let retire = move |server: &Server| Ok(changes(server, uid).retire_cas(force)?);
    let (retired, _) = change(server, retire).await?;
    document(RetiredCas::from(retired))
}
