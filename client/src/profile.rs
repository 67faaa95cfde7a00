//! What a device stores for each server: its key and certificate, the CA that it trusts, and the
//! server's addresses. One file for each server, which only its owner can read.

mod pending;
mod sign_in;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    machine::{
        files::{self, FileError},
        process::unix_now,
        report::{Exit, Failure},
    },
    transport::tls,
};
use data_encoding::BASE64;
use proto::{
    identity::{Certificate, Name, UserName},
    wire::{Enrolled, Reason, Revocation},
};
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use serde::{Deserialize, Serialize};

pub use crate::device_key::{DeviceKey, SecretPem};
use crate::{
    device_key::{
        HardwareKey, StoredHardware,
        pem::{stored_key, take_key, to_bytes},
    },
    ssh::SshTarget,
};

/// The name of a server that was enrolled without a name.
pub(crate) const DEFAULT_NAME: &str = "default";
/// The file of a profile.
pub(crate) const IDENTITY: &str = "identity.json";
/// The newest format that is read. Since 2 a device may have a knock key of its own, and since 3 its
/// private key may be in hardware.
const SCHEMA: u32 = 3;
/// The format of a profile with its private key: older versions read it, too.
const SCHEMA_WITH_KEY: u32 = 2;

/// The directory of one server's profile: `servers/NAME` in the state directory.
#[derive(Debug, Clone)]
pub struct ProfileDir {
    /// The directory.
    pub dir: PathBuf,
    /// The server's name on this device.
    pub name: Name,
}

/// The profile of a running tunnel, which changes while it runs. Clones share it.
#[derive(Clone)]
pub(crate) struct SharedProfile(Arc<Mutex<Profile>>);

impl SharedProfile {
    /// Shares a profile.
    pub(crate) fn new(profile: Profile) -> Self {
        Self(Arc::new(Mutex::new(profile)))
    }

