//! Backups of the state: made while a server runs, and put back.
//!
//! A backup is JSON. Without keys it holds no secret: it is the register, without invitations
//! and refresh tokens. The
//! keys (the CA's and the endpoint's) are in it encrypted with a passphrase (age, with scrypt), so
//! that nobody who steals a backup can make a certificate or a knock.

mod keys;

use std::{
    fs,
    path::{Path, PathBuf},
};

use age::secrecy::SecretString;
use common::machine::{
    control::{self, ClaimError},
    files::{self, FileError},
    process::unix_now,
    report::{Exit, Failure},
};
use data_encoding::{BASE64, HEXLOWER};
use proto::{crypto::sha256, epoch::Standing, rotation::CaFilesFound};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use self::keys::{FIRST_KEY_FILES, Keys};
use crate::state::{
    self, State,
    ca::{
        self, Ca, CaFiles,
        files::{found, remove},
    },
    register::{Register, restored::Replaced},
};

/// Since 2 the keys may be those of several CAs.
const SCHEMA: u32 = 2;
/// The longest backup that is read, in bytes.
pub(crate) const LONGEST: u64 = 256 << 20;

/// A backup, as its file has it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Backup {
    /// Version of this format.
    adit_backup: u32,
    /// Version of aditd.
    version: String,
    /// When it was made, in Unix time. For people: nothing is decided by it.
    pub(crate) made: i64,
    /// The hash of the key of the CA that signed then, in hexadecimal digits.
    ca: String,
    /// The register, an SQLite database, in base64.
    register: String,
    /// The keys, encrypted by age, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<String>,
}

/// What a restore has done.
pub(crate) struct Restored {
    /// All devices that are not revoked.
    pub(crate) devices: usize,
    /// Those of them that are held back.
    pub(crate) held: usize,
}

impl Backup {
    /// Makes a backup of the state in `dir`, with the keys if there is a passphrase. A server may run
    /// there, and commands may change the register meanwhile.
    ///
    /// # Errors
    /// The state cannot be read, or its disk has no room for a copy of the register.
    pub(crate) fn make(dir: &Path, passphrase: Option<&SecretString>) -> Result<Self, Failure> {
        let state = State::open(dir)?;
        let staging = Staging::begin(dir, "backup")?;
        let copy = staging.0.join(Register::FILE);
        state.register.copy_to(&copy)?;
        without_secrets(&copy)?;
        let register = BASE64.encode(&files::read(&copy)?);
        let keys = passphrase.map(|passphrase| Keys::read(dir)?.encrypt(passphrase)).transpose()?;
        Ok(Self {
            adit_backup: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            made: unix_now(),
            ca: HEXLOWER.encode(&state.ca().key_hash()),
            register,
            keys,
        })
    }

