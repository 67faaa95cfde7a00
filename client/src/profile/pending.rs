//! A key that was sent with a code, before the answer has arrived. If the same code is tried again,
//! the same key is used.

use std::{fs, io::ErrorKind, sync::Arc};

use common::machine::{
    files::{self, FileError},
    report::Failure,
};
use data_encoding::BASE64;
use proto::crypto::sha256;
use serde::{Deserialize, Serialize};

use super::{ProfileDir, SecretPem};
use crate::device_key::{
    Seed,
    pem::{stored_key, take_key, to_bytes},
};

const PENDING: &str = "pending.json";

#[derive(Serialize, Deserialize)]
struct Pending {
    /// The hash of the code's token.
    code: String,
    #[serde(default, with = "stored_key", skip_serializing_if = "Option::is_none")]
    private_key: Option<Arc<SecretPem>>,
    /// From what the TPM derives the key, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl ProfileDir {
    /// The key to send with a code: the one that was sent with this code before, or a new one from
    /// `make`, which is stored before it is used.
    pub fn pending_key(
        &self,
        token: &[u8],
        make: impl FnOnce() -> Result<SecretPem, Failure>,
    ) -> Result<Arc<SecretPem>, Failure> {
        let path = self.dir.join(PENDING);
        let code = BASE64.encode(&sha256(token));
        match files::read(&path) {
            Ok(mut bytes) => {
                let key = take_key(&mut bytes);
                if let Ok(pending) = serde_json::from_slice::<Pending>(&bytes)
                    && pending.code == code
                    && let Some(blank) = pending.private_key
                {
                    return Ok(key.map_or(blank, Arc::new));
                }
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
        let private_key = Arc::new(make()?);
        let pending = Pending { code, private_key: Some(private_key.clone()), secret: None };
        files::replace(&path, &to_bytes(&path, &pending)?)?;
        Ok(private_key)
    }

    /// The same for a key in a TPM: from what it is derived.
    pub(crate) fn pending_seed(&self, token: &[u8]) -> Result<Seed, Failure> {
        let path = self.dir.join(PENDING);
        let code = BASE64.encode(&sha256(token));
        match files::read(&path) {
            Ok(bytes) => {
                if let Ok(pending) = serde_json::from_slice::<Pending>(&bytes)
                    && pending.code == code
                    && let Some(seed) = pending.secret.as_deref().and_then(Seed::from_text)
                {
                    return Ok(seed);
                }
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
        let seed = Seed::new()?;
        let pending = Pending { code, private_key: None, secret: Some(seed.to_text()) };
        files::replace(&path, &to_bytes(&path, &pending)?)?;
        Ok(seed)
    }

    /// After an enrollment nothing is pending.
    pub(super) fn remove_pending(&self) -> Result<(), FileError> {
        let path = self.dir.join(PENDING);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(FileError::io("remove", path)(e)),
            _ => Ok(()),
        }
    }
}
