//! A key in a PKCS#11 token: found by its URI, made there, and used there.

mod login;
mod modules;
mod objects;
mod pin;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use cryptoki::{
    error::{Error, RvError},
    mechanism::Mechanism,
    object::ObjectHandle,
    session::Session,
    slot::{Slot, TokenInfo},
};
use proto::{device_key::TokenUri, typed::quoted};
use zeroize::Zeroizing;

use self::modules::InUse;
use super::{
    ecdsa::{Point, Signature},
    error::{ALL_TOKENS, KeyError},
};

/// A token and the key in it.
pub(super) struct Token {
    uri: TokenUri,
    /// Where refused PINs are remembered.
    state_dir: PathBuf,
    /// Set while a person types the PIN at the reader.
    waits_for_person: Arc<AtomicBool>,
    /// What a person has typed at the terminal, until the token refuses it.
    pin: Option<Typed>,
    opened: Option<Opened>,
    /// Whether something went wrong with the library, so that it is started again before the next use.
    is_in_doubt: bool,
}

/// A PIN that a person has typed.
struct Typed {
    pin: Zeroizing<String>,
    /// Whether the question said that it is the last try, and it was not tried since.
    for_last_try: bool,
}

/// A session in which the user is logged in.
struct Opened {
    session: Session,
    key: ObjectHandle,
    /// Behind the session, which ends first.
    _library: InUse,
}

impl Token {
    /// Nothing is opened yet.
    pub(super) fn new(uri: TokenUri, state_dir: &Path, waits_for_person: Arc<AtomicBool>) -> Self {
        let state_dir = state_dir.to_owned();
        Self { uri, state_dir, waits_for_person, pin: None, opened: None, is_in_doubt: false }
    }

    /// Takes a PIN that a person has typed. `for_last_try` is whether the question said that it is the
    /// last try.
    pub(super) fn set_pin(&mut self, pin: Zeroizing<String>, for_last_try: bool) {
        self.pin = Some(Typed { pin, for_last_try });
    }

    /// Looks whether the token is there, and its PIN in the file that should have it, without logging in.
    /// Blocks.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn look(&self) -> Result<(), KeyError> {
        let (_library, _, info) = self.find()?;
        self.refuse_locked(&info)?;
        match &self.uri.pin_source {
            Some(path) if info.login_required() => {
                pin::read(path, &self.state_dir, &self.uri.token_name()).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that the key is there, is the one with this public key, and can sign. Blocks.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn open(&mut self, expected: &Point) -> Result<(), KeyError> {
        let is_there = |opened: &Opened| objects::is_there(self, &opened.session, opened.key);
        if !self.opened.as_ref().is_some_and(is_there) {
            self.opened = None;
            let begun = self.begin(expected);
            self.is_in_doubt = begun.as_ref().is_err_and(|why| !why.is_lasting());
            self.opened = Some(begun?);
        }
        Ok(())
    }

    /// Signs a SHA-256 hash in the session that [`Token::open`] has opened. Blocks, but never opens a
    /// session: a handshake waits for it.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn sign(&mut self, digest: &[u8; 32]) -> Result<Signature, KeyError> {
        let Some(opened) = &self.opened else {
            return Err(KeyError::passing(
                format!("the session with the token {} has ended", self.uri.token_name()),
                "see that the token is plugged in, and run the same command again; a running `adit up` tries again by itself",
            ));
        };
        match opened.session.sign(&Mechanism::Ecdsa, opened.key, digest) {
            Ok(signature) => signature.try_into().map_err(|_| {
                self.lasting(
                    "its signature has another length than one of P-256",
                    "choose a label under which there is no key yet (`object=LABEL` in the URI of `--key`): adit makes one of P-256 there",
                )
            }),
            Err(why) => {
                self.opened = None;
                Err(self.failed("sign", &why))
            }
        }
    }

    /// The key of the URI: the one that is there, or a new one, which is made in the token. Returns its
    /// URI with the label and the serial number of the token, too. Blocks.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn find_or_make(&mut self) -> Result<(Point, TokenUri), KeyError> {
        let (library, slot, info) = self.find()?;
        let is_new = {
            let session = library.open(slot, false).map_err(|e| self.failed("be opened", &e))?;
            self.log_in(&session, &info)?;
            objects::private(self, &session)?.is_none()
        };
        // The count of tries may have changed.
        let (library, slot, info) = self.find()?;
        // Many tokens give nothing but read-only sessions away for signing, and only this needs more.
        let session = library.open(slot, is_new).map_err(|e| self.failed("be opened", &e))?;
        self.log_in(&session, &info)?;
        if is_new {
            objects::make(self, &session)?;
        }
        let key = objects::private(self, &session)?.ok_or_else(|| self.no_key())?;
        objects::refuse_copyable(self, &session, key)?;
        let point = objects::point(self, &session, key)?;
        // From now on no other token gets the PIN, whatever its label is.
        self.uri = pinned(&self.uri, info.label(), info.serial_number());
        Ok((point, self.uri.clone()))
    }

