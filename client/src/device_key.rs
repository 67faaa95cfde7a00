//! The device's key, wherever it is: in a file, in a PKCS#11 token or in a TPM. Everything that
//! proves who this device is goes through it: requests for certificates, and handshakes.

mod ecdsa;
mod error;
mod hardware;
pub(crate) mod pem;
mod pkcs11;
mod tpm;
mod worker;

use std::sync::Arc;

use proto::{
    crypto::private_key_from_pem,
    device_key::{KeyStorage, KeyUri},
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::SigningKey,
};

use self::hardware::TlsKey;
pub use self::pem::SecretPem;
pub(crate) use self::{
    error::KeyError,
    hardware::{HardwareKey, StoredHardware},
    tpm::Seed,
    worker::finish,
};

/// The key of a device. Clones share it.
#[derive(Clone)]
pub enum DeviceKey {
    /// In the profile's file.
    File(Arc<SecretPem>),
    /// In a device that never gives it away.
    Hardware(Arc<HardwareKey>),
}

impl From<Arc<SecretPem>> for DeviceKey {
    fn from(pem: Arc<SecretPem>) -> Self {
        Self::File(pem)
    }
}

impl DeviceKey {
    /// How it is kept, as the server is told.
    pub(crate) fn storage(&self) -> KeyStorage {
        match self {
            Self::File(_) => KeyStorage::File,
            Self::Hardware(key) => key.storage(),
        }
    }

    /// Where it is.
    pub(crate) fn uri(&self) -> KeyUri {
        match self {
            Self::File(_) => KeyUri::File,
            Self::Hardware(key) => key.uri().clone(),
        }
    }

    /// Where it is, for people, if it is in hardware.
    pub(crate) fn place(&self) -> Option<String> {
        let Self::Hardware(key) = self else { return None };
        Some(match key.uri() {
            KeyUri::Token(uri) => {
                format!("in the token {}, as {}", uri.token_name(), uri.key_name())
            }
            KeyUri::Tpm(path) => format!("in the TPM at `{path}`"),
            KeyUri::File => return None,
        })
    }

    /// The signer for TLS. Hardware is not asked before a handshake.
    ///
    /// # Errors
    /// The key in the file can't be read.
    pub(crate) fn signing_key(&self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        let pem = match self {
            Self::File(pem) => pem,
            Self::Hardware(key) => return Ok(Arc::new(TlsKey(key.clone()))),
        };
        let not_a_key = || rustls::Error::General("the private key can't be read".to_owned());
        let der = private_key_from_pem(pem.as_str()).ok_or_else(not_a_key)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice()));
        any_ecdsa_type(&der).map_err(|_| not_a_key())
    }

    /// A request for a certificate of this key (PKCS #10, DER).
    ///
    /// # Errors
    /// Why the key cannot sign it.
    pub(crate) async fn request(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let unusable = |e: rcgen::Error| KeyError::unusable(&e);
        match self {
            Self::File(pem) => {
                let pair = KeyPair::from_pem(pem.as_str()).map_err(unusable)?;
                Ok(params.serialize_request(&pair).map_err(unusable)?.der().to_vec())
            }
            Self::Hardware(key) => key.request(params).await,
        }
    }

    /// Makes sure that the key can sign now, without a question to a person.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) async fn ready(&self) -> Result<(), KeyError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Hardware(key) => key.ready().await,
        }
    }

    /// The same. Asks the person at the terminal for the PIN, once, if one is needed.
    ///
    /// # Errors
    /// As above, and that the PIN is wrong.
    pub(crate) async fn unlock(&self) -> Result<(), KeyError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Hardware(key) => key.unlock().await,
        }
    }

    /// Looks whether the hardware is there, without logging in.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) async fn look(&self) -> Result<(), KeyError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Hardware(key) => key.look().await,
        }
    }

    /// What forgetting the server leaves behind, and how it is deleted, if there is something.
    pub(crate) fn left_behind(&self) -> Option<String> {
        match self {
            Self::File(_) => None,
            Self::Hardware(key) => match key.uri() {
                KeyUri::Token(uri) => Some(pkcs11::left_behind(uri)),
                _ => None,
            },
        }
    }

    /// Why the last signature failed, if it did.
    pub(crate) fn take_failure(&self) -> Option<KeyError> {
        match self {
            Self::File(_) => None,
            Self::Hardware(key) => key.take_failure(),
        }
    }
}
