//! Asks the provider before a certificate is renewed whose device has signed in: who is disabled
//! there is out by then, and a changed group changes the role.

use std::sync::Arc;

use common::machine::process::unix_now;
use proto::{failure::in_one_line, identity::DeviceId, wire::Code};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::sign_in::signed_in_as;
use crate::{
    audit::Event,
    oidc::{NotConfirmed, OidcError, Person, Provider},
    running::Server,
    state::register::{DeviceError, Renewed, SignedIn, StoredSignIn},
};

/// Asks whether the sign-in of a device still counts, and puts in force what has changed.
///
/// # Errors
/// [`Code::SignedOut`] if it does not: the device can do nothing any more. [`Code::ProviderDown`] if
/// that is not known now. [`Code::Busy`] if it is being asked, or if the register cannot be used.
///
/// # Cancel safety
/// Cancel safe: what was begun goes on to its end, because the provider may have replaced the refresh
/// token.
pub(super) async fn ask(server: &Arc<Server>, id: DeviceId) -> Result<(), Code> {
    let at = server.clone();
    let asked = server.asking.spawn(async move { ask_now(&at, id).await }).await;
    asked.map_err(|_| Code::Busy)?
}

async fn ask_now(server: &Arc<Server>, id: DeviceId) -> Result<(), Code> {
    let Some(provider) = server.sign_ins.provider() else {
        warn!(
            "a certificate is not renewed: its device has signed in, and `[oidc]` is not in the configuration any more"
        );
        return Err(Code::ProviderDown);
    };
    let now = unix_now();
    let taken = server.in_register(move |register| register.take_sign_in(id, now)).await;
    let stored = taken.map_err(|_| Code::Busy)?.ok_or(Code::Busy)?;
    match answer(&provider, stored).await {
        Ok(person) => confirmed(server, id, signed_in_as(provider.issuer(), person)).await,
        Err(NotConfirmed { why, .. }) if why.ends_the_sign_in() => {
            ended(server, id, &why.to_string()).await
        }
        Err(NotConfirmed { why, refresh_token }) => {
            warn!("a certificate is not renewed: {why}");
            leave(server, id, refresh_token).await;
            Err(Code::ProviderDown)
        }
    }
}

/// The provider may be asked again, with what it has given last.
async fn leave(server: &Arc<Server>, id: DeviceId, refresh_token: Option<Zeroizing<String>>) {
    let left =
        server.in_register(move |register| register.leave_sign_in(id, refresh_token.as_ref()));
    if let Err(why) = left.await {
        warn!("the answer of the provider is not kept: {}", in_one_line(&why));
    }
}

async fn answer(provider: &Provider, stored: StoredSignIn) -> Result<Person, NotConfirmed> {
    let StoredSignIn { issuer, subject, refresh_token } = stored;
    if issuer != provider.issuer() {
        return Err(OidcError::Ended(format!(": it was at `{issuer}`")).into());
    }
    match refresh_token {
        Some(refresh_token) => provider.refresh(&subject, &refresh_token).await,
        None => Err(OidcError::Ended(
            ": it gave no refresh token (is the scope `offline_access` granted?)".to_owned(),
        )
        .into()),
    }
}

/// The provider has said yes.
async fn confirmed(server: &Arc<Server>, id: DeviceId, person: SignedIn) -> Result<(), Code> {
    let (at, refresh_token) = (server.clone(), person.refresh_token.clone());
    let changed =
        tokio::task::spawn_blocking(move || at.state.register.confirm_sign_in(id, &person)).await;
    if !matches!(changed, Ok(Ok(_))) {
        leave(server, id, refresh_token).await;
    }
    match changed.map_err(|_| Code::Busy)? {
        Ok(Some(Renewed { before, after })) => {
            if before.role != after.role || before.user != after.user {
                info!(device = %after.name, "the provider has told another user or other groups: the role is {}", after.role);
                server.accounting.audit.note(Event::SignedInAs {
                    device: after.subject(),
                    role: after.role.clone(),
                    role_before: before.role,
                    user_before: before.user.filter(|user| Some(user) != after.user.as_ref()),
                });
                let _ = server.refresh().await;
            }
            Ok(())
        }
        Ok(None) | Err(DeviceError::UserRevoked(_)) => Err(Code::Revoked),
        Err(_) => Err(Code::Busy),
    }
}

/// The provider has said no.
async fn ended(server: &Arc<Server>, id: DeviceId, why: &str) -> Result<(), Code> {
    let now = unix_now();
    let ended = server.in_register(move |register| register.end_sign_in(id, now)).await;
    if ended.map_err(|_| Code::Busy)? {
        let snapshot = server.policy.snapshot();
        if let Some(device) = snapshot.devices().find(|device| device.id == id) {
            warn!(device = %device.name, "{why}");
            let (device, why) = (device.subject(), why.to_owned());
            server.accounting.audit.note(Event::SignedOut { device, why });
        }
    }
    // Ends the session, and what runs in it.
    let _ = server.refresh().await;
    Err(Code::SignedOut)
}