    fn begin(&mut self, expected: &Point) -> Result<Opened, KeyError> {
        let (library, slot, info) = self.find()?;
        let session = library.open(slot, false).map_err(|e| self.failed("be opened", &e))?;
        self.log_in(&session, &info)?;
        let key = objects::private(self, &session)?.ok_or_else(|| self.no_key())?;
        if objects::point(self, &session, key)? != *expected {
            return Err(self.lasting(
                &format!("its key {} is not the one with which this device enrolled", self.uri.key_name()),
                "plug in the token with which it enrolled; or enroll again: `adit enroll --replace`, with `--name NAME` if the server has a name here",
            ));
        }
        Ok(Opened { session, key, _library: library })
    }

    /// The token that is meant, and its library, which nobody ends meanwhile.
    fn find(&self) -> Result<(InUse, Slot, TokenInfo), KeyError> {
        let library = modules::load(self.uri.module_path.as_deref())?;
        if self.is_in_doubt {
            library.start_again()?;
        }
        let mut found = self.matching(&library);
        // Some libraries look for tokens only when they start, or are of no use after an error.
        if found.as_ref().map_or(true, |(matching, _)| matching.is_empty())
            && library.start_again()?
        {
            found = self.matching(&library);
        }
        let (mut matching, others) = found?;
        match (matching.len(), matching.pop()) {
            (1, Some((slot, info))) => Ok((library, slot, info)),
            (0, _) | (_, None) => Err(KeyError::passing(
                format!("the token {} is not there", self.uri.token_name()),
                match others.is_empty() {
                    true => {
                        format!("plug it in; the library {} sees no token at all", library.shown())
                    }
                    false => format!(
                        "plug it in; the library {} sees: {}",
                        library.shown(),
                        listed(&others)
                    ),
                },
            )),
            (_, Some(last)) => {
                let labels: Vec<_> =
                    matching.iter().chain([&last]).map(|(_, info)| named(info)).collect();
                Err(KeyError::lasting(
                    format!("several tokens are meant: {}", listed(&labels)),
                    "name one in the URI of `--key`: `token=LABEL` or `serial=NUMBER`",
                ))
            }
        }
    }

    /// The tokens that the URI may mean, and the names of all others.
    #[allow(clippy::type_complexity)]
    fn matching(&self, library: &InUse) -> Result<(Vec<(Slot, TokenInfo)>, Vec<String>), KeyError> {
        let (mut matching, mut others) = (Vec::new(), Vec::new());
        for (slot, info) in library.tokens().map_err(|e| self.failed("be looked for", &e))? {
            match self.is_meant(slot, &info) {
                true => matching.push((slot, info)),
                false if info.token_initialized() => others.push(named(&info)),
                // An empty place for a token.
                false => {}
            }
        }
        Ok((matching, others))
    }

    fn is_meant(&self, slot: Slot, info: &TokenInfo) -> bool {
        let is = |wanted: &Option<String>, has: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == has.trim_end())
        };
        let uri = &self.uri;
        info.token_initialized()
            && is(&uri.token, info.label())
            && is(&uri.serial, info.serial_number())
            && is(&uri.model, info.model())
            && is(&uri.manufacturer, info.manufacturer_id())
            && uri.slot_id.is_none_or(|wanted| wanted == slot.id())
    }

    fn no_key(&self) -> KeyError {
        self.lasting(
            &format!("it has no key {}", self.uri.key_name()),
            "the key has been deleted or renamed; enroll again: `adit enroll --replace`, with `--name NAME` if the server has a name here",
        )
    }

    fn lasting(&self, what: &str, hint: impl Into<String>) -> KeyError {
        KeyError::lasting(
            format!("the token {} cannot be used: {what}", self.uri.token_name()),
            hint,
        )
    }

    /// What an error of the library means. `doing` completes "cannot".
    fn failed(&self, doing: &str, error: &Error) -> KeyError {
        let name = self.uri.token_name();
        match error {
            Error::Pkcs11(
                RvError::TokenNotPresent
                | RvError::DeviceRemoved
                | RvError::TokenNotRecognized
                | RvError::SlotIdInvalid
                | RvError::SessionHandleInvalid
                | RvError::SessionClosed,
                _,
            ) => KeyError::passing(format!("the token {name} is not there"), "plug it in"),
            Error::Pkcs11(RvError::KeyFunctionNotPermitted | RvError::MechanismInvalid, _) => self
                .lasting(
                    &format!(
                        "its key {} cannot {doing} with ECDSA and P-256: {}",
                        self.uri.key_name(),
                        shown(error)
                    ),
                    "choose a key that may sign: `object=LABEL` in the URI of `--key`",
                ),
            error => KeyError::passing(
                format!("the token {name} cannot {doing}: {}", shown(error)),
                "take it out and put it in again; if that does not help, look at it with its own tool",
            ),
        }
    }
}

