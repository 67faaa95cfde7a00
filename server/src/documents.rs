//! What the commands print with `--json` and the API answers: each document once. Times are Unix
//! seconds. A running server adds what only it knows: sessions, and what runs.

use std::collections::{HashMap, HashSet};

use common::machine::process::unix_now;
use proto::{
    api_key::ApiKey,
    device_key::KeyStorage,
    identity::{DeviceId, Name, UserName},
    ollama::model::ModelPattern,
    rotation::CaNumber,
    wire::Reason,
};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use crate::{
    changes::MadeKey,
    running::{TokensToday, sessions::SessionStatus},
    state::{
        codes::MadeCode,
        register::{Device, Invited, Key, KnownUser, Register, RegisterError},
        rotation::{DeviceBehind, Retired},
    },
};

/// A device.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceShown {
    pub(crate) name: Name,
    pub(crate) id: DeviceId,
    pub(crate) role: Name,
    /// The models that it may use; null if its role decides.
    pub(crate) models: Option<Vec<ModelPattern>>,
    pub(crate) enrolled: i64,
    /// The user of this machine who enrolled it over SSH, or null.
    pub(crate) uid: Option<u32>,
    /// The name of that user, if the command that prints it knows it.
    pub(crate) login: Option<String>,
    /// The person to whom it belongs; null if it counts as a user of its own.
    pub(crate) user: Option<UserName>,
    /// Whether that user is revoked: then the device is not let in either.
    pub(crate) user_revoked: bool,
    pub(crate) seen: Option<i64>,
    pub(crate) certificate_until: i64,
    pub(crate) revoked: Option<i64>,
    /// Since when it is held back until it is confirmed, or null.
    pub(crate) to_confirm: Option<i64>,
    /// Whether its person has signed in at the provider.
    pub(crate) sso: bool,
    /// Since when the provider says that the sign-in has ended, or null.
    pub(crate) signed_out: Option<i64>,
    /// Why it was revoked, in the owner's words, or null.
    pub(crate) reason: Option<Reason>,
    /// How it keeps its key, as it says: `file`, `pkcs11`, `tpm` or `unknown`.
    pub(crate) key_storage: KeyStorage,
    pub(crate) session: Option<SessionStatus>,
}

/// A key.
#[derive(Debug, Serialize)]
pub(crate) struct KeyShown {
    pub(crate) name: Name,
    pub(crate) id: DeviceId,
    pub(crate) role: Name,
    /// The models that it may use; null if its role decides.
    pub(crate) models: Option<Vec<ModelPattern>>,
    /// The person to whom it belongs, or null.
    pub(crate) user: Option<UserName>,
    pub(crate) created: i64,
    pub(crate) seen: Option<i64>,
    pub(crate) revoked: Option<i64>,
    /// How many requests run with it.
    pub(crate) running: usize,
    /// Its secrets, the newest first. Old secrets are listed until they end, the newest one always.
    pub(crate) secrets: Vec<SecretShown>,
}

/// A secret of a key, without the secret itself.
#[derive(Debug, Serialize)]
pub(crate) struct SecretShown {
    pub(crate) prefix: String,
    pub(crate) created: i64,
    /// When it ends; null for never.
    pub(crate) expires: Option<i64>,
}

/// A user, with what belongs to it.
#[derive(Debug, Serialize)]
pub(crate) struct UserShown {
    pub(crate) name: UserName,
    /// The role of devices that it enrolls over SSH later; null for the default role.
    pub(crate) role: Option<Name>,
    pub(crate) revoked: Option<i64>,
    /// Why it was revoked, in the owner's words, or null.
    pub(crate) reason: Option<Reason>,
    /// When any of its devices or keys was last used.
    pub(crate) seen: Option<i64>,
    pub(crate) devices: Vec<DeviceShown>,
    pub(crate) keys: Vec<KeyShown>,
    /// Its open invitations.
    pub(crate) invitations: Vec<Invited>,
}

/// What only a running server knows. Without one: nothing.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) sessions: HashMap<DeviceId, SessionStatus>,
    /// How many requests run with each key.
    pub(crate) running: HashMap<DeviceId, usize>,
}

/// How things are shown: by what the register and a running server know now.
#[derive(Debug, Default)]
pub(crate) struct View {
    live: Live,
    revoked_users: HashSet<UserName>,
}

impl View {
    /// Blocks.
    pub(crate) fn new(register: &Register, live: Live) -> Result<Self, RegisterError> {
        Ok(Self { live, revoked_users: register.revoked_users()? })
    }

    pub(crate) fn device(&self, device: Device) -> DeviceShown {
        DeviceShown {
            session: self.live.sessions.get(&device.id).cloned(),
            name: device.name,
            id: device.id,
            role: device.role,
            models: device.models,
            enrolled: device.enrolled,
            uid: device.uid,
            login: None,
            user_revoked: device
                .user
                .as_ref()
                .is_some_and(|user| self.revoked_users.contains(user)),
            user: device.user,
            seen: device.seen,
            certificate_until: device.not_after,
            revoked: device.revoked,
            to_confirm: device.held,
            sso: device.sign_in.is_some(),
            signed_out: device.sign_in.and_then(|sign_in| sign_in.ended),
            reason: device.reason,
            key_storage: device.key_storage,
        }
    }

