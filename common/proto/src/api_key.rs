//! The key of an application that cannot run `adit`: its text, what of it may be shown, and the hash
//! by which it is known.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::{Encoding, Specification};
use zeroize::Zeroizing;

use crate::crypto::{fill_random, sha256};

const BEGIN: &str = "adit_";
/// Random bytes of the part that is shown.
const SHOWN: usize = 5;
/// Random bytes of the secret part.
const SECRET: usize = 32;
/// Characters of a prefix, and of a whole key: 8 and 52 characters of base32.
const PREFIX_LEN: usize = BEGIN.len() + 8;
const LEN: usize = PREFIX_LEN + 52;

/// A key as text: `adit_`, eight characters by which lists name it, and 256 secret bits. It is
/// never shown by `Debug`, and its memory is cleared when it is dropped.
pub struct ApiKey(Zeroizing<String>);

/// The beginning of a key, which is no secret: `adit_` and eight characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyPrefix(String);

/// SHA-256 of a key. A key has so much entropy that a fast hash is as good as a slow one.
#[derive(Clone, Copy)]
pub struct ApiKeyHash([u8; 32]);

/// Small letters and digits: a double click selects all of a key.
fn base32() -> Encoding {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().expect("32 different symbols are an encoding")
}

impl ApiKey {
    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; SHOWN + SECRET]);
        fill_random(&mut *bytes);
        let base32 = base32();
        let secret = Zeroizing::new(base32.encode(&bytes[SHOWN..]));
        // Allocated with its final size: a text that grows leaves copies in memory.
        let mut text = Zeroizing::new(String::with_capacity(LEN));
        text.push_str(BEGIN);
        text.push_str(&base32.encode(&bytes[..SHOWN]));
        text.push_str(&secret);
        Self(text)
    }

    /// Reads a key that an application has sent. `None` if it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_symbol = |byte: u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
        let is_key = text.len() == LEN
            && text.strip_prefix(BEGIN).is_some_and(|rest| rest.bytes().all(is_symbol));
        is_key.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The key itself, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The part that may be shown.
    pub fn prefix(&self) -> KeyPrefix {
        KeyPrefix(self.0[..PREFIX_LEN].to_owned())
    }

    /// The hash by which it is known.
    pub fn hash(&self) -> ApiKeyHash {
        ApiKeyHash(sha256(self.0.as_bytes()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.prefix())
    }
}

impl KeyPrefix {
    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<String> for KeyPrefix {
    /// A prefix that was stored.
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl ApiKeyHash {
    /// The bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for ApiKeyHash {
    /// A hash that was stored.
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// In constant time.
impl PartialEq for ApiKeyHash {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for ApiKeyHash {}

impl fmt::Debug for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeyHash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_made_and_its_secret_shows_nowhere() {
        let (one, other) = (ApiKey::generate(), ApiKey::generate());
        let again = ApiKey::parse(one.reveal()).expect("a key");
        assert_eq!((again.prefix(), again.hash()), (one.prefix(), one.hash()));
        assert_ne!(one.hash(), other.hash());
        assert_eq!(one.reveal().len(), LEN);
        let secret = &one.reveal()[PREFIX_LEN..];
        assert!(!format!("{one:?} {:?} {}", one.hash(), one.prefix()).contains(secret));
        assert!(one.reveal().starts_with(one.prefix().as_str()));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let key = ApiKey::generate();
        let text = key.reveal();
        for wrong in [
            "",
            "adit_",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}a"),
            &text.to_uppercase(),
            &text.replacen("adit_", "edit_", 1),
            &format!("{}\u{e4}", &text[..text.len() - 2]),
            &format!("{}1", &text[..text.len() - 1]),
        ] {
            assert!(ApiKey::parse(wrong).is_none(), "{wrong}");
        }
    }
}
