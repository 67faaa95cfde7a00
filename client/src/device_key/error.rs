//! Why a key in hardware cannot be used, and what cures it.

use std::error::Error;

use common::machine::report::Failure;
use proto::{
    device_key::{KeyUri, TokenUri},
    failure::in_one_line,
    typed::quoted,
};

use super::worker::{PERSON_WITHIN, SIGN_WITHIN, WITHIN};

/// The library that knows all tokens of the system, by the name that the loader finds.
pub(super) const ALL_TOKENS: &str =
    if cfg!(target_os = "macos") { "p11-kit-proxy.dylib" } else { "p11-kit-proxy.so" };

/// Why a key cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct KeyError {
    what: String,
    hint: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// It may pass without a change here: the token is not plugged in, or an error of the device.
    Passing,
    /// A person has to type the PIN.
    NeedsPin {
        /// The name of the token.
        token: String,
        /// The question at the terminal.
        prompt: String,
        /// Whether the token locks itself if the PIN is wrong.
        is_last_try: bool,
    },
    /// It stays so until somebody changes something.
    Lasting,
}

/// What makes the question for a PIN needless.
const PIN_IN_FILE: &str = "or keep the PIN in a file that only you can read, and enroll again (`adit enroll --replace`) with `pin-source=file:/PATH` in the URI of `--key`";

impl KeyError {
    pub(crate) fn passing(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into(), kind: Kind::Passing }
    }

    pub(super) fn lasting(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into(), kind: Kind::Lasting }
    }

    /// The PIN of this token is needed, and no file has it.
    pub(super) fn pin_needed(token: &str, is_last_try: bool) -> Self {
        let last = if is_last_try { " (the last try before it is locked)" } else { "" };
        Self {
            what: format!("the token {token} needs its PIN{last}, and nobody is there to type it"),
            hint: format!("run the same command in a terminal, and type the PIN; {PIN_IN_FILE}"),
            kind: Kind::NeedsPin {
                token: token.to_owned(),
                prompt: format!("PIN of the token {token}{last}: "),
                is_last_try,
            },
        }
    }

    /// This error, where a person was asked for the PIN and typed none.
    pub(super) fn pin_not_typed(mut self) -> Self {
        if let Kind::NeedsPin { token, .. } = &self.kind {
            self.what = format!("no PIN was typed for the token {token}");
            self.hint = format!("run the same command again, and type the PIN; {PIN_IN_FILE}");
        }
        self
    }

    /// The library of a token hangs.
    pub(super) fn token_late(uri: &TokenUri) -> Self {
        Self::passing(
            format!(
                "the token {} gave no answer within {} seconds",
                uri.token_name(),
                WITHIN.as_secs()
            ),
            format!("{}, and start adit again", again(uri)),
        )
    }

    /// Nobody has typed the PIN at the reader of the token.
    pub(super) fn no_pin_at_reader(uri: &TokenUri) -> Self {
        let seconds = (WITHIN + PERSON_WITHIN).as_secs();
        Self::passing(
            format!(
                "nobody typed the PIN of the token {} within {seconds} seconds",
                uri.token_name()
            ),
            "type it at the reader of the token, when adit asks again or after you start adit again",
        )
    }

    /// The token hangs in a handshake, or waits for a person.
    pub(super) fn token_signs_late(uri: &TokenUri) -> Self {
        Self::passing(
            format!(
                "the token {} made no signature within {} seconds",
                uri.token_name(),
                SIGN_WITHIN.as_secs()
            ),
            format!(
                "if it waits until somebody touches it, choose a key that does not: `object=LABEL` in the URI of `--key`; otherwise {}",
                again(uri)
            ),
        )
    }

    /// The TPM hangs.
    pub(super) fn tpm_late(uri: &KeyUri) -> Self {
        let path = if let KeyUri::Tpm(path) = uri { path } else { "" };
        Self::passing(
            format!("the TPM at `{path}` gave no answer in time"),
            format!(
                "see which other program uses it: `sudo lsof {}`; if there is none, restart this computer",
                quoted(path)
            ),
        )
    }

    /// A defect, or a library that behaves strangely.
    pub(super) fn unusable(error: &(dyn Error + 'static)) -> Self {
        Self::lasting(
            format!("cannot use this device's private key: {}", in_one_line(error)),
            "look at the key and its device: `adit doctor`",
        )
    }

    /// What is stored of a key cannot be one.
    pub(super) fn damaged(why: &str) -> Self {
        Self::lasting(
            format!("cannot use this device's private key: {why}"),
            "enroll again: `adit enroll --replace`",
        )
    }

    /// The question for the PIN, if that is what is missing.
    pub(super) fn prompt(&self) -> Option<&str> {
        match &self.kind {
            Kind::NeedsPin { prompt, .. } => Some(prompt),
            Kind::Passing | Kind::Lasting => None,
        }
    }

    /// Whether the question for the PIN says that it is the last try.
    pub(super) fn is_last_try(&self) -> bool {
        matches!(self.kind, Kind::NeedsPin { is_last_try: true, .. })
    }

    /// Whether it is useless to try again before somebody has changed something.
    pub(crate) fn is_lasting(&self) -> bool {
        self.kind != Kind::Passing
    }

    /// What cures it.
    pub(crate) fn hint(&self) -> &str {
        &self.hint
    }
}

/// What helps a token that hangs, and how to see whether it does.
fn again(uri: &TokenUri) -> String {
    format!(
        "take the token out and put it in again; see whether its library answers: `pkcs11-tool --module {} --list-token-slots`",
        quoted(uri.module_path.as_deref().unwrap_or(ALL_TOKENS))
    )
}

impl From<KeyError> for Failure {
    fn from(why: KeyError) -> Self {
        Self::new(&why.what).hint(why.hint)
    }
}