/// An error in the standard's own words, which its library's documents have, too.
fn shown(error: &Error) -> String {
    match error {
        Error::Pkcs11(code @ RvError::VendorDefined(_), function) => {
            format!("C_{function:?} returns {code}")
        }
        Error::Pkcs11(code, function) => {
            let mut words = String::new();
            for letter in format!("{code:?}").chars() {
                if letter.is_ascii_uppercase() {
                    words.push('_');
                }
                words.push(letter.to_ascii_uppercase());
            }
            format!("C_{function:?} returns CKR{words}")
        }
        Error::LibraryLoading(why) => why.to_string(),
        other => other.to_string(),
    }
}

/// The URI with what the token says of itself, as far as a URI can say it.
fn pinned(uri: &TokenUri, label: &str, serial: &str) -> TokenUri {
    let said = |text: &str| {
        let text = text.trim_end();
        let can_be_said = !text.is_empty() && !text.chars().any(char::is_control);
        can_be_said.then(|| text.to_owned())
    };
    let mut uri = uri.clone();
    uri.token = uri.token.or_else(|| said(label));
    uri.serial = uri.serial.or_else(|| said(serial));
    uri
}

/// What stays in the token of a server that is forgotten, and the command that deletes it.
pub(super) fn left_behind(uri: &TokenUri) -> String {
    let module = uri.module_path.as_deref().unwrap_or(ALL_TOKENS);
    let token = uri.token.as_ref().map(|label| format!(" --token-label {}", quoted(label)));
    let key = match (&uri.id, &uri.object) {
        (Some(id), _) => {
            format!(" --id {}", id.iter().map(|b| format!("{b:02x}")).collect::<String>())
        }
        (None, Some(label)) => format!(" --label {}", quoted(label)),
        (None, None) => String::new(),
    };
    format!(
        "The key {} stays in the token {}. To delete it, for both `privkey` and `pubkey`: `pkcs11-tool --module {}{} --login --delete-object --type privkey{key}`",
        uri.key_name(),
        uri.token_name(),
        quoted(module),
        token.unwrap_or_default(),
    )
}

fn named(info: &TokenInfo) -> String {
    format!("`{}` (serial {})", info.label().trim_end(), info.serial_number().trim_end())
}

fn listed(names: &[String]) -> String {
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;
    use proto::device_key::KeyUri;

    use super::*;

    #[test]
    fn an_error_has_the_name_that_the_standard_has() {
        let failed = |code| Error::Pkcs11(code, Function::GetTokenInfo);
        for (code, words) in [
            (RvError::GeneralError, "C_GetTokenInfo returns CKR_GENERAL_ERROR"),
            (RvError::PinLenRange, "C_GetTokenInfo returns CKR_PIN_LEN_RANGE"),
            (
                RvError::VendorDefined(0x8000_0001),
                "C_GetTokenInfo returns CKR_VENDOR_DEFINED(0x80000001)",
            ),
        ] {
            assert_eq!(shown(&failed(code)), words);
        }
    }

    #[test]
    fn a_uri_is_pinned_to_the_token_that_was_found() {
        for (uri, label, serial, pinned_to) in [
            ("pkcs11:", "work", "01ab", "pkcs11:token=work;serial=01ab"),
            (
                "pkcs11:token=work;object=k",
                "work  ",
                "01ab ",
                "pkcs11:token=work;serial=01ab;object=k",
            ),
            (
                "pkcs11:serial=01ab?module-path=/m",
                "a;b",
                "01ab",
                "pkcs11:token=a%3Bb;serial=01ab?module-path=/m",
            ),
            ("pkcs11:token=work", "work", "  ", "pkcs11:token=work"),
            ("pkcs11:slot-id=1", "a\u{1}", "\0", "pkcs11:slot-id=1"),
        ] {
            let Ok(KeyUri::Token(from)) = uri.parse() else { panic!("{uri}") };
            let stored = KeyUri::Token(pinned(&from, label, serial)).to_string();
            assert_eq!(stored, pinned_to);
            assert!(stored.parse::<KeyUri>().is_ok(), "{stored}");
        }
    }
}
