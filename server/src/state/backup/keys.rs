//! The keys in a backup: those of the CAs that the server knows, and the endpoint's.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::Path,
};

use age::secrecy::SecretString;
use common::machine::{
    files::{self, FileError},
    report::Failure,
};
use data_encoding::BASE64;
use proto::rotation::FIRST_CA;
use zeroize::{Zeroize, Zeroizing};

use crate::state::ca::{CaFiles, files::found};

/// The cost of scrypt (RFC 7914), as a power of two: about a second and 128 MiB.
const WORK_FACTOR: u8 = 17;
/// The most that all keys are, in bytes.
const LARGEST: usize = 1 << 20;
/// The files of keys in a backup of the first version, in this order.
pub(super) const FIRST_KEY_FILES: [&str; 3] = ["endpoint.json", "ca.key", "ca.crt"];

/// The keys of a state: the content of each file, by its name.
pub(super) struct Keys(pub(super) BTreeMap<String, String>);

/// The keys, as they are in a backup.
enum Stored {
    Named(BTreeMap<String, String>),
    /// The content of each of [`FIRST_KEY_FILES`].
    First(Vec<String>),
}

impl Stored {
    /// Serde's untagged enums are not used: to try several forms, they keep copies of all texts.
    fn from_json(text: &[u8]) -> Option<Self> {
        let is_list = text.trim_ascii_start().starts_with(b"[");
        match is_list {
            true => serde_json::from_slice(text).ok().map(Self::First),
            false => serde_json::from_slice(text).ok().map(Self::Named),
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

impl Keys {
    fn from_stored(stored: Stored) -> Option<Self> {
        match stored {
            Stored::First(texts) if texts.len() == FIRST_KEY_FILES.len() => {
                Some(Self(FIRST_KEY_FILES.map(str::to_owned).into_iter().zip(texts).collect()))
            }
            // Nothing outside of the directory is written, and no other file.
            Stored::Named(named) if named.keys().all(|name| is_ours(name)) => Some(Self(named)),
            _ => None,
        }
    }

    /// The keys in `dir`. A certificate of the server can be made again, unless its CA has retired.
    pub(super) fn read(dir: &Path) -> Result<Self, Failure> {
        let mut names = vec!["endpoint.json".to_owned()];
        for ca in found(dir).iter().filter(|ca| ca.number == FIRST_CA || ca.was_in_force) {
            let files = CaFiles::of(ca.number);
            names.extend(files.knocks);
            names.push(files.certificate);
            match ca.has_key {
                true => names.push(files.key),
                false => names.extend([files.server_key, files.server_certificate]),
            }
        }
        let mut keys = Self(BTreeMap::new());
        for name in names {
            let mut text = files::read_to_string(&dir.join(&name))?;
            keys.0.insert(name, std::mem::take(&mut *text));
        }
        Ok(keys)
    }

    /// Writes all of them into `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<(), FileError> {
        self.write_but(dir, |_| false)
    }

    /// Writes them over the keys of the same server, but those of CAs that have ended there.
    pub(super) fn write_over(&self, dir: &Path) -> Result<(), FileError> {
        let there = found(dir);
        let newest = there.iter().filter(|ca| ca.was_in_force).map(|ca| ca.number).max();
        let ended = there.iter().filter(|ca| !ca.has_key && Some(ca.number) != newest);
        let ended: Vec<_> = ended.map(|ca| CaFiles::of(ca.number).key).collect();
        self.write_but(dir, |name| ended.iter().any(|key| key == name))
    }

    fn write_but(&self, dir: &Path, leaves: impl Fn(&str) -> bool) -> Result<(), FileError> {
        for (name, text) in self.0.iter().filter(|(name, _)| !leaves(name)) {
            let path = dir.join(name);
            if files::read_to_string(&path).is_ok_and(|there| *there == *text) {
                continue;
            }
            files::replace(&path, text.as_bytes())?;
        }
        Ok(())
    }

    pub(super) fn encrypt(&self, passphrase: &SecretString) -> Result<String, Failure> {
        let failed = |e: &dyn std::fmt::Display| {
            Failure::new("cannot encrypt the keys").source(e.to_string())
        };
        // Allocated with their final size: a buffer that grows leaves copies in memory. The same
        // holds for the other direction.
        let mut plain = Zeroizing::new(Vec::with_capacity(LARGEST));
        serde_json::to_writer(&mut *plain, &self.0).map_err(|e| failed(&e))?;
        let mut recipient = age::scrypt::Recipient::new(passphrase.clone());
        recipient.set_work_factor(WORK_FACTOR);
        let recipients = std::iter::once(&recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|e| failed(&e))?;
        let mut encrypted = Vec::new();
        let mut writer = encryptor.wrap_output(&mut encrypted).map_err(|e| failed(&e))?;
        writer.write_all(&plain).map_err(|e| failed(&e))?;
        writer.finish().map_err(|e| failed(&e))?;
        Ok(BASE64.encode(&encrypted))
    }

    /// `None` if what was encrypted are not keys.
    pub(super) fn decrypt(
        encrypted: &[u8],
        passphrase: &SecretString,
    ) -> Result<Option<Self>, age::DecryptError> {
        let mut identity = age::scrypt::Identity::new(passphrase.clone());
        identity.set_max_work_factor(WORK_FACTOR);
        let decryptor = age::Decryptor::new(encrypted)?;
        let mut reader = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))?;
        let mut plain = Zeroizing::new(Vec::with_capacity(LARGEST));
        reader.by_ref().take(LARGEST as u64).read_to_end(&mut plain)?;
        Ok(Stored::from_json(&plain).and_then(Self::from_stored))
    }
}

fn is_ours(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let is_of_ca = ["ca", "server", "knocks"].iter().any(|stem| name.starts_with(stem))
        && [".key", ".crt"].iter().any(|ending| name.ends_with(ending));
    name == "endpoint.json" || (is_of_ca && name.chars().all(plain))
}
