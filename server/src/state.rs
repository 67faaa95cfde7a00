//! The state directory of `aditd`: its identity, and the keys that must survive a restart.

pub(crate) mod authorities;
pub(crate) mod backup;
pub(crate) mod ca;
pub(crate) mod codes;
pub(crate) mod register;
pub(crate) mod rotation;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use common::machine::{
    files::{self, FileError},
    process::unix_now,
    report::Failure,
};
use proto::{crypto::fill_random, epoch::EpochKey, knock::SharedKey, typed::quoted};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tracing::warn;
use zeroize::Zeroizing;

use crate::state::{
    authorities::{Authorities, SharedAuthorities},
    ca::{Ca, files::found},
    register::Register,
};

/// Where the state of a service is.
const OF_ROOT: &str = "/var/lib/adit";
/// The hint if the state directory is not the server's.
const ELSEWHERE: &str = "if the state is elsewhere, name it with --state-dir or ADITD_STATE_DIR; if it belongs to root, use sudo";

/// The default of the state directory: `/var/lib/adit` for root, else the user's data directory.
pub(crate) fn default_dir() -> Option<PathBuf> {
    // A command of root soon gets the rights of the directory's owner. The default stays root's.
    static DEFAULT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        if rustix::process::geteuid().is_root() {
            return Some(PathBuf::from(OF_ROOT));
        }
        directories::ProjectDirs::from("", "", "aditd").map(|dirs| dirs.data_local_dir().to_owned())
    };
    DEFAULT.get_or_init(find).clone()
}

/// An opened state directory.
pub struct State {
    pub(crate) dir: PathBuf,
    pub(crate) authorities: Arc<SharedAuthorities>,
    pub(crate) keys: EndpointKeys,
    pub(crate) register: Arc<Register>,
}

/// Keys that must survive a restart (all are secret).
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct EndpointKeys {
    /// The knock key that all devices shared before each had a key of its own. It is accepted from
    /// devices that have no other yet.
    #[serde(rename = "door")]
    pub shared_knock: SharedKey,
    /// Makes stateless reset tokens (RFC 9000 section 10.3), by which a client learns within
    /// seconds that its connection is gone. No device ever has this key, so all other keys are
    /// derived from it.
    pub reset: SharedKey,
    /// An earlier version used it for connection IDs and still expects it in the file.
    pub connection_ids: u64,
}

impl EndpointKeys {
    /// Random keys.
    pub(crate) fn generate() -> Self {
        let mut bytes = [0; 8];
        fill_random(&mut bytes);
        Self {
            shared_knock: SharedKey::generate(),
            reset: SharedKey::generate(),
            connection_ids: u64::from_be_bytes(bytes),
        }
    }

    /// The secret of the knocks that go with the first CA.
    pub(crate) fn first_knocks(&self) -> SharedKey {
        self.reset.derive(b"adit/1 knocks of all devices")
    }

    /// Seals the epochs that devices remember.
    pub(crate) fn epochs(&self) -> EpochKey {
        EpochKey::new(&self.reset)
    }

    fn read_or_create(path: &Path) -> Result<Self, FileError> {
        let bytes = files::read_or_create(path, || secret_json(&Self::generate()))?;
        serde_json::from_slice(&bytes).map_err(|e| FileError::damaged(path, e))
    }
}

/// A file with secrets in it, as JSON.
fn secret_json(content: &impl Serialize) -> Zeroizing<Vec<u8>> {
    // Allocated with more than its final size: a buffer that grows leaves copies in memory.
    let mut text = Zeroizing::new(Vec::with_capacity(1024));
    match serde_json::to_writer_pretty(&mut *text, content) {
        Ok(()) => text,
        Err(_) => Zeroizing::default(),
    }
}

impl State {
    /// Opens the state in `dir` and creates what is missing.
    pub fn open_or_create(dir: &Path) -> Result<Self, Failure> {
        files::create_dir(dir)?;
        let register = dir.join(Register::FILE);
        // The server's certificate is created after the register: if only the register is empty, it
        // has lost its content.
        if dir.join("server.crt").exists()
            && std::fs::metadata(&register).is_ok_and(|file| file.len() == 0)
        {
            let lost =
                FileError::damaged(&register, "it is empty, and this server has been in use");
            return Err(
                Failure::from(lost).hint("without a backup, every device has to be enrolled again")
            );
        }
        let keys = EndpointKeys::read_or_create(&dir.join("endpoint.json"))?;
        let register = Arc::new(Register::open(&register)?);
        let mut records = register.cas()?;
        let changes = records.missing(&found(dir));
        if !changes.is_empty() {
            warn!(
                "the register is older than the last change of the certificate authorities: it is told of it"
            );
            register.change_cas(&changes, unix_now())?;
            records = register.cas()?;
        }
        rotation::remove_retired_keys(dir, &records)?;
        let now = OffsetDateTime::now_utc();
        let read = || register.cas().map_err(Failure::from);
        let authorities = Authorities::open_newest(dir, read, &keys, now)?;
        let authorities = SharedAuthorities::new(authorities);
        let state = Self { dir: dir.to_owned(), authorities, keys, register };
        state.make_identities(now)?;
        Ok(state)
    }

    /// The certificate authority that signs now.
    pub(crate) fn ca(&self) -> Arc<Ca> {
        self.authorities.get().signing().clone()
    }

    /// Opens the state in `dir`, which must exist: for commands that need an initialized server.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        must_exist(dir)?;
        Self::open_or_create(dir)
    }
}

/// Checks that there is a state in `dir`, without opening it.
///
/// # Errors
/// Says how to create one.
pub(crate) fn must_exist(dir: &Path) -> Result<(), Failure> {
    match is_there(dir) {
        Ok(true) => Ok(()),
        Ok(false) => Err(not_there(
            format!("there is no server state in `{}`", dir.display()),
            "start the server with `aditd serve`, or create its state with `aditd init`",
            dir,
        )),
        Err(e) => Err(e.into()),
    }
}

/// Whether there is a state in `dir`.
pub(crate) fn is_there(dir: &Path) -> Result<bool, FileError> {
    let first = dir.join("ca.key").try_exists().map_err(FileError::io("read", dir))?;
    // The first CA may have retired.
    Ok(first || found(dir).iter().any(|ca| ca.has_key))
}

/// The failure that no state, or no server, is where this command looks for it. `start` says how to
/// make one there.
pub(crate) fn not_there(what: String, start: impl std::fmt::Display, dir: &Path) -> Failure {
    let is_default = default_dir().is_some_and(|default| default == dir);
    let is_user = is_default && !rustix::process::geteuid().is_root();
    if is_user && !is_there(dir).unwrap_or(true) && Path::new(OF_ROOT).exists() {
        let words = std::env::args_os().skip(1);
        let words: String = words.map(|w| format!(" {}", quoted(&w.to_string_lossy()))).collect();
        let cure =
            format!("the aditd of this machine has its state in `{OF_ROOT}`: `sudo aditd{words}`");
        return Failure::new(what).hint(cure);
    }
    Failure::new(what).hint(start).hint(ELSEWHERE)
}
