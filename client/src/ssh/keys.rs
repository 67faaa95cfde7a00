//! Private keys in files, and the keys and passwords that were unlocked in this process.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use ssh_key::{Algorithm, PrivateKey, PublicKey};
use zeroize::Zeroizing;

/// Keys that a person has unlocked and passwords that were typed, for later logins of this process.
/// They are never stored, and are wiped when the last clone that shares them is dropped.
#[derive(Default)]
pub(crate) struct Keyring {
    kept: Mutex<Unlocked>,
    /// Whether later logins must not ask.
    quiet: AtomicBool,
}

#[derive(Default)]
struct Unlocked {
    keys: HashMap<PathBuf, Arc<PrivateKey>>,
    passwords: HashMap<String, Zeroizing<String>>,
}

/// A file that holds a private key.
pub(crate) struct KeyFile {
    pub(crate) path: PathBuf,
    /// Its public key, if that can be read without a passphrase.
    pub(crate) public: Option<PublicKey>,
    /// Whether a passphrase is needed.
    pub(crate) locked: bool,
    text: Zeroizing<String>,
}

/// Why a key file cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum KeyError {
    /// Others can read it, so ssh would refuse it too.
    #[error("`{}` can be read by others: `chmod 600 '{}'`", .0.display(), .0.display())]
    Exposed(PathBuf),
    /// It cannot be read.
    #[error("cannot read `{}`: {}", .0.display(), .1)]
    Unreadable(PathBuf, Arc<io::Error>),
    /// It is not a key that the built-in client can use.
    #[error("`{}` holds a key that the built-in client can't use", .0.display())]
    Unknown(PathBuf),
}

impl KeyFile {
    /// Reads a file, if it exists.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, KeyError> {
        use std::os::unix::fs::PermissionsExt;
        let unreadable = |e: io::Error| KeyError::Unreadable(path.to_owned(), Arc::new(e));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unreadable(e)),
        };
        if std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
            return Err(KeyError::Exposed(path.to_owned()));
        }
        let whole = PrivateKey::from_openssh(text.as_bytes()).ok();
        let beside = || PublicKey::read_openssh_file(beside(path)).ok();
        let public = whole.as_ref().map(|key| key.public_key().clone()).or_else(beside);
        let locked = match &whole {
            Some(key) => key.is_encrypted(),
            None => text.contains("ENCRYPTED"),
        };
        let hardware = |key: &PublicKey| {
            matches!(key.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256)
        };
        if !text.contains("PRIVATE KEY-----") || public.as_ref().is_some_and(hardware) {
            return Err(KeyError::Unknown(path.to_owned()));
        }
        Ok(Some(Self { path: path.to_owned(), public, locked, text }))
    }

    /// Decrypts the key. `None` if the passphrase is wrong or the file is damaged.
    pub(crate) async fn open(
        &self,
        passphrase: Option<Zeroizing<String>>,
    ) -> Option<Arc<PrivateKey>> {
        let text = self.text.clone();
        // Key derivation is slow on purpose.
        let opened = tokio::task::spawn_blocking(move || {
            super::session::read_key(
                &text,
                passphrase.as_ref().map(|passphrase| passphrase.as_str()),
            )
        });
        opened.await.ok()?.map(Arc::new)
    }
}

/// The public key of the key in `path`, for finding it in an agent, if it can be read without a
/// passphrase.
pub(crate) fn public_half(path: &Path) -> Option<PublicKey> {
    let own = || KeyFile::read(path).ok()??.public;
    PublicKey::read_openssh_file(beside(path))
        .or_else(|_| PublicKey::read_openssh_file(path))
        .ok()
        .or_else(own)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

impl Keyring {
    /// Whether a login in the background may still ask: until a login has succeeded, or a question
    /// was not answered.
    pub(crate) fn may_ask(&self) -> bool {
        !self.quiet.load(Relaxed)
    }

    /// From now on no login asks anything.
    pub(crate) fn ask_no_more(&self) {
        self.quiet.store(true, Relaxed);
    }

    /// A key that has been unlocked.
    pub(crate) fn key(&self, path: &Path) -> Option<Arc<PrivateKey>> {
        self.lock().keys.get(path).cloned()
    }

    /// Keeps a key.
    pub(crate) fn keep_key(&self, path: &Path, key: Arc<PrivateKey>) {
        self.lock().keys.insert(path.to_owned(), key);
    }

    /// A password that has worked.
    pub(crate) fn password(&self, of: &str) -> Option<Zeroizing<String>> {
        self.lock().passwords.get(of).cloned()
    }

    /// Keeps a password.
    pub(crate) fn keep_password(&self, of: &str, password: Zeroizing<String>) {
        self.lock().passwords.insert(of.to_owned(), password);
    }

    /// Forgets a password that does not work any more.
    pub(crate) fn forget_password(&self, of: &str) {
        self.lock().passwords.remove(of);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Unlocked> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring(…)")
    }
}

/// Two ways are equal even if their keyrings differ.
impl PartialEq for Keyring {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Keyring {}
