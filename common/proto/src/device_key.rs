//! Where a device keeps its key, and the URI that says so.

mod uri;

use serde::{Deserialize, Serialize};

pub use self::uri::{KeyUri, TokenUri, UriError};

/// What a device is told whose key is in a file, behind the name of its role. `adit` finds the refusal
/// by it.
pub const KEY_IN_FILE: &str = "must keep their key in hardware, and this one's is in a file";

/// How a device keeps its private key. The server has it from the device, and cannot verify it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStorage {
    /// In a file, from which it can be copied. Also devices of older versions, which say nothing.
    #[default]
    File,
    /// In a PKCS#11 token, which never gives it away.
    Pkcs11,
    /// In a TPM 2.0, which never gives it away.
    Tpm,
    /// In a way that a later version knows. It does not count as hardware.
    #[serde(other)]
    Unknown,
}

impl KeyStorage {
    /// Whether the key cannot be copied, as the device says.
    pub fn is_hardware(self) -> bool {
        matches!(self, Self::Pkcs11 | Self::Tpm)
    }

    /// Its word in a register and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Pkcs11 => "pkcs11",
            Self::Tpm => "tpm",
            Self::Unknown => "unknown",
        }
    }

    /// What [`KeyStorage::word`] has written.
    pub fn from_word(word: &str) -> Self {
        [Self::File, Self::Pkcs11, Self::Tpm]
            .into_iter()
            .find(|kept| kept.word() == word)
            .unwrap_or(Self::Unknown)
    }

    /// For people, behind "the key is".
    pub fn place(self) -> &'static str {
        match self {
            Self::File => "in a file",
            Self::Pkcs11 => "in a PKCS#11 token",
            Self::Tpm => "in a TPM",
            Self::Unknown => "in a place that this version does not know",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_word_is_read_and_does_not_count_as_hardware() {
        for (json, kept, hardware) in [
            (r#""file""#, KeyStorage::File, false),
            (r#""pkcs11""#, KeyStorage::Pkcs11, true),
            (r#""tpm""#, KeyStorage::Tpm, true),
            (r#""enclave""#, KeyStorage::Unknown, false),
        ] {
            let read: KeyStorage = serde_json::from_str(json).expect("read");
            assert_eq!((read, read.is_hardware()), (kept, hardware), "{json}");
            assert_eq!(KeyStorage::from_word(json.trim_matches('"')), kept);
        }
    }
}
