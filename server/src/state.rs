//! The state directory of `aditd`: who it is, and the keys that let its clients recognise it after
//! a restart.

pub mod ca;
pub mod register;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use common::machine::{
    files::{self, FileError},
    report::Failure,
};
use proto::{
    crypto::fill_random,
    knock::{DeviceKnocks, SharedKey},
};
use serde::{Deserialize, Serialize};

use crate::state::{ca::Ca, register::Register};

/// What to do if the state directory is not the one that the server has.
pub const ELSEWHERE: &str = "if the state is elsewhere, name it with --state-dir or ADITD_STATE_DIR; if it belongs to root, use sudo";

/// Where the state is when nobody says otherwise: `/var/lib/adit` for root, else the user's own
/// data directory.
pub fn default_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/adit"));
    }
    directories::ProjectDirs::from("", "", "aditd").map(|dirs| dirs.data_local_dir().to_owned())
}

/// An opened state directory.
pub struct State {
    /// Where it is.
    pub dir: PathBuf,
    /// The authority.
    pub ca: Ca,
    /// Keys of the QUIC endpoints.
    pub keys: EndpointKeys,
    /// Devices and invitations.
    pub register: Arc<Register>,
}

/// Keys that have to be the same after a restart (all secret).
#[derive(Clone, Serialize, Deserialize)]
pub struct EndpointKeys {
    /// What all devices knocked with before each had a key of its own. It is accepted from
    /// devices that have nothing else yet.
    pub door: SharedKey,
    /// Makes stateless reset tokens (RFC 9000 section 10.3): a client learns within seconds that
    /// its connection is gone. No device ever has it: so all other keys come from it.
    pub reset: SharedKey,
    /// An earlier version marked our connection IDs with it, and still asks for it.
    pub connection_ids: u64,
}

impl EndpointKeys {
    /// Fresh random keys.
    pub fn generate() -> Self {
        let mut bytes = [0; 8];
        fill_random(&mut bytes);
        Self {
            door: SharedKey::generate(),
            reset: SharedKey::generate(),
            connection_ids: u64::from_be_bytes(bytes),
        }
    }

    /// Makes the knock key of each device, and finds the device behind a knock.
    pub fn device_knocks(&self) -> DeviceKnocks {
        DeviceKnocks::new(&self.reset.derive(b"adit/1 knocks of all devices"))
    }

    fn read_or_create(path: &Path) -> Result<Self, FileError> {
        let bytes = files::read_or_create(path, || {
            serde_json::to_vec_pretty(&Self::generate()).unwrap_or_default()
        })?;
        serde_json::from_slice(&bytes).map_err(|e| FileError::damaged(path, e))
    }
}

impl State {
    /// Opens the state in `dir` and makes whatever isn't there yet.
    pub fn open_or_create(dir: &Path) -> Result<Self, Failure> {
        files::create_dir(dir)?;
        let register = dir.join(Register::FILE);
        // The server's certificate is made after the register: an empty register beside it has lost
        // what it held.
        if dir.join("server.crt").exists()
            && std::fs::metadata(&register).is_ok_and(|file| file.len() == 0)
        {
            let lost =
                FileError::damaged(&register, "it is empty, and this server has been in use");
            return Err(
                Failure::from(lost).hint("without a backup, every device has to be enrolled again")
            );
        }
        Ok(Self {
            dir: dir.to_owned(),
            ca: Ca::open(dir)?,
            keys: EndpointKeys::read_or_create(&dir.join("endpoint.json"))?,
            register: Arc::new(Register::open(&register)?),
        })
    }

    /// Opens the state in `dir`, which has to be there: for the commands that only make sense on a
    /// server that has begun.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        must_exist(dir)?;
        Self::open_or_create(dir)
    }
}

/// That there is a state in `dir`, without opening it.
///
/// # Errors
/// How to begin.
pub fn must_exist(dir: &Path) -> Result<(), Failure> {
    match dir.join("ca.key").try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(format!("there is no server state in `{}`", dir.display()))
            .hint("start the server with `aditd serve`, or create its state with `aditd init`")
            .hint(ELSEWHERE)),
        Err(e) => Err(FileError::io("read", dir)(e).into()),
    }
}
