//! Who a device is: its name, its id, and what its certificate says of it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::crypto::{fill_random, sha256};

const URI_PREFIX: &str = "urn:adit:device:";
/// A certificate is valid from this many seconds (a day) before it was made, because the clocks of
/// two machines differ.
pub const CLOCK_SLACK: i64 = 24 * 3600;
/// How long after its certificate's end a device may still prove its key to get a new one, in
/// seconds: 90 days.
pub const RECOVER_WITHIN: i64 = 90 * 24 * 3600;

/// The id of a device: 32 random bits, shown as `d7c4-91ae`. It does not change when the device is
/// renamed, and is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(u32);

impl DeviceId {
    /// A random id.
    pub fn generate() -> Self {
        let mut bytes = [0; 4];
        fill_random(&mut bytes);
        Self(u32::from_be_bytes(bytes))
    }

    /// The URI that is the only subject alternative name of the device's certificate.
    pub fn to_uri(self) -> String {
        format!("{URI_PREFIX}{self}")
    }
}

impl From<u32> for DeviceId {
    fn from(bits: u32) -> Self {
        Self(bits)
    }
}

impl From<DeviceId> for u32 {
    fn from(id: DeviceId) -> Self {
        id.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}-{:04x}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl FromStr for DeviceId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "a device id looks like d7c4-91ae";
        let (high, low) = text.split_once('-').ok_or(WHY)?;
        let hex = |s: &str| {
            (s.len() == 4 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
                .then(|| u32::from_str_radix(s, 16).ok())
                .flatten()
        };
        Ok(Self(hex(high).ok_or(WHY)? << 16 | hex(low).ok_or(WHY)?))
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for DeviceId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A name for a device or a server: 1 to 63 of letters, digits, `.`, `_` and `-`, beginning with a
/// letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name could be taken for a [`DeviceId`]. A new device cannot have such a name;
    /// names that older versions accepted can still be read.
    pub fn looks_like_id(&self) -> bool {
        self.0.to_ascii_lowercase().parse::<DeviceId>().is_ok()
    }
}

/// The name of a person, as the owner or a sign-in gives it: 1 to 128 of letters, digits, `.`, `_`,
/// `-`, `+` and `@`, beginning with a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for UserName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+@".contains(c);
        if text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(plain)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "a user's name has 1 to 128 letters, digits, `.`, `_`, `-`, `+` or `@` and begins with a letter or a digit",
            )
        }
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl TryFrom<String> for UserName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(plain)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "a name has 1 to 63 letters, digits, `.`, `_` or `-` and begins with a letter or a digit",
            )
        }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// SHA-256 of a key's SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7). It identifies the key in
/// every certificate for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({})", data_encoding::HEXLOWER.encode(&self.0[..8]))
    }
}

/// The contents of a certificate. Reading a certificate does not verify it: the TLS verifier does
/// that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The device it was issued to; `None` for a server's or a CA's.
    pub device: Option<DeviceId>,
    /// The hash of the key that it certifies.
    pub key: KeyHash,
    /// First second of its validity, Unix time.
    pub not_before: i64,
    /// Last second of its validity, Unix time.
    pub not_after: i64,
}

impl Certificate {
    /// When its holder should renew it, Unix time: after two thirds of its lifetime, plus up to a
    /// twelfth of it by `jitter` (0 to 1), so that devices do not all renew at the same time.
    pub fn renew_at(&self, jitter: f64) -> i64 {
        let issued = self.not_before + CLOCK_SLACK;
        issued + ((self.not_after - issued) as f64 * (2.0 / 3.0 + jitter / 12.0)) as i64
    }

    /// Whether at `now`, Unix time, it cannot even renew itself: it is not valid yet, or it ended
    /// more than [`RECOVER_WITHIN`] ago.
    pub fn is_out_of_time(&self, now: i64) -> bool {
        now < self.not_before || now > self.not_after.saturating_add(RECOVER_WITHIN)
    }

    /// Reads a DER-encoded certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, NotACertificate> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| NotACertificate)?;
        if !rest.is_empty() {
            return Err(NotACertificate);
        }
        let names = parsed.subject_alternative_name().map_err(|_| NotACertificate)?;
        let device = match names.as_ref().map(|n| n.value.general_names.as_slice()) {
            Some([GeneralName::URI(uri)]) => {
                uri.strip_prefix(URI_PREFIX).and_then(|id| id.parse().ok())
            }
            _ => None,
        };
        Ok(Self {
            device,
            key: KeyHash(sha256(parsed.public_key().raw)),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }
}

/// The bytes are not an X.509 certificate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an X.509 certificate")]
pub struct NotACertificate;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_read_as_it_is_written() {
        let id: DeviceId = "d7c4-91ae".parse().expect("an id");
        assert_eq!(id.to_string(), "d7c4-91ae");
        assert_eq!(id.to_uri(), "urn:adit:device:d7c4-91ae");
        for bad in ["", "d7c491ae", "d7c4-91a", "D7C4-91AE", "+7c4-91ae", "d7c4-91ae-"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_safe_in_a_path_and_on_a_terminal() {
        for good in ["thinkpad", "ci-runner.2", "A_b"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", ".", "..", "../x", "a/b", "a b", "é", "-x", "\u{1b}[2J", &long] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_that_a_reader_could_take_for_an_id_is_found() {
        let name = |text: &str| text.parse::<Name>().expect(text);
        for like in ["d7c4-91ae", "D7C4-91AE", "0000-0000"] {
            assert!(name(like).looks_like_id(), "{like}");
        }
        for unlike in ["laptop", "d7c4-91a", "d7c4_91ae", "d7c4-91ag", "d7c4-91ae-2"] {
            assert!(!name(unlike).looks_like_id(), "{unlike}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_in_its_last_third_and_well_before_its_end() {
        let certificate = Certificate {
            device: None,
            key: KeyHash([0; 32]),
            not_before: -CLOCK_SLACK,
            not_after: 30 * 86_400,
        };
        assert_eq!(certificate.renew_at(0.0), 20 * 86_400);
        assert!(certificate.renew_at(1.0) < 23 * 86_400);
    }

    #[test]
    fn garbage_is_no_certificate() {
        assert_eq!(Certificate::from_der(b"garbage"), Err(NotACertificate));
    }
}
