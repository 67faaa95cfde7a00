//! Enrolls with a code: one for this device, or one that opens a sign-in.

use std::time::Duration;

use common::{
    machine::{
        control::{self, ClaimError},
        network::own_network_or_example,
        process::{StopSignals, unix_now},
        progress::Progress,
        report::{Exit, Failure, say},
    },
    transport::{frame, tls},
};
use data_encoding::BASE64;
use proto::{
    clock::shown,
    device_key::KeyUri,
    human,
    invitation::{CodeError, Invitation, is_loopback},
    wire::{ADITD_PORT, Code, EnrollAnswer, EnrollRefusal, EnrollRequest, SignInStep},
};

use super::{Enroll, check, device_name, keys, sign_in::SignIn, take};
use crate::{
    device_key::DeviceKey,
    dial::{self, DialError, clocks::Clocks},
    profile::{Profile, ProfileDir},
};

const EXCHANGE_WITHIN: Duration = Duration::from_secs(30);
/// How long a person may take to sign in. The server gives up earlier.
const SIGN_IN_WITHIN: Duration = Duration::from_secs(20 * 60);

/// Enrolls with this code. `place` is where the key is to be, if that was said; `again` is the profile of
/// a device that has signed in before.
pub(super) async fn by_code(
    profile_dir: ProfileDir,
    code: &str,
    flags: &Enroll,
    (place, again): (Option<KeyUri>, Option<Profile>),
) -> Result<Profile, Failure> {
    let invitation: Invitation = code.parse().map_err(wrong_code)?;
    if invitation.expires <= unix_now() {
        return Err(expired(&invitation));
    }
    if flags.sso && !invitation.sign_in {
        return Err(Failure::new("this code is for one device, and opens no sign-in")
            .hint("leave out `--sso`; or ask for a code from `aditd invite --sso`")
            .exit(Exit::Usage));
    }
    let wanted = match (invitation.sign_in, &again) {
        (false, _) => flags.refuse_device_name().map(|()| None)?,
        (true, Some(profile)) => Some(profile.enrolled.device.clone()),
        (true, None) => Some(device_name(flags.device.clone())?),
    };
    let token = invitation.secret.token();
    profile_dir.prepare()?;
    // A running `adit up` goes on with the same key, and gets its certificate by itself.
    let lock = match &again {
        Some(_) => match control::lock(&profile_dir.dir) {
            Ok(lock) => Some(lock),
            Err(ClaimError::Taken { .. }) => None,
            Err(ClaimError::File(e)) => return Err(e.into()),
        },
        None => Some(take(&profile_dir).await?),
    };
    let mut stop = keys::listen(&profile_dir, place.as_ref());
    let key = async {
        match &again {
            Some(profile) => keys::again(profile, place.as_ref()),
            None => keys::get(&profile_dir, place.as_ref(), &*token).await,
        }
    };
    let (key, csr) = keys::request(key, &mut stop).await?;
    // A code that was pasted just now has another cure than one that was kept.
    let kept = again.as_ref().filter(|it| it.sign_in_code.as_deref() == Some(code.trim()));
    say(format!("Asking {} …", invitation.addresses.join(", ")));
    let answer = match wanted {
        None => {
            let _progress = Progress::show("waiting for an answer");
            ask(&invitation, (&key, csr), None, kept, &mut stop).await
        }
        Some(device) => {
            let mut sign_in = SignIn::new(device, !flags.no_browser).await;
            let mut stop = stop.or_else(|| StopSignals::listen_at_terminal().ok());
            ask(&invitation, (&key, csr), Some(&mut sign_in), kept, &mut stop).await
        }
    };
    let enrolled = match answer? {
        EnrollAnswer::Enrolled(enrolled) => *enrolled,
        EnrollAnswer::Refused(EnrollRefusal::Closed) if kept.is_some() => {
            return Err(kept_code_ended("the server has withdrawn it", &profile_dir));
        }
        EnrollAnswer::Refused(why) => return Err(refused(why, &invitation)),
        EnrollAnswer::Failed(why) => return Err(*why),
        EnrollAnswer::SignIn(_) => return Err(unexpected()),
    };
    let old = profile_dir.read().ok();
    let mut profile = Profile::new(profile_dir, enrolled, None, key).in_place_of(old);
    profile.sign_in_code = invitation.sign_in.then(|| invitation.code().to_string());
    check(&profile, Some(invitation.ca))?;
    if lock.is_some() {
        profile.save()?;
    }
    profile.profile_dir.keep_sign_in_code(profile.sign_in_code.as_deref())?;
    Ok(profile)
}