    /// A copy of the profile as it is now.
    pub(crate) fn get(&self) -> Profile {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores the profile, and replaces this one only then.
    ///
    /// # Errors
    /// It can't be written. Nothing has changed then.
    pub(crate) fn store_first(&self, profile: Profile) -> Result<(), FileError> {
        profile.save()?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = profile;
        Ok(())
    }

    /// Replaces the profile and stores it. If storing fails, the new profile is still used.
    pub(crate) fn store(&self, profile: Profile) {
        if let Err(e) = profile.save() {
            tracing::warn!("{e}: the new settings are in use, but will be lost when adit restarts");
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = profile;
    }
}

/// The result of enrolling: everything that is needed to connect.
#[derive(Clone)]
pub struct Profile {
    /// Where it is stored.
    pub profile_dir: ProfileDir,
    /// What the server sent about itself and about this device.
    pub enrolled: Enrolled,
    /// How to reach the server over SSH, if the device enrolled over SSH.
    pub ssh: Option<SshTarget>,
    /// The server has said that it revoked this device. It is stored because the server does not
    /// answer packets of a revoked device. A new enrollment ends it, and a session.
    pub revoked: Option<Revocation>,
    /// What the server gave this device to remember: the epoch of its register.
    pub epoch: Option<String>,
    /// The local port beside another server, if it has got one.
    pub port: Option<u16>,
    /// The code that opens sign-ins at this server, if this device has enrolled with one. It admits
    /// nobody by itself.
    pub sign_in_code: Option<String>,
    /// When this device enrolled first, Unix seconds. Profiles of older versions do not have it.
    pub enrolled_at: Option<i64>,
    key: DeviceKey,
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    schema: u32,
    #[serde(flatten)]
    enrolled: Enrolled,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ssh: Option<SshTarget>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    revoked: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_user: Option<UserName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sign_in_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enrolled_at: Option<i64>,
    /// `None` if the key is in hardware.
    #[serde(default, with = "stored_key", skip_serializing_if = "Option::is_none")]
    private_key: Option<Arc<SecretPem>>,
    /// `None` if the key is in this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hardware_key: Option<StoredHardware>,
}

/// The default state directory.
pub(crate) fn default_dir() -> Result<PathBuf, Failure> {
    directories::ProjectDirs::from("", "", "adit")
        .map(|dirs| dirs.data_local_dir().to_owned())
        .ok_or_else(|| {
            Failure::new("there is no home directory in which to store this device's key")
                .hint("choose a directory with --state-dir or ADIT_STATE_DIR")
                .exit(Exit::Usage)
        })
}

impl ProfileDir {
    /// The directory of the server `name` in a state directory.
    pub fn new(state_dir: &Path, name: Name) -> Self {
        Self { dir: state_dir.join("servers").join(name.as_str()), name }
    }

    /// The profile that `adit` with this `command` uses: the named one; without a name the only one,
    /// or `default`.
    pub fn choose(state_dir: &Path, name: Option<Name>, command: &str) -> Result<Self, Failure> {
        if let Some(name) = name {
            return Ok(Self::new(state_dir, name));
        }
        let default =
            Self::new(state_dir, DEFAULT_NAME.parse().expect("the default name is a name"));
        let known = known(state_dir)?;
        match known.as_slice() {
            [only] => Ok(Self::new(state_dir, only.clone())),
            several if several.len() > 1 && !several.contains(&default.name) => {
                let names = several.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
                Err(Failure::new(format!("this device is enrolled at several servers: {names}"))
                    .hint(match command.strip_suffix("--server") {
                        // What else this command needs is the person's to say.
                        Some(_) => format!("choose one with `--server {}`", several[0]),
                        None => format!("choose one: `adit {command} {}`", several[0]),
                    })
                    .exit(Exit::Usage))
                .map_err(|failure| match command {
                    "up" => failure.hint("or use all of them: `adit up --all`"),
                    _ => failure,
                })
            }
            _ => Ok(default),
        }
    }

    /// The state directory, where the profiles of all servers are.
    pub fn state_dir(&self) -> &Path {
        self.dir.parent().and_then(Path::parent).unwrap_or(&self.dir)
    }

    /// Its name as an argument of a command, with a space before it; empty for the default name.
    pub fn argument(&self) -> String {
        if self.name.as_str() == DEFAULT_NAME { String::new() } else { format!(" {}", self.name) }
    }

    /// The same as a flag of `adit enroll`.
    pub fn flag(&self) -> String {
        if self.name.as_str() == DEFAULT_NAME {
            String::new()
        } else {
            format!(" --name {}", self.name)
        }
    }

    /// The key of this profile, if its device has the name `device` and reaches its server by
    /// `way`. Enrolled again with this key, it stays the same device.
    pub fn key_of(&self, target: &SshTarget, device: &Name) -> Option<DeviceKey> {
        let profile = self.read().ok()?;
        let same = profile.ssh.as_ref().is_some_and(|known| known.leads_to_the_same(target));
        (same && profile.enrolled.device == *device).then_some(profile.key)
    }

    /// Whether the profile exists.
    pub(crate) fn is_enrolled(&self) -> Result<bool, FileError> {
        let path = self.dir.join(IDENTITY);
        path.try_exists().map_err(FileError::io("read", path))
    }

    pub fn read(&self) -> Result<Profile, Failure> {
        let path = self.dir.join(IDENTITY);
        let mut text = match files::read(&path) {
            Err(e) if e.is_not_found() => {
                return Err(self.not_enrolled(&path)?);
            }
            other => other?,
        };
        let pem = take_key(&mut text);
        // Read before the rest, whose format depends on it.
        let Version { schema } = serde_json::from_slice(&text).map_err(|e| damaged(&path, e))?;
        if schema > SCHEMA {
            return Err(Failure::new(format!(
                "`{}` was written by a newer version of adit",
                path.display()
            ))
            .hint("use the newer adit"));
        }
        let stored: Stored = serde_json::from_slice(&text).map_err(|e| damaged(&path, e))?;
        let key = match (stored.private_key, stored.hardware_key) {
            (Some(blank), None) => DeviceKey::File(pem.map_or(blank, Arc::new)),
            (None, Some(stored)) => HardwareKey::stored(stored, self.state_dir())
                .map(DeviceKey::Hardware)
                .map_err(|why| damaged(&path, why))?,
            _ => return Err(damaged(&path, "it has not exactly one private key")),
        };
        let profile = Profile {
            profile_dir: self.clone(),
            enrolled: stored.enrolled,
            ssh: stored.ssh,
            revoked: stored
                .revoked
                .then_some(Revocation { user: stored.revoked_user, reason: stored.revoked_reason }),
            epoch: stored.epoch,
            port: stored.port,
            // Older versions kept it in the profile.
            sign_in_code: self.kept_sign_in_code().or(stored.sign_in_code),
            enrolled_at: stored.enrolled_at,
            key,
        };
        profile.certified_key().map_err(|e| damaged(&path, plain(&e)))?;
        profile.certificate().map_err(|e| damaged(&path, plain(&e)))?;
        profile
            .ca()
            .and_then(tls::roots)
            .map_err(|e| damaged(&path, format!("the server's authority: {}", plain(&e))))?;
        Ok(profile)
    }

    /// The failure that there is no profile of this name, with the names that there are.
    fn not_enrolled(&self, path: &Path) -> Result<Failure, Failure> {
        let known = match self.dir.parent().and_then(Path::parent) {
            Some(state_dir) => known(state_dir)?,
            None => Vec::new(),
        };
        let enroll = format!(
            "on the server run `aditd invite NAME`, then here `adit enroll{}`",
            self.flag()
        );
        let failure =
            |what: String| Failure::new(what).source(format!("there is no `{}`", path.display()));
        Ok(match known.as_slice() {
            [] => failure("this device is not enrolled".to_owned()).hint(enroll),
            [first, ..] => {
                let names =
                    known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                failure(format!(
                    "this device is not enrolled at a server `{}`: it knows {names}",
                    self.name
                ))
                .hint(format!("to use that one: `adit up {first}`"))
                .hint(format!("to enroll at another: {enroll}"))
            }
        })
    }

    /// Creates the directory (mode 0700).
    pub fn prepare(&self) -> Result<(), FileError> {
        let servers = self.dir.parent().unwrap_or(&self.dir);
        files::create_dir(servers.parent().unwrap_or(servers))?;
        files::create_dir(servers)?;
        files::create_dir(&self.dir)
    }
}

fn damaged(path: &Path, why: impl ToString) -> Failure {
    let name = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let flag = match name {
        Some(name) if name != DEFAULT_NAME => format!(" --name {name}"),
        _ => String::new(),
    };
    Failure::from_error(FileError::damaged(path, why))
        .hint(format!("put it back from a backup, or enroll again: on the server `aditd invite NAME`, then here `adit enroll --replace{flag}`"))
}

/// The text of our own errors, without the library's prefix.
fn plain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::General(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The servers that this device is enrolled at, by name.
pub(crate) fn known(state_dir: &Path) -> Result<Vec<Name>, Failure> {
    let dir = state_dir.join("servers");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FileError::io("read", dir)(e).into()),
    };
    let mut names: Vec<Name> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|name: &Name| {
            ProfileDir::new(state_dir, name.clone()).is_enrolled().unwrap_or(false)
        })
        .collect();
    names.sort();
    Ok(names)
}

