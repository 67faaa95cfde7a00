//! A person signs in at the provider while the device waits.

use std::sync::Arc;

use common::{machine::report::Failure, transport::frame};
use proto::{
    identity::{KeyHash, Name},
    wire::{EnrollAnswer, EnrollRefusal, RedirectAnswer, SignInRequest},
};
use tracing::info;
use zeroize::Zeroizing;

use super::{enrolling::Enrolling, enrollment::Claim};
use crate::{
    audit::{Event, entry::EnrolledBy},
    oidc::{BrowserGrant, Grant, OidcError, Person, Provider},
    running::Server,
    state::register::SignedIn,
};

/// Lets the person sign in, if the code opens sign-ins.
///
/// # Errors
/// The answer to the device, if nobody has signed in.
///
/// # Cancel safety
/// Not cancel safe. It ends by itself when the device leaves.
pub(super) async fn run(
    server: &Arc<Server>,
    device: &mut Enrolling,
    token: Zeroizing<Vec<u8>>,
    key: KeyHash,
    wanted: SignInRequest,
) -> Result<Claim, EnrollAnswer> {
    let (now, asked) = (common::machine::process::unix_now(), token.clone());
    let opens = server.in_register(move |register| register.opens_sign_in(&asked, now)).await;
    match opens {
        Ok(Some(true)) => {}
        // An ordinary code needs no sign-in.
        Ok(Some(false)) => {
            return Ok(Claim::Invitation { token, from: device.from, ca: device.ca });
        }
        Ok(None) => return Err(EnrollAnswer::Refused(EnrollRefusal::Closed)),
        Err(_) => return Err(EnrollAnswer::Refused(EnrollRefusal::ServerFailed)),
    }
    let name = wanted.device.clone();
    let Some(provider) = server.sign_ins.provider() else {
        return Err(failed(server, device, &name, not_configured()));
    };
    let Some(_slot) = server.sign_ins.slot() else {
        let busy = Failure::new("too many people are signing in at this moment")
            .hint("run the same command again in a minute");
        return Err(failed(server, device, &name, busy));
    };
    // Nobody signs in for a name that is not free. Whoever has the code learns no more than that, and
    // each attempt is in the audit log.
    let asked = name.clone();
    let is_free =
        server.in_register(move |register| register.name_before_sign_in(&asked, key, now)).await;
    match is_free {
        Ok(Ok(())) => {}
        Err(_) => return Err(EnrollAnswer::Refused(EnrollRefusal::ServerFailed)),
        Ok(Err(_)) => return Err(failed(server, device, &name, not_free(&name))),
    }
    let signed_in = tokio::select! {
        signed_in = sign_in(&provider, device, wanted.redirect_port) => signed_in,
        () = server.draining.cancelled() => Err(stopping()),
    };
    match signed_in {
        Ok(person) => {
            info!(from = %device.from, user = %person.user, "signed in");
            let person = signed_in_as(provider.issuer(), person);
            let (from, ca) = (device.from, device.ca);
            Ok(Claim::SignIn { token, from, ca, name, person: Box::new(person) })
        }
        Err(why) => Err(failed(server, device, &name, why)),
    }
}

/// What the register keeps of somebody who has signed in.
pub(super) fn signed_in_as(issuer: &str, person: Person) -> SignedIn {
    let Person { subject, user, role, refresh_token } = person;
    SignedIn { issuer: issuer.to_owned(), subject, user, role, refresh_token }
}

async fn sign_in(
    provider: &Provider,
    device: &mut Enrolling,
    redirect_port: Option<u16>,
) -> Result<Person, Failure> {
    let told = |e: OidcError| e.failure();
    match provider.begin(redirect_port).await.map_err(told)? {
        Grant::Device(grant) => {
            device.tell(&EnrollAnswer::SignIn(grant.step())).await.map_err(|_| left())?;
            tokio::select! {
                person = provider.wait(grant) => person.map_err(told),
                // A device that waits says nothing.
                _ = frame::read::<RedirectAnswer>(&mut device.recv) => Err(left()),
            }
        }
        Grant::Browser(grant) => {
            device.tell(&EnrollAnswer::SignIn(grant.step())).await.map_err(|_| left())?;
            let brought = frame::read::<RedirectAnswer>(&mut device.recv);
            match tokio::time::timeout(BrowserGrant::WITHIN, brought).await {
                Ok(Ok(brought)) => provider.redeem(grant, brought).await.map_err(told),
                Ok(Err(_)) => Err(left()),
                Err(_) => Err(told(OidcError::CodeExpired)),
            }
        }
    }
}

/// Notes a sign-in that has failed, and makes the answer.
fn failed(server: &Server, device: &Enrolling, name: &Name, why: Failure) -> EnrollAnswer {
    let by = EnrolledBy::Sso(device.from);
    let text = why.to_string().replace('\n', " ");
    info!(from = %device.from, "nobody has signed in: {text}");
    server.accounting.audit.note(Event::EnrollRefused {
        device: Some(name.clone()),
        by,
        why: text,
    });
    EnrollAnswer::Failed(Box::new(why))
}

fn left() -> Failure {
    Failure::new("the device has left before anybody signed in")
}

fn stopping() -> Failure {
    Failure::new("aditd is stopping on the server").hint("run the same command again in a moment")
}

/// For somebody who has not signed in: why it is not free is told nobody yet.
fn not_free(name: &Name) -> Failure {
    Failure::new(format!("the name `{name}` is not free"))
        .hint("choose another name: run the same command again with `--device NAME`")
}

fn not_configured() -> Failure {
    Failure::new("the server has no provider for signing in")
        .hint("its owner names one in the configuration: `[oidc]`, then `aditd reload`")
}
