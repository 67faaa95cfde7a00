//! A key that only its device can use, a token or a TPM. Nothing here waits longer for the device than
//! is said in `worker.rs`.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use common::machine::ask;
use data_encoding::BASE64;
use proto::{
    crypto::sha256,
    device_key::{KeyStorage, KeyUri, TokenUri},
};
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    pki_types::SubjectPublicKeyInfoDer,
    sign::{Signer, SigningKey},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    ecdsa::{self, Point, Signature},
    error::KeyError,
    pkcs11::Token,
    tpm::{Seed, Tpm},
    worker::{NoResult, SIGN_WITHIN, Worker},
};

/// A key that only its device can use.
pub struct HardwareKey {
    uri: KeyUri,
    point: Point,
    /// From what a TPM derives it.
    seed: Option<Seed>,
    device: Device,
    /// Why the last signature failed. TLS does not hand it on.
    failed: Mutex<Option<KeyError>>,
}

/// The device, which another thread uses.
struct Device {
    worker: Worker<Hardware>,
    /// Whether the device waits for a PIN that a person types at its reader.
    waits_for_person: Arc<AtomicBool>,
}

/// What holds a key. Everything that it does blocks.
enum Hardware {
    Token(Box<Token>),
    Tpm(Tpm),
}

impl Hardware {
    fn open(&mut self, expected: &Point) -> Result<(), KeyError> {
        match self {
            Self::Token(token) => token.open(expected),
            Self::Tpm(tpm) => tpm.open(expected),
        }
    }

    /// The key, and its URI if that says more now.
    fn find_or_make(&mut self) -> Result<(Point, Option<TokenUri>), KeyError> {
        match self {
            Self::Token(token) => token.find_or_make().map(|(point, uri)| (point, Some(uri))),
            Self::Tpm(tpm) => Ok((tpm.make()?, None)),
        }
    }

    /// As [`Hardware::open`], but does not log in.
    fn look(&self, expected: &Point) -> Result<(), KeyError> {
        match self {
            Self::Token(token) => token.look(),
            Self::Tpm(tpm) => tpm.open(expected),
        }
    }

    fn sign(&mut self, expected: &Point, digest: &[u8; 32]) -> Result<Signature, KeyError> {
        match self {
            Self::Token(token) => token.sign(digest),
            Self::Tpm(tpm) => tpm.sign(expected, digest),
        }
    }

    fn set_pin(&mut self, pin: Zeroizing<String>, for_last_try: bool) {
        match self {
            Self::Token(token) => token.set_pin(pin, for_last_try),
            Self::Tpm(_) => {}
        }
    }
}

impl Device {
    /// What holds the key at `uri`. Nothing is opened yet.
    fn new(uri: &KeyUri, seed: Option<Seed>, state_dir: &Path) -> Result<Self, &'static str> {
        let waits_for_person = Arc::<AtomicBool>::default();
        let hardware = match (uri, seed) {
            (KeyUri::Token(uri), None) => {
                let token = Token::new(uri.clone(), state_dir, waits_for_person.clone());
                Hardware::Token(Box::new(token))
            }
            (KeyUri::Tpm(path), Some(seed)) => Hardware::Tpm(Tpm::new(path, seed)),
            _ => return Err("not the place of a key"),
        };
        Ok(Self { worker: Worker::new(hardware), waits_for_person })
    }

    async fn run<T: Send + 'static>(
        &self,
        uri: &KeyUri,
        work: impl FnOnce(&mut Hardware) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let done = self.worker.run(&self.waits_for_person, work).await;
        done.unwrap_or_else(|why| {
            let person = self.waits_for_person.load(SeqCst);
            Err(no_result(why, uri, if person { Wanted::Pin } else { Wanted::Answer }))
        })
    }

    /// Asks the person at the terminal for what `missing` says.
    async fn ask(&self, uri: &KeyUri, missing: &KeyError) -> Result<(), KeyError> {
        let Some(prompt) = missing.prompt() else { return Ok(()) };
        let pin = ask::secret(prompt).await.filter(|pin| !pin.is_empty());
        let Some(pin) = pin else {
            return Err(match ask::somebody_is_there() {
                true => missing.clone().pin_not_typed(),
                false => missing.clone(),
            });
        };
        let is_last_try = missing.is_last_try();
        self.run(uri, move |hardware| {
            hardware.set_pin(pin, is_last_try);
            Ok(())
        })
        .await
    }
}

/// What a device was waited for.
#[derive(Clone, Copy)]
enum Wanted {
    Answer,
    Pin,
    Signature,
}

fn no_result(why: NoResult, uri: &KeyUri, wanted: Wanted) -> KeyError {
    if why == NoResult::Failed {
        return KeyError::lasting(
            "cannot use this device's private key: the thread for it has ended",
            "run the same command again; if that does not help: `adit doctor`",
        );
    }
    match (uri, wanted) {
        (KeyUri::Token(uri), Wanted::Answer) => KeyError::token_late(uri),
        (KeyUri::Token(uri), Wanted::Pin) => KeyError::no_pin_at_reader(uri),
        (KeyUri::Token(uri), Wanted::Signature) => KeyError::token_signs_late(uri),
        (uri, _) => KeyError::tpm_late(uri),
    }
}

