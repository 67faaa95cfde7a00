//! The libraries that speak to tokens. A process starts each of them once, whoever uses it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    session::Session,
    slot::{Slot, TokenInfo},
};

use proto::typed::quoted;

use super::super::error::{ALL_TOKENS, KeyError};

static KNOWN: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// A library.
struct Module {
    path: PathBuf,
    /// Held while the library is loaded, started or ended: one that hangs there stops nobody who uses
    /// another one.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` until it is loaded. It stays loaded: many libraries do not survive their unloading.
    context: Option<Pkcs11>,
    is_started: bool,
    /// How many use it now.
    users: usize,
    /// Whether somebody else in this process has started it, who then may also use it.
    is_foreign: bool,
}

/// A library that was started. Nobody ends it before this is dropped.
pub(super) struct InUse {
    module: Arc<Module>,
    context: Pkcs11,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.module.state().users -= 1;
    }
}

/// The library at `path`; without a path the one that knows all tokens of the system.
///
/// # Errors
/// It cannot be loaded or started.
pub(super) fn load(path: Option<&str>) -> Result<InUse, KeyError> {
    let named = Path::new(path.unwrap_or(ALL_TOKENS));
    // The same library must not be ended under one of its names while it is used under another.
    let name = path.and_then(|path| Path::new(path).canonicalize().ok());
    let module = {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let module = || Arc::new(Module { path: named.to_owned(), state: Mutex::default() });
        known.entry(name.unwrap_or_else(|| named.to_owned())).or_insert_with(module).clone()
    };
    let context = {
        let mut state = module.state();
        let context = match state.context.clone() {
            Some(context) => context,
            None => {
                let loaded =
                    Pkcs11::new(named).map_err(|e| not_loaded(named, path.is_some(), &e))?;
                state.context.insert(loaded).clone()
            }
        };
        if !state.is_started {
            state.is_foreign = !start(&context).map_err(|e| not_started(named, &e))?;
            state.is_started = true;
        }
        state.users += 1;
        context
    };
    Ok(InUse { module, context })
}

/// Starts the library. Returns `false` if it was started already.
fn start(context: &Pkcs11) -> Result<bool, Error> {
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) => Ok(true),
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(false),
        Err(e) => Err(e),
    }
}

fn not_started(path: &Path, error: &Error) -> KeyError {
    KeyError::passing(
        format!("the library `{}` does not start: {}", path.display(), super::shown(error)),
        format!(
            "see what it says: `pkcs11-tool --module {} --list-token-slots`; smart cards need a running `pcscd`",
            quoted(&path.display().to_string())
        ),
    )
}

fn not_loaded(path: &Path, is_named: bool, error: &Error) -> KeyError {
    let (what, shown) = (super::shown(error), path.display());
    // The loader of a static program is a stub.
    if cfg!(target_feature = "crt-static") {
        return KeyError::lasting(
            format!(
                "cannot load the library `{shown}`: this adit is a static program, which loads no library"
            ),
            "build adit on this computer, from its source: `cargo install --locked --path client`",
        );
    }
    let hint = match (is_named, path.exists()) {
        (false, _) => "install `p11-kit` (Debian: `sudo apt-get install p11-kit-modules`), or name the token's own library: `?module-path=/PATH` in the URI of `--key`".to_owned(),
        (true, false) => format!("there is no such file: install the token's library, or correct `module-path` (`ls {}`)", quoted(&shown.to_string())),
        (true, true) => "name the PKCS#11 library of the token, built for this processor".to_owned(),
    };
    KeyError::lasting(format!("cannot load the library `{shown}`: {what}"), hint)
}

impl Module {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse {
    /// For people.
    pub(super) fn shown(&self) -> String {
        format!("`{}`", self.module.path.display())
    }

    /// The tokens that are there.
    pub(super) fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, Error> {
        let slots = self.context.get_slots_with_token()?;
        let mut found = Vec::with_capacity(slots.len());
        for slot in slots {
            match self.context.get_token_info(slot) {
                Ok(info) => found.push((slot, info)),
                // It was taken out since.
                Err(Error::Pkcs11(RvError::TokenNotPresent | RvError::TokenNotRecognized, _)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Opens a session, which may change the token if `writes`.
    pub(super) fn open(&self, slot: Slot, writes: bool) -> Result<Session, Error> {
        match writes {
            true => self.context.open_rw_session(slot),
            false => self.context.open_ro_session(slot),
        }
    }

    /// Ends the library and starts it again, if nobody else uses it. Returns whether it has.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start_again(&self) -> Result<bool, KeyError> {
        // Until this is dropped, nobody begins to use it.
        let mut state = self.module.state();
        if state.users > 1 || state.is_foreign {
            return Ok(false);
        }
        match self.context.clone().finalize() {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _)) => {}
            Err(_) => return Ok(false),
        }
        state.is_started = false;
        start(&self.context).map_err(|e| not_started(&self.module.path, &e))?;
        state.is_started = true;
        Ok(true)
    }
}