/// The failure that the code which this device has kept opens nothing any more.
fn kept_code_ended(why: &str, profile_dir: &ProfileDir) -> Failure {
    Failure::new("the code that this computer has kept for signing in does not work any more")
        .source(why.to_owned())
        .hint(format!(
            "get a new one on the server: `aditd invite --sso`; then paste it here: `adit enroll --sso --new-code{}`",
            profile_dir.flag()
        ))
}

/// Why a kept code gets no answer, if this device knows: a newer CA than that of the code.
fn silent(error: &DialError, invitation: &Invitation, kept: Option<&Profile>) -> Option<Failure> {
    let profile = kept.filter(|_| matches!(error, DialError::NoAnswer(_)))?;
    let newest = tls::key_hash(&profile.ca().ok()?).ok()?.0;
    let why = format!(
        "it is older than the server's certificate authority, and {error}: the one that it names has probably ended"
    );
    (newest != invitation.ca).then(|| kept_code_ended(&why, &profile.profile_dir))
}

fn unexpected() -> Failure {
    Failure::new("the server gave an unexpected answer")
        .hint("install the same version of adit and aditd")
}

fn wrong_code(error: CodeError) -> Failure {
    let hint = match error {
        CodeError::Version(_) => "install the version of adit that the server's aditd has",
        _ => "copy the whole line that `aditd invite` printed, and paste it again",
    };
    Failure::new("invalid code").source(error).hint(hint).exit(Exit::Usage)
}

/// What makes another code of this kind on the server.
fn invite(invitation: &Invitation) -> &'static str {
    if invitation.sign_in { "aditd invite --sso" } else { "aditd invite NAME" }
}

fn expired(invitation: &Invitation) -> Failure {
    Failure::new("the invitation has expired")
        .source(format!(
            "it was valid until {}, and this computer's clock shows {}",
            shown(invitation.expires),
            shown(unix_now())
        ))
        .hint(format!(
            "get a new one on the server: `{}`; if the time looks wrong, check both clocks",
            invite(invitation)
        ))
}

async fn ask(
    invitation: &Invitation,
    (key, csr): (&DeviceKey, String),
    sign_in: Option<&mut SignIn>,
    kept: Option<&Profile>,
    stop: &mut Option<StopSignals>,
) -> Result<EnrollAnswer, Failure> {
    let crypto = tls::enroll_client(invitation.ca)
        .map_err(|e| Failure::new("cannot set up TLS").source(e))?;
    let within = if sign_in.is_some() { SIGN_IN_WITHIN } else { EXCHANGE_WITHIN };
    let config = dial::config(crypto, &invitation.secret.knock_key().into(), within);
    let dialed = tokio::select! {
        dialed = dial::dial(&config, &invitation.addresses, None) => dialed,
        () = keys::stopped(stop) => return Err(keys::interrupted()),
    };
    let dialed = dialed.map_err(|why| {
        silent(&why, invitation, kept).unwrap_or_else(|| not_reached(why, invitation, kept))
    })?;
    let request = EnrollRequest {
        token: BASE64.encode(&*invitation.secret.token()).into(),
        csr,
        own_knock: true,
        key_storage: key.storage(),
        sign_in: sign_in.as_ref().map(|sign_in| sign_in.request()),
    };
    let exchange = async {
        let (mut send, mut recv) = dialed.connection.open_bi().await?;
        frame::write(&mut send, &request).await?;
        let first = tokio::time::timeout(EXCHANGE_WITHIN, frame::read(&mut recv)).await??;
        match (first, sign_in) {
            (EnrollAnswer::SignIn(step), Some(sign_in)) => {
                let brought = sign_in.guide(&step).await?;
                if let Some(brought) = brought {
                    frame::write(&mut send, &brought).await?;
                }
                let _progress = Progress::show(match step {
                    SignInStep::Device { .. } => "waiting until you have signed in",
                    SignInStep::Browser { .. } => "waiting for an answer",
                });
                frame::read::<EnrollAnswer>(&mut recv).await
            }
            (answer, _) => Ok(answer),
        }
    };
    let finish = "run the same command again with the same code: on this device it works until it expires, even if the server has enrolled it already";
    let unfinished = |failure: Failure| failure.hint(finish);
    let answer = tokio::select! {
        answer = tokio::time::timeout(within, exchange) => match answer {
            Ok(answer) => answer.map_err(|e: std::io::Error| {
                unfinished(Failure::new("the server did not finish the enrollment").source(e))
            }),
            Err(_) => Err(unfinished(Failure::new(format!(
                "the server did not finish the enrollment within {}",
                human::time(within)
            )))),
        },
        () = keys::stopped(stop) => Err(keys::interrupted()),
    };
    dialed.connection.close((Code::Done as u32).into(), b"");
    // So that the server receives the close now, and need not wait for the time-out.
    let _ = tokio::time::timeout(Duration::from_secs(1), dialed.endpoint.wait_idle()).await;
    answer
}