impl Profile {
    pub fn new(
        profile_dir: ProfileDir,
        enrolled: Enrolled,
        ssh: Option<SshTarget>,
        key: impl Into<DeviceKey>,
    ) -> Self {
        Self {
            profile_dir,
            enrolled,
            ssh,
            revoked: None,
            epoch: None,
            port: None,
            sign_in_code: None,
            enrolled_at: Some(unix_now()),
            key: key.into(),
        }
    }

    /// The same with what this device keeps when it enrolls again.
    pub(crate) fn in_place_of(self, old: Option<Self>) -> Self {
        match old {
            Some(old) => Self { port: old.port, enrolled_at: old.enrolled_at, ..self },
            None => self,
        }
    }

    /// The device's private key.
    pub(crate) fn key(&self) -> DeviceKey {
        self.key.clone()
    }

    /// Stores the profile. If that fails, the old file is unchanged.
    pub fn save(&self) -> Result<(), FileError> {
        let path = self.profile_dir.dir.join(IDENTITY);
        let Revocation { user, reason } = self.revoked.clone().unwrap_or_default();
        let (private_key, hardware_key) = match &self.key {
            DeviceKey::File(pem) => (Some(pem.clone()), None),
            DeviceKey::Hardware(key) => (None, Some(key.to_stored())),
        };
        let stored = Stored {
            schema: if hardware_key.is_some() { SCHEMA } else { SCHEMA_WITH_KEY },
            enrolled: self.enrolled.clone(),
            ssh: self.ssh.clone(),
            revoked: self.revoked.is_some(),
            revoked_reason: reason,
            revoked_user: user,
            epoch: self.epoch.clone(),
            port: self.port,
            sign_in_code: self.sign_in_code.clone(),
            enrolled_at: self.enrolled_at,
            private_key,
            hardware_key,
        };
        files::replace(&path, &to_bytes(&path, &stored)?)?;
        self.profile_dir.remove_pending()
    }

    /// The device's certificate and key, for TLS.
    pub fn certified_key(&self) -> Result<Arc<CertifiedKey>, rustls::Error> {
        let certified =
            CertifiedKey::new(vec![decode(&self.enrolled.certificate)?], self.key.signing_key()?);
        // Fails if the certificate is for another key.
        certified.keys_match()?;
        Ok(Arc::new(certified))
    }

    /// The certificate of the server's CA.
    pub fn ca(&self) -> Result<CertificateDer<'static>, rustls::Error> {
        decode(&self.enrolled.ca)
    }

    /// The contents of the device's certificate.
    pub fn certificate(&self) -> Result<Certificate, rustls::Error> {
        Certificate::from_der(&decode(&self.enrolled.certificate)?)
            .map_err(|e| rustls::Error::General(e.to_string()))
    }
}

fn decode(base64: &str) -> Result<CertificateDer<'static>, rustls::Error> {
    let der = BASE64
        .decode(base64.as_bytes())
        .map_err(|_| rustls::Error::General("a certificate is not base64".to_owned()))?;
    Ok(CertificateDer::from(der))
}