/// What a profile stores of a key in hardware. It is useless without the hardware.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredHardware {
    /// Where the key is.
    uri: KeyUri,
    /// Its public point (SEC 1 section 2.3.3, uncompressed), in base64.
    public_key: String,
    /// From what the TPM derives it, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl HardwareKey {
    /// The key at `uri`: the one that is there, or a new one. `server` is the server's name on this
    /// device; a TPM derives the key from `seed`. Asks for a PIN as
    /// [`DeviceKey::unlock`](super::DeviceKey::unlock).
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn make(
        uri: &KeyUri,
        seed: Option<Seed>,
        state_dir: &Path,
        server: &str,
    ) -> Result<Arc<Self>, KeyError> {
        let mut uri = uri.clone();
        if let KeyUri::Token(token) = &mut uri
            && token.object.is_none()
            && token.id.is_none()
        {
            token.object = Some(format!("adit-{server}"));
        }
        let device = Device::new(&uri, seed.clone(), state_dir).map_err(KeyError::damaged)?;
        let (point, found) = match device.run(&uri, Hardware::find_or_make).await {
            Err(why) if why.prompt().is_some() => {
                device.ask(&uri, &why).await?;
                device.run(&uri, Hardware::find_or_make).await?
            }
            other => other?,
        };
        if let Some(found) = found {
            uri = KeyUri::Token(found);
        }
        Ok(Arc::new(Self { uri, point, seed, device, failed: Mutex::default() }))
    }

    /// The key of a profile.
    ///
    /// # Errors
    /// What is wrong with what is stored.
    pub(crate) fn stored(
        stored: StoredHardware,
        state_dir: &Path,
    ) -> Result<Arc<Self>, &'static str> {
        let StoredHardware { uri, public_key, secret } = stored;
        let bytes = BASE64.decode(public_key.as_bytes()).ok();
        let point = bytes.and_then(|bytes| Point::from_bytes(&bytes)).ok_or("not a public key")?;
        let seed = secret.map(Zeroizing::new).and_then(|text| Seed::from_text(&text));
        let device = Device::new(&uri, seed.clone(), state_dir)?;
        Ok(Arc::new(Self { uri, point, seed, device, failed: Mutex::default() }))
    }

    /// What a profile stores of it.
    pub(crate) fn to_stored(&self) -> StoredHardware {
        StoredHardware {
            uri: self.uri.clone(),
            public_key: BASE64.encode(self.point.as_bytes()),
            secret: self.seed.as_ref().map(Seed::to_text),
        }
    }

    pub(super) fn uri(&self) -> &KeyUri {
        &self.uri
    }

    pub(super) fn storage(&self) -> KeyStorage {
        match self.uri {
            KeyUri::File => KeyStorage::File,
            KeyUri::Tpm(_) => KeyStorage::Tpm,
            KeyUri::Token(_) => KeyStorage::Pkcs11,
        }
    }

    /// As [`DeviceKey::ready`](super::DeviceKey::ready).
    pub(super) async fn ready(&self) -> Result<(), KeyError> {
        let point = self.point;
        self.device.run(&self.uri, move |hardware| hardware.open(&point)).await
    }

    /// As [`DeviceKey::unlock`](super::DeviceKey::unlock).
    pub(super) async fn unlock(&self) -> Result<(), KeyError> {
        match self.ready().await {
            Err(why) if why.prompt().is_some() => {
                self.device.ask(&self.uri, &why).await?;
                self.ready().await
            }
            other => other,
        }
    }

    /// As [`DeviceKey::look`](super::DeviceKey::look).
    pub(super) async fn look(&self) -> Result<(), KeyError> {
        let point = self.point;
        self.device.run(&self.uri, move |hardware| hardware.look(&point)).await
    }

    /// A request for a certificate of this key (PKCS #10, DER).
    pub(super) async fn request(&self, params: CertificateParams) -> Result<Vec<u8>, KeyError> {
        let point = self.point;
        let signing = move |hardware: &mut Hardware| {
            let key = RequestKey { point, state: Mutex::new((hardware, None)) };
            let made = params.serialize_request(&key);
            let failed = key.state.into_inner().unwrap_or_else(PoisonError::into_inner).1;
            made.map(|request| request.der().to_vec())
                .map_err(|e| failed.unwrap_or_else(|| KeyError::unusable(&e)))
        };
        self.device.run(&self.uri, signing).await
    }

    pub(super) fn take_failure(&self) -> Option<KeyError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Signs for a handshake: an ECDSA signature over the SHA-256 of `message`, in DER (RFC 3279 section
    /// 2.2.3). Blocks as long as the hardware takes, within limits.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let (point, digest) = (self.point, sha256(message));
        let signed =
            self.device.worker.wait(SIGN_WITHIN, move |hardware| hardware.sign(&point, &digest));
        let signed = signed
            .unwrap_or_else(|why| Err(no_result(why, &self.uri, Wanted::Signature)))
            .map(|signature| ecdsa::to_der(&signature));
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed = signed.as_ref().err().cloned();
        signed
    }
}

/// A key in hardware as rustls uses one.
pub(super) struct TlsKey(pub(super) Arc<HardwareKey>);

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsKey({})", self.0.uri)
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let is_offered = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        is_offered.then(|| Box::new(Self(self.0.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.0.point.to_spki().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(message).map_err(|e| rustls::Error::General(e.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// A key in hardware as rcgen uses one, on the thread of its device; and why it did not sign.
struct RequestKey<'a> {
    point: Point,
    state: Mutex<(&'a mut Hardware, Option<KeyError>)>,
}

impl PublicKeyData for RequestKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.point.as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for RequestKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (hardware, failed) = &mut *state;
        match hardware.sign(&self.point, &sha256(message)) {
            Ok(signature) => Ok(ecdsa::to_der(&signature)),
            Err(why) => {
                *failed = Some(why);
                Err(rcgen::Error::RemoteKeyError)
            }
        }
    }
}