    /// The backup as text.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Failure> {
        serde_json::to_vec_pretty(self).map_err(|e| Failure::new("cannot write JSON").source(e))
    }

    /// Reads a backup.
    ///
    /// # Errors
    /// It is none, or one of a newer version.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Version {
            adit_backup: u32,
        }
        let not_one = |e: serde_json::Error| {
            Failure::new("that is not a backup of aditd")
                .source(e)
                .hint("name a file that `aditd backup FILE` has made")
        };
        let Version { adit_backup } = serde_json::from_slice(bytes).map_err(not_one)?;
        if adit_backup > SCHEMA {
            return Err(Failure::new("a newer version of aditd has made that backup")
                .hint("use the newer aditd"));
        }
        serde_json::from_slice(bytes).map_err(not_one)
    }

    /// Whether it has the keys.
    pub(crate) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether the backup may be put into `dir`. The lock keeps a server from running there.
    ///
    /// # Errors
    /// A server runs there; or there is a state and `replace` is not set.
    pub(crate) fn may_be_put(&self, dir: &Path, replace: bool) -> Result<fs::File, Failure> {
        let lock = control::lock(dir).map_err(|e| match e {
            ClaimError::Taken { .. } => {
                Failure::new(format!("aditd runs on the state in `{}`", dir.display()))
                    .hint("stop it first: `sudo systemctl stop aditd` if it is a service, else Ctrl-C in its terminal")
            }
            ClaimError::File(e) => e.into(),
        })?;
        let has_register = dir.join(Register::FILE).exists();
        let there = has_register || (self.has_keys() && state::is_there(dir).is_ok_and(|is| is));
        if there && !replace {
            return Err(Failure::new(format!("there is a state in `{}` already", dir.display()))
                .hint("to replace it: add `--replace`")
                .exit(Exit::Usage));
        }
        Ok(lock)
    }

    /// Puts the backup into `dir`. With `replace`, a state that is there is replaced; what its
    /// register knows of revocations is kept.
    ///
    /// # Errors
    /// A server runs there; there is a state and `replace` is not set; the backup is damaged, has no
    /// keys where none are, or is of another server. Nothing was changed then.
    pub(crate) fn restore(
        &self,
        dir: &Path,
        passphrase: Option<&SecretString>,
        replace: bool,
    ) -> Result<Restored, Failure> {
        files::create_dir(dir)?;
        let _lock = self.may_be_put(dir, replace)?;
        let path = dir.join(Register::FILE);
        let keys = self.keys(passphrase)?;
        if keys.is_none() {
            self.must_fit(dir)?;
        }
        let damaged = |why: &str| Failure::new(format!("the backup is damaged: {why}"));
        let bytes = BASE64
            .decode(self.register.as_bytes())
            .map_err(|_| damaged("its register is not base64"))?;
        let staging = Staging::begin(dir, "restore")?;
        let staged = staging.0.join(Register::FILE);
        files::create(&staged, &bytes)?;
        if let Some(keys) = &keys {
            keys.write(&staging.0)?;
            let now = OffsetDateTime::now_utc();
            for ca in found(&staging.0).iter().filter(|ca| ca.has_key) {
                Ca::open_number(&staging.0, ca.number, now)?;
            }
            if !self.is_of(&staging.0) {
                return Err(damaged("its keys are those of another server"));
            }
        }
        let register = Register::open(&staged)?;
        // A damaged register knows nothing. It is closed again before its file is replaced.
        let replaced = match path.exists().then(|| Register::open(&path)) {
            Some(Ok(replaced)) => Some(Replaced::of(&replaced)?),
            Some(Err(_)) | None => None,
        };
        register.succeed(replaced.as_ref())?;
        let all = register.devices()?;
        let held = all.iter().filter(|device| device.standing() == Standing::Held).count();
        let admitted = all.iter().filter(|device| device.standing() == Standing::Admitted).count();
        register.close()?;
        if let Some(keys) = &keys {
            if self.is_of(dir) {
                // CAs that were made since the backup stay, and those that have ended since do not come
                // back.
                keys.write_over(dir)?;
            } else {
                for ca in found(dir) {
                    CaFiles::of(ca.number).remove(dir)?;
                }
                keys.write(dir)?;
            }
        }
        // SQLite would read the log of the old register into the new one.
        for side in ["-wal", "-shm"] {
            remove(&dir.join(format!("{}{side}", Register::FILE)))?;
        }
        // If this ends here, the file names another line of epochs, and all devices are held back.
        files::replace(
            &dir.join(Register::EPOCH_FILE),
            &files::read(&staging.0.join(Register::EPOCH_FILE))?,
        )?;
        files::replace(&path, &files::read(&staged)?)?;
        Ok(Restored { devices: admitted + held, held })
    }

    /// The keys of the backup.
    fn keys(&self, passphrase: Option<&SecretString>) -> Result<Option<Keys>, Failure> {
        let (Some(keys), Some(passphrase)) = (&self.keys, passphrase) else { return Ok(None) };
        let damaged = || Failure::new("the backup is damaged: its keys can't be read");
        let encrypted = BASE64.decode(keys.as_bytes()).map_err(|_| damaged())?;
        Keys::decrypt(&encrypted, passphrase)
            .map_err(|e| Failure::new("the passphrase does not open the backup").source(why(&e)))?
            .ok_or_else(damaged)
            .map(Some)
    }

    /// Whether the CA of the backup is one of those in `dir`.
    fn is_of(&self, dir: &Path) -> bool {
        let is_own = |ca: &CaFilesFound| {
            let pem = files::read(&dir.join(CaFiles::of(ca.number).certificate)).ok();
            let certificate = pem.and_then(|pem| ca::read_certificate(&pem));
            let hash = certificate.and_then(|der| common::transport::tls::key_hash(&der).ok());
            hash.is_some_and(|hash| HEXLOWER.encode(&hash.0) == self.ca)
        };
        found(dir).iter().any(is_own)
    }

    /// Whether the keys in `dir` are those of the backup's server.
    fn must_fit(&self, dir: &Path) -> Result<(), Failure> {
        let first = FIRST_KEY_FILES.into_iter().find(|name| !dir.join(name).exists());
        // The first CA may have retired.
        let signs = || found(dir).iter().any(|ca| ca.has_key);
        let missing = first.filter(|name| *name == "endpoint.json" || !signs());
        if let Some(name) = missing {
            return Err(Failure::new("the backup has no keys of the server")
                .source(format!("there is no `{}`", dir.join(name).display()))
                .hint("restore a backup that was made with `--with-ca-key` first, then this one with `--replace`"));
        }
        if self.is_of(dir) {
            return Ok(());
        }
        Err(Failure::new(format!(
            "the backup is of another server than the keys in `{}`",
            dir.display()
        ))
        .hint("use a backup of this server, or one that was made with `--with-ca-key`"))
    }
}

/// A directory for copies, removed when it is dropped.
struct Staging(PathBuf);

impl Staging {
    fn begin(dir: &Path, name: &str) -> Result<Self, FileError> {
        let random = HEXLOWER.encode(&sha256(&rand_bytes())[..4]);
        let path = dir.join(format!("{name}-{random}"));
        files::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn rand_bytes() -> [u8; 8] {
    let mut bytes = [0; 8];
    proto::crypto::fill_random(&mut bytes);
    bytes
}

/// An invitation has the key of its knock, and a sign-in its refresh token: a backup holds no secret.
fn without_secrets(register: &Path) -> Result<(), Failure> {
    let work = || -> rusqlite::Result<()> {
        let db = Connection::open(register)?;
        db.pragma_update(None, "journal_mode", "DELETE")?;
        db.pragma_update(None, "secure_delete", true)?;
        db.execute_batch(
            "DELETE FROM invitation; UPDATE sign_in SET refresh_token = NULL; VACUUM;",
        )?;
        db.close().map_err(|(_, e)| e)
    };
    work().map_err(|e| Failure::new("cannot copy the register").source(e))
}

/// age has its own words in files that only an optimized build brings with it.
fn why(error: &age::DecryptError) -> String {
    match error {
        age::DecryptError::Io(e) => e.to_string(),
        _ => "it is another passphrase, or the file is damaged".to_owned(),
    }
}

#[cfg(test)]
mod tests;
