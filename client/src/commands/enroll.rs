//! `adit enroll`: gets a certificate, with a code or over SSH. The private key is made here and
//! never leaves this device.

mod code;
mod flags;
mod keys;
mod paste;
mod sign_in;

use std::{
    fs::File,
    io::{IsTerminal, Read},
    path::Path,
    time::Duration,
};

use common::{
    machine::{
        control, json,
        process::{StopSignals, unix_now},
        report::{Exit, Failure, say, typed},
    },
    transport::tls,
};
use proto::{
    device_key::KeyUri,
    identity::{Certificate, Name},
    invitation::{MAX_CODE_LEN, is_address, is_loopback},
    wire::{EnrollDevice, Enrolled, OLLAMA_PORT},
};

use crate::{
    commands::{
        in_use::{self, OtherAdit},
        list::OneServer,
    },
    dial::clocks::Clocks,
    profile::{Profile, ProfileDir},
    ssh::{Remote, SshClient, SshError, SshTarget},
};

pub(crate) use flags::Enroll;
use flags::{code_on_the_command_line, looks_like_a_code};

/// How long the system's ssh may take to end after Ctrl-C, which it gets as well.
const SSH_ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Enrolls this device.
pub(crate) async fn run(state_dir: &Path, enroll: Enroll) -> Result<(), Failure> {
    let as_json = enroll.json;
    let place = enroll.key_place()?;
    let server = enroll.server().await?;
    let profile_dir = ProfileDir::new(state_dir, enroll.name.clone());
    let again = sign_in::again(&profile_dir, &enroll)?;
    if profile_dir.is_enrolled()? && !enroll.replace && again.is_none() {
        return Err(Failure::new(format!(
            "this device is enrolled already as `{}`",
            profile_dir.name
        ))
        .hint(format!(
            "to use it: `adit up{}`; to enroll again: `adit enroll --replace{}`",
            profile_dir.argument(),
            profile_dir.flag()
        ))
        .hint("to enroll at a second server: run the same command again with `--name NAME`"));
    }
    let profile = match server {
        Some(mut target) => {
            target.remote_command.clone_from(&enroll.remote_command);
            target.client = enroll.ssh.ssh_client.unwrap_or_default();
            // It is there only with `--replace`; a profile that cannot be read is replaced as well.
            if let Some(known) = profile_dir.read().ok().and_then(|profile| profile.ssh) {
                target = target.at_the_aditd_of(&known);
            }
            let device = device_name(enroll.device)?;
            by_ssh(profile_dir, target, device, place.as_ref(), None).await?
        }
        None => {
            let code = match sign_in::known_code(again.as_ref(), &enroll) {
                Some(code) => code,
                None => read_code(enroll.code_file.as_deref())?,
            };
            code::by_code(profile_dir, &code, &enroll, (place, again)).await?
        }
    };
    if as_json {
        json::answer(OneServer::look(profile.profile_dir.clone()).await)?;
    }
    let Enrolled { device, device_id, addresses, .. } = &profile.enrolled;
    let ways = addresses
        .iter()
        .cloned()
        .chain(profile.ssh.as_ref().map(ToString::to_string))
        .collect::<Vec<_>>();
    say(format!("Enrolled as {device} {device_id} at {}.", ways.join(", ")));
    if let Some(place) = profile.key().place() {
        say(format!("This device's key is {place}."));
    }
    say(typed(next(state_dir, &profile.profile_dir).await));
    Ok(())
}

/// What to do after an enrollment.
async fn next(state_dir: &Path, profile_dir: &ProfileDir) -> String {
    let argument = profile_dir.argument();
    let others = in_use::others(state_dir, &profile_dir.name).await;
    let holds = |adit: &OtherAdit| adit.listening.iter().any(|at| at.port() == OLLAMA_PORT);
    match others.into_iter().find(holds) {
        None => format!("Now run `adit up{argument}`, and use http://localhost:{OLLAMA_PORT}."),
        Some(adit) => format!(
            "Another server is on http://localhost:{OLLAMA_PORT} now. To use this one, too: `adit up{argument} --listen \
             localhost:11500`, and http://localhost:11500. Or both in one program: {}",
            adit.together(&argument)
        ),
    }
}

/// The name of this device on a server: the one that was chosen, or this computer's.
///
/// # Errors
/// If this computer's name is none.
pub(in crate::commands) fn device_name(chosen: Option<Name>) -> Result<Name, Failure> {
    chosen.or_else(own_name).ok_or_else(|| {
        Failure::new("this computer's name cannot be used as a device name")
            .hint("choose a name with `--device NAME`")
            .exit(Exit::Usage)
    })
}