fn not_reached(error: DialError, invitation: &Invitation, kept: Option<&Profile>) -> Failure {
    let failure = Failure::new("cannot enroll").source(error.clone());
    if let DialError::WrongServer(_) = error {
        let why = "the server at that address did not make this code: its certificate comes from another CA";
        return Failure::new("cannot enroll")
            .source(why)
            .hint("get a new code on the server; if this happens again, somebody may be intercepting the connection");
    }
    match error {
        // Silence on loopback comes from a server here, which does not know the code.
        DialError::Unreachable(_)
            if invitation.addresses.iter().all(|address| is_loopback(address)) =>
        {
            failure
                .source(format!(
                    "{error}; the code names no address that other machines reach, because its server listens on loopback only"
                ))
                .hint(format!(
                    "if aditd runs on another machine, let it listen there for this network: `aditd serve --listen \
                     0.0.0.0:{ADITD_PORT} --allow-from {}`, and make a new code: `{}`",
                    own_network_or_example(),
                    invite(invitation)
                ))
                .hint("if it is on this computer, nothing listens on that UDP port: start it with `aditd serve`")
        }
        DialError::NoAnswer(_) => failure
            .hint(
                "check on the server that aditd runs and listens on that address (`aditd status`), that its --allow-from \
                 includes this network, and that no firewall blocks UDP",
            )
            .hint(match kept {
                Some(profile) => format!(
                    "if all of that is right, the code that this computer has kept may have ended: make a new one with `{}`, and paste it here: `adit enroll --sso --new-code{}`",
                    invite(invitation),
                    profile.profile_dir.flag()
                ),
                None => format!(
                    "if all of that is right, the code may have expired or been replaced by a newer one: make a new one with `{}`",
                    invite(invitation)
                ),
            }),
        other => other.general_hint().into_iter().fold(failure, Failure::hint),
    }
}

fn refused(why: EnrollRefusal, invitation: &Invitation) -> Failure {
    let hint = match why {
        EnrollRefusal::Used | EnrollRefusal::Closed => {
            &format!("get a new one on the server: `{}`", invite(invitation))
        }
        EnrollRefusal::SignIn => "sign in with it: `adit enroll --sso`",
        EnrollRefusal::BadRequest => "install the same version of adit and aditd",
        EnrollRefusal::NotAllowed => "ask the owner of the server",
        EnrollRefusal::Clock { shows } => {
            let clocks = Clocks::admitted(Some(shows));
            return Failure::new("the server refused to enroll this device")
                .source(clocks)
                .hint(clocks.hint())
                .hint("then run the same command again, with the same code");
        }
        EnrollRefusal::ServerFailed | EnrollRefusal::NotAsked => {
            "correct that on the server, then run the same command again, with the same code"
        }
    };
    let exit = if matches!(why, EnrollRefusal::Used | EnrollRefusal::NotAllowed) {
        Exit::NotAllowed
    } else {
        Exit::Failed
    };
    Failure::new("the server refused to enroll this device").source(why).hint(hint).exit(exit)
}

#[cfg(test)]
mod tests {
    use proto::invitation::Secret;

    use super::*;

    #[test]
    fn another_code_is_of_the_same_kind() {
        for (sign_in, command) in [(false, "`aditd invite NAME`"), (true, "`aditd invite --sso`")] {
            let invitation = Invitation {
                addresses: vec!["192.0.2.1:11435".to_owned()],
                ca: [0; 32],
                expires: 0,
                secret: Secret::generate(),
                sign_in,
            };
            for told in [
                not_reached(DialError::NoAnswer("192.0.2.1:11435".to_owned()), &invitation, None),
                refused(EnrollRefusal::Closed, &invitation),
                expired(&invitation),
            ] {
                let hints = told.hints().join(" ");
                assert_eq!(hints.matches(command).count(), 1, "{hints}");
                assert_eq!(hints.matches("aditd invite").count(), 1, "{hints}");
            }
        }
    }
}
