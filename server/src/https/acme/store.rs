//! What is kept in the state directory: the account at the authority, the certificate in use, and
//! which orders have failed. All for the owner alone.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use common::machine::{
    files::{self, FileError},
    process::unix_now,
    report::Failure,
};
use instant_acme::AccountCredentials;
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;
use zeroize::{Zeroize, Zeroizing};

use super::{
    fault::Fault,
    schedule::{self, Attempts},
    settings::AcmeSettings,
};

/// The directory of these files, in the state directory.
const DIR: &str = "acme";

/// The files.
#[derive(Debug, Clone)]
pub(super) struct Store(PathBuf);

/// The account at an authority, with its key.
#[derive(Serialize, Deserialize)]
pub(super) struct Account {
    /// The authority's directory.
    pub(super) directory: String,
    /// What the authority was told last.
    pub(super) contact: Vec<String>,
    pub(super) credentials: AccountCredentials,
}

/// A certificate as it is kept: with its private key.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    names: Vec<String>,
    profile: Option<String>,
    /// In PEM, with those of its CAs.
    certificate: String,
    key: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// The certificate in use.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// The directory, the names and the profile for which it was ordered.
    directory: String,
    names: Vec<String>,
    profile: Option<String>,
    pub(super) key: Arc<CertifiedKey>,
    /// From when until when it is valid, in Unix time.
    pub(super) valid: (i64, i64),
    /// When it is to be renewed.
    pub(super) renew: i64,
    /// When to ask the authority again when to renew it.
    pub(super) ask: i64,
}

impl Held {
    /// Reads what an authority has issued.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(settings: &AcmeSettings, pem: &str, key: &str) -> Result<Self, Fault> {
        let names = settings.names.iter().map(ToString::to_string).collect();
        let (directory, profile) = (settings.directory.to_string(), settings.profile.clone());
        Self::of(directory, names, profile, pem, key)
    }

    fn of(
        directory: String,
        names: Vec<String>,
        profile: Option<String>,
        pem: &str,
        key: &str,
    ) -> Result<Self, Fault> {
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(Fault::inside)?;
        let first = chain.first().ok_or_else(|| Fault::new("there is no certificate in it"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first).map_err(Fault::inside)?;
        let valid = parsed.validity();
        let (begin, end) = (valid.not_before.timestamp(), valid.not_after.timestamp());
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(Fault::inside)?;
        let pair = CertifiedKey::new(chain, any_supported_type(&der).map_err(Fault::inside)?);
        pair.keys_match().map_err(Fault::inside)?;
        let renew = schedule::renew_at(begin, end, super::chance());
        let (key, valid, ask) = (Arc::new(pair), (begin, end), unix_now());
        Ok(Self { directory, names, profile, key, valid, renew, ask })
    }

    /// Whether it is what the settings ask for.
    pub(super) fn is_for(&self, settings: &AcmeSettings) -> bool {
        let wanted = settings.names.iter().map(ToString::to_string);
        self.directory == settings.directory.as_str()
            && self.profile == settings.profile
            && wanted.eq(self.names.iter().cloned())
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }
}

impl Store {
    /// The files in this state directory.
    ///
    /// # Errors
    /// Others can read or replace them.
    pub(super) fn open(state: &Path) -> Result<Self, Failure> {
        let dir = state.join(DIR);
        files::create_dir(&dir)?;
        Ok(Self(dir))
    }

    /// The account at this authority, if there is one.
    ///
    /// # Errors
    /// Others can read its file.
    pub(super) fn account(&self, settings: &AcmeSettings) -> Result<Option<Account>, Failure> {
        let account: Option<Account> = self.read(Self::ACCOUNT)?;
        Ok(account.filter(|account| account.directory == settings.directory.as_str()))
    }

    pub(super) fn keep_account(&self, account: &Account) -> Result<(), Failure> {
        self.write(Self::ACCOUNT, account)
    }

    /// The authority does not know the account any more.
    pub(super) fn forget_account(&self) {
        let path = self.0.join(Self::ACCOUNT);
        if let Err(e) = std::fs::remove_file(&path) {
            warn!("cannot remove `{}`: {e}", path.display());
        }
    }

    /// The certificate that was in use last, if it can be used.
    ///
    /// # Errors
    /// Others can read its file.
    pub(super) fn certificate(&self) -> Result<Option<Held>, Failure> {
        let Some(kept) = self.read::<Kept>(Self::CERTIFICATE)? else { return Ok(None) };
        let (directory, names) = (kept.directory.clone(), kept.names.clone());
        match Held::of(directory, names, kept.profile.clone(), &kept.certificate, &kept.key) {
            Ok(held) => Ok(Some(held)),
            Err(why) => {
                warn!("the certificate of the last start cannot be used: {}", why.what());
                Ok(None)
            }
        }
    }

    pub(super) fn keep_certificate(
        &self,
        held: &Held,
        pem: String,
        key: &str,
    ) -> Result<(), Failure> {
        let kept = Kept {
            directory: held.directory.clone(),
            names: held.names.clone(),
            profile: held.profile.clone(),
            certificate: pem,
            key: key.to_owned(),
        };
        self.write(Self::CERTIFICATE, &kept)
    }

    /// The orders that have failed.
    ///
    /// # Errors
    /// Others can change the file.
    pub(super) fn attempts(&self) -> Result<Attempts, Failure> {
        Ok(self.read(Self::ATTEMPTS)?.unwrap_or_default())
    }

    pub(super) fn keep_attempts(&self, attempts: &Attempts) -> Result<(), Failure> {
        self.write(Self::ATTEMPTS, attempts)
    }

    const ACCOUNT: &str = "account.json";
    const CERTIFICATE: &str = "certificate.json";
    const ATTEMPTS: &str = "attempts.json";

    /// `None` if there is none, or if its content cannot be used: another one is made then.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let path = self.0.join(name);
        let bytes = match files::read(&path) {
            Err(e) if e.is_not_found() => return Ok(None),
            read => read?,
        };
        match serde_json::from_slice(&bytes) {
            Ok(read) => Ok(Some(read)),
            Err(e) => {
                warn!("{}: it is made anew", FileError::damaged(&path, e));
                Ok(None)
            }
        }
    }

    fn write(&self, name: &str, content: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(content).map(Zeroizing::new);
        let text = text.map_err(|e| Failure::new("cannot write JSON").source(e))?;
        Ok(files::replace(&self.0.join(name), &text)?)
    }
}

/// The beginning of a file, up to `most` bytes.
pub(super) fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
