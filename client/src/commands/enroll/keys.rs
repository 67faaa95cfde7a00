//! The key with which a device enrolls: where it is to be, and the request that it signs.

use common::machine::{
    process::StopSignals,
    report::{Exit, Failure},
};
use data_encoding::BASE64;
use proto::device_key::{KeyUri, TokenUri};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::{
    device_key::{DeviceKey, HardwareKey},
    profile::{Profile, ProfileDir, SecretPem},
};

/// Whether a key is where it is wanted.
pub(super) fn is_at(key: &DeviceKey, wanted: Option<&KeyUri>) -> bool {
    match (wanted, key.uri()) {
        (None, _) => true,
        // A new label would be another key.
        (Some(KeyUri::Token(wanted)), KeyUri::Token(has)) => {
            let is_same_key = wanted.object.is_none() && wanted.id.is_none();
            // The stored URI has more of the token than the one that was typed.
            let or = |wanted: &Option<String>, has: &Option<String>| {
                wanted.clone().or_else(|| has.clone())
            };
            let same = TokenUri {
                object: if is_same_key { has.object.clone() } else { wanted.object.clone() },
                id: if is_same_key { has.id.clone() } else { wanted.id.clone() },
                token: or(&wanted.token, &has.token),
                serial: or(&wanted.serial, &has.serial),
                ..wanted.clone()
            };
            same == has
        }
        (Some(wanted), has) => *wanted == has,
    }
}

/// The key to enroll with, at the place that is `wanted`; without one, where the key of the profile is
/// that is replaced, and otherwise in a file. `token` is what the key was sent with, if an earlier try
/// got no answer.
pub(super) async fn get(
    profile_dir: &ProfileDir,
    wanted: Option<&KeyUri>,
    token: &[u8],
) -> Result<DeviceKey, Failure> {
    let kept = || profile_dir.read().ok().map(|profile| profile.key().uri());
    match wanted.cloned().or_else(kept).unwrap_or(KeyUri::File) {
        KeyUri::File => Ok(profile_dir.pending_key(token, make)?.into()),
        place => {
            let (state_dir, server) = (profile_dir.state_dir(), profile_dir.name.as_str());
            let seed = match place {
                KeyUri::Tpm(_) => Some(profile_dir.pending_seed(token)?),
                _ => None,
            };
            let made = HardwareKey::make(&place, seed, state_dir, server).await;
            Ok(DeviceKey::Hardware(made.map_err(Failure::from)?))
        }
    }
}

/// A person who signs in again keeps the key, and so its place.
pub(super) fn again(profile: &Profile, wanted: Option<&KeyUri>) -> Result<DeviceKey, Failure> {
    let key = profile.key();
    if is_at(&key, wanted) {
        return Ok(key);
    }
    Err(Failure::new(
        "`--key` is for a new key, but a device that signs in again keeps the key that it has",
    )
    .hint(format!(
        "leave out `--key`; or enroll anew: `adit enroll --sso --replace{}`, with a new code",
        profile.profile_dir.flag()
    ))
    .exit(Exit::Usage))
}

/// Listens for the order to stop, if the key will be in hardware: at the question for its PIN the
/// terminal's echo is off, and only an orderly end turns it on again. `wanted` is as for [`get`].
pub(super) fn listen(profile_dir: &ProfileDir, wanted: Option<&KeyUri>) -> Option<StopSignals> {
    let is_hardware = match wanted {
        Some(wanted) => *wanted != KeyUri::File,
        None => profile_dir.read().is_ok_and(|profile| profile.key().uri() != KeyUri::File),
    };
    is_hardware.then(|| StopSignals::listen_at_terminal().ok()).flatten()
}

/// Ends when the person or the system stops this program, if somebody listens for that.
pub(super) async fn stopped(stop: &mut Option<StopSignals>) {
    match stop {
        Some(stop) => stop.asked().await,
        None => std::future::pending().await,
    }
}

/// The key, and the request for a certificate, in base64, which the key signs; unless this program is
/// stopped before that.
pub(super) async fn request(
    key: impl Future<Output = Result<DeviceKey, Failure>>,
    stop: &mut Option<StopSignals>,
) -> Result<(DeviceKey, String), Failure> {
    let made = async {
        let key = key.await?;
        key.unlock().await?;
        let request = BASE64.encode(&key.request().await?);
        Ok((key, request))
    };
    tokio::select! {
        made = made => made,
        () = stopped(stop) => Err(interrupted()),
    }
}

/// The failure that this program was stopped.
pub(super) fn interrupted() -> Failure {
    Failure::new("interrupted").hint("run the same command again: it continues with the same key")
}

fn make() -> Result<SecretPem, Failure> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|e| Failure::new("cannot make a private key").source(e))?;
    Ok(SecretPem::new(key.serialize_pem()))
}