/// Enrolls over SSH, in a login that is there already, or in one of its own. The key is made at `place`,
/// if that is given.
pub(in crate::commands) async fn by_ssh(
    profile_dir: ProfileDir,
    mut target: SshTarget,
    device: Name,
    place: Option<&KeyUri>,
    login: Option<&Remote>,
) -> Result<Profile, Failure> {
    profile_dir.prepare()?;
    let _lock = take(&profile_dir).await?;
    // With the same key this is the same device to the server, if the answer was lost or if it
    // enrolls again; otherwise its name would be taken.
    let same = profile_dir.key_of(&target, &device).filter(|key| keys::is_at(key, place));
    let token = format!("{target} {device}");
    let key = async {
        match same {
            Some(key) => Ok(key),
            None => keys::get(&profile_dir, place, token.as_bytes()).await,
        }
    };
    let mut stop = keys::listen(&profile_dir, place);
    let (key, csr) = keys::request(key, &mut stop).await?;
    let request = EnrollDevice { csr, own_knock: true, key_storage: key.storage() };
    let enrolling = async {
        match login {
            Some(login) => login.enroll(&target, &device, &request).await,
            None => target.enroll(&device, &request).await,
        }
    };
    let ordered = async {
        keys::stopped(&mut stop).await;
        tokio::time::sleep(SSH_ENDS_WITHIN).await;
    };
    let enrolled = tokio::select! {
        enrolled = enrolling => enrolled,
        () = interrupted(&target) => return Err(keys::interrupted()),
        () = ordered => return Err(keys::interrupted()),
    };
    let mut enrolled = enrolled.map_err(|e| {
        let failure = Failure::new(format!("cannot enroll at {target}"));
        match e {
            // The causes, the cures and the exit code that the server sent.
            SshError::Refused { failure: why, .. } if !why.hints().is_empty() => {
                failure.caused_by(why)
            }
            e => {
                let hint = e.hint(&target);
                failure.source(e).hint(hint)
            }
        }
    })?;
    target.relay_port = enrolled.relay_port;
    // A loopback address of the server would be this computer here.
    enrolled.addresses.retain(|address| is_address(address) && !is_loopback(address));
    let old = profile_dir.read().ok();
    let profile = Profile::new(profile_dir, enrolled, Some(target), key).in_place_of(old);
    check(&profile, None)?;
    profile.save()?;
    profile.profile_dir.keep_sign_in_code(None)?;
    Ok(profile)
}

/// At our own prompt the terminal's echo is off, and only an orderly end turns it on again. The
/// system's ssh does that itself.
pub(in crate::commands) async fn interrupted(target: &SshTarget) {
    if target.client == SshClient::Builtin
        && let Ok(mut stop) = StopSignals::listen()
    {
        return stop.asked().await;
    }
    std::future::pending().await
}

/// This computer's name as a device name: without its domain, and with `-` for other characters.
fn own_name() -> Option<Name> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_str().ok()?.split('.').next()?.to_owned();
    host.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect::<String>()
        .parse()
        .ok()
}

fn read_code(file: Option<&Path>) -> Result<String, Failure> {
    let code = match file {
        Some(path) if path.to_str().is_some_and(looks_like_a_code) && !path.exists() => {
            return Err(code_on_the_command_line());
        }
        Some(path) => std::fs::File::open(path).and_then(bounded).map_err(|e| {
            Failure::new(format!("cannot read the code from `{}`", path.display()))
                .source(e)
                .hint("use a file that contains the output of `aditd invite`, or leave out --code-file and paste the code")
                .exit(Exit::Usage)
        }),
        None if std::io::stdin().is_terminal() => {
            eprint!("Code from `aditd invite`: ");
            paste::read().map_err(|e| Failure::new("cannot read the code").source(e))
        }
        None => bounded(std::io::stdin())
            .map_err(|e| Failure::new("cannot read the code from standard input").source(e)),
    };
    // Bytes that are not text are reported by the parser of codes.
    Ok(String::from_utf8_lossy(&code?).into_owned())
}

/// Reads no more than a code and some text around it.
fn bounded(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    from.take(MAX_CODE_LEN as u64 + 1024).read_to_end(&mut read)?;
    Ok(read)
}

/// Takes possession of the enrollment, which a running `adit up` would go on with, and store again.
async fn take(profile_dir: &ProfileDir) -> Result<File, Failure> {
    let what = format!("the enrollment `{}` is in use", profile_dir.name);
    let taken = in_use::take(profile_dir, &what, control::lock).await;
    taken.map_err(|why| {
        why.hint("to enroll at a second server: run the same command again with `--name NAME`")
    })
}

/// Checks an answer before it is stored: the certificate is for this device's key, from the CA that
/// the code names, and valid now.
fn check(profile: &Profile, pinned: Option<[u8; 32]>) -> Result<(), Failure> {
    let bad = |why: &str| {
        Failure::new("the server's answer does not fit this device")
            .source(why.to_owned())
            .hint("get a new code with `aditd invite NAME`")
    };
    let ca = profile.ca().map_err(|e| bad(&e.to_string()))?;
    let hash = tls::key_hash(&ca).map_err(|e| bad(&e.to_string()))?.0;
    if pinned.is_some_and(|pinned| pinned != hash) {
        return Err(bad("its CA is not the one that the code names"));
    }
    // Fails if the certificate is for another key.
    profile.certified_key().map_err(|e| bad(&e.to_string()))?;
    let Certificate { device, not_before, not_after, .. } =
        profile.certificate().map_err(|e| bad(&e.to_string()))?;
    if device != Some(profile.enrolled.device_id) {
        return Err(bad("its certificate is for another device"));
    }
    if !(not_before..=not_after).contains(&unix_now()) {
        let clocks = Clocks::issued(not_before);
        return Err(Failure::new("the new certificate is not valid at this computer's time")
            .source(clocks)
            .hint(clocks.hint())
            .hint("then run the same command again, with the same code"));
    }
    Ok(())
}