    pub(crate) fn key(&self, key: Key) -> KeyShown {
        let now = unix_now();
        let secrets = key.secrets.into_iter().enumerate();
        let secrets = secrets.filter(|(i, secret)| *i == 0 || secret.is_valid(now));
        KeyShown {
            running: self.live.running.get(&key.id).copied().unwrap_or(0),
            name: key.name,
            id: key.id,
            role: key.role,
            models: key.models,
            user: key.user,
            created: key.created,
            seen: key.seen,
            revoked: key.revoked,
            secrets: secrets
                .map(|(_, secret)| SecretShown {
                    prefix: secret.prefix.to_string(),
                    created: secret.created,
                    expires: secret.expires,
                })
                .collect(),
        }
    }

    pub(crate) fn user(&self, user: KnownUser) -> UserShown {
        let devices = user.devices.iter().filter_map(|device| device.seen);
        let keys = user.keys.iter().filter_map(|key| key.seen);
        UserShown {
            seen: devices.chain(keys).max(),
            name: user.name,
            role: user.role,
            revoked: user.revoked,
            reason: user.reason,
            devices: user.devices.into_iter().map(|device| self.device(device)).collect(),
            keys: user.keys.into_iter().map(|key| self.key(key)).collect(),
            invitations: user.invitations,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Devices {
    pub(crate) devices: Vec<DeviceShown>,
}

/// One device, as it is after a change if there was one.
#[derive(Debug, Serialize)]
pub(crate) struct OneDevice {
    pub(crate) device: DeviceShown,
    /// Set if the server runs and the device has used tokens today or has a daily limit.
    pub(crate) tokens_today: Option<TokensToday>,
    /// How many sessions the change has cut.
    pub(crate) cut: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct Keys {
    pub(crate) keys: Vec<KeyShown>,
}

/// One key, as it is after a change if there was one.
#[derive(Debug, Serialize)]
pub(crate) struct OneKey {
    pub(crate) key: KeyShown,
}

/// A key with a new secret, the only time that it is shown.
#[derive(Serialize)]
pub(crate) struct KeyWithSecret {
    key: KeyShown,
    #[serde(serialize_with = "revealed")]
    secret: ApiKey,
    /// When the secret ends; null for never.
    expires: Option<i64>,
}

impl KeyWithSecret {
    pub(crate) fn new(made: MadeKey, view: &View) -> Self {
        let MadeKey { key, secret, expires } = made;
        Self { key: view.key(key), secret, expires }
    }
}

fn revealed<S: Serializer>(secret: &ApiKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.reveal())
}

#[derive(Debug, Serialize)]
pub(crate) struct Users {
    pub(crate) users: Vec<UserShown>,
}

/// One user.
#[derive(Debug, Serialize)]
pub(crate) struct OneUser {
    pub(crate) user: UserShown,
    /// How many sessions the change has cut.
    pub(crate) cut: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct Invitations {
    pub(crate) invitations: Vec<Invited>,
}

/// A code that was made.
#[derive(Serialize)]
pub(crate) struct CodeShown {
    device: Name,
    /// It is a secret, which is not shown again.
    #[serde(serialize_with = "in_full")]
    code: Zeroizing<String>,
    expires: i64,
    addresses: Vec<String>,
    /// Whether it opens sign-ins.
    sso: bool,
    /// The role of the device; null for sign-ins: the provider says it.
    role: Option<Name>,
    /// The person to whom the device will belong, or null.
    user: Option<UserName>,
    /// Whether an older invitation of the name was withdrawn.
    withdrew: bool,
}

impl From<&MadeCode> for CodeShown {
    fn from(made: &MadeCode) -> Self {
        let Invited { name, role, user, sso, expires } = made.invited.clone();
        Self {
            device: name,
            code: made.invitation.code(),
            expires,
            addresses: made.invitation.addresses.clone(),
            sso,
            role: (!sso).then_some(role),
            user,
            withdrew: made.withdrew,
        }
    }
}

fn in_full<S: Serializer>(code: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code)
}

/// An invitation that is not open any more.
#[derive(Debug, Serialize)]
pub(crate) struct Withdrawn {
    pub(crate) withdrawn: String,
}

/// A device that the register does not know any more.
#[derive(Debug, Serialize)]
pub(crate) struct ForgottenDevice {
    pub(crate) forgotten: Name,
    /// Whether any user may have its name now.
    pub(crate) name_is_free: bool,
}

/// A new CA.
#[derive(Debug, Serialize)]
pub(crate) struct RotatedCa {
    pub(crate) ca: CaNumber,
    /// Its fingerprint; null if this process cannot read it yet.
    pub(crate) sha256: Option<String>,
}

/// The CAs that have ended.
#[derive(Debug, Serialize)]
pub(crate) struct RetiredCas {
    retired: Vec<CaNumber>,
    /// The devices that have no newer one.
    behind: Vec<DeviceBehind>,
    invitations_ended: usize,
}

impl From<Retired> for RetiredCas {
    fn from(retired: Retired) -> Self {
        Self {
            retired: retired.numbers,
            behind: retired.without,
            invitations_ended: retired.invitations,
        }
    }
}

/// The settings that were read again.
#[derive(Debug, Serialize)]
pub(crate) struct ReloadShown {
    pub(crate) file: std::path::PathBuf,
    /// Changed settings that need a restart.
    pub(crate) needs_restart: Vec<String>,
    /// Settings that are probably mistakes.
    pub(crate) remarks: Vec<String>,
}

/// The server's state.
#[derive(Debug, Serialize)]
pub(crate) struct StateShown<'a> {
    pub(crate) state_dir: &'a std::path::Path,
    /// Whether it was created just now.
    pub(crate) is_new: bool,
}
