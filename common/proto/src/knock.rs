//! The MAC that a client's first packet carries, so that the server can stay silent to everybody
//! else.
//!
//! A client chooses the Destination Connection ID of its first Initial packet (RFC 9000 section
//! 7.2: at least 8 bytes, unpredictable). Ours is 8 random bytes followed by 12 bytes of
//! HMAC-SHA-256 over them. Without the key nobody can make one, and the server answers nothing that
//! lacks it.

use std::fmt;

use aws_lc_rs::{hmac, rand};
use serde::{Deserialize, Serialize};

/// Bytes of a whole knock: the longest connection ID of QUIC version 1 (RFC 9000 section 17.2).
pub const KNOCK_LEN: usize = NONCE_LEN + MAC_LEN;
const NONCE_LEN: usize = 8;
const MAC_LEN: usize = 12;

/// The key that makes and checks knocks: the server's own, or that of an open invitation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DoorKey([u8; 32]);

impl DoorKey {
    /// A fresh random key.
    pub fn generate() -> Self {
        let mut key = [0; 32];
        fill_random(&mut key);
        Self(key)
    }

    /// A key from 32 bytes that were derived or stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 secret bytes, for storing.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A new connection ID that only holders of this key can make.
    pub fn knock(&self) -> [u8; KNOCK_LEN] {
        let mut id = [0; KNOCK_LEN];
        fill_random(&mut id[..NONCE_LEN]);
        let tag = hmac::sign(&self.hmac(), &id[..NONCE_LEN]);
        id[NONCE_LEN..].copy_from_slice(&tag.as_ref()[..MAC_LEN]);
        id
    }

    /// Whether `id` was made with this key; takes the same time for every wrong MAC.
    pub fn opens_for(&self, id: &[u8]) -> bool {
        if id.len() != KNOCK_LEN {
            return false;
        }
        let (nonce, mac) = id.split_at(NONCE_LEN);
        let tag = hmac::sign(&self.hmac(), nonce);
        aws_lc_rs::constant_time::verify_slices_are_equal(&tag.as_ref()[..MAC_LEN], mac).is_ok()
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for DoorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DoorKey(…)")
    }
}

impl From<DoorKey> for String {
    fn from(key: DoorKey) -> Self {
        data_encoding::BASE64.encode(&key.0)
    }
}

impl TryFrom<String> for DoorKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = data_encoding::BASE64
            .decode(text.as_bytes())
            .map_err(|_| "a door key is 32 bytes in base64")?;
        Ok(Self(bytes.try_into().map_err(|_| "a door key is 32 bytes in base64")?))
    }
}

/// Fills `buffer` from the operating system's random generator.
///
/// # Panics
/// If the operating system has no randomness to give, which no caller could survive.
pub fn fill_random(buffer: &mut [u8]) {
    rand::fill(buffer).expect("the operating system's random generator works");
}

/// A random number from 0 to 1, for jitter.
pub fn random_fraction() -> f64 {
    let mut bytes = [0; 2];
    fill_random(&mut bytes);
    f64::from(u16::from_be_bytes(bytes)) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knock_opens_only_for_its_own_key() {
        let (ours, theirs) = (DoorKey::generate(), DoorKey::generate());
        let knock = ours.knock();
        assert!(ours.opens_for(&knock));
        assert!(!theirs.opens_for(&knock));
    }

    #[test]
    fn a_knock_with_any_bit_changed_or_another_length_is_refused() {
        let key = DoorKey::generate();
        let knock = key.knock();
        for bit in 0..KNOCK_LEN * 8 {
            let mut bad = knock;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.opens_for(&bad), "bit {bit}");
        }
        assert!(!key.opens_for(&knock[..19]));
        assert!(!key.opens_for(&[]));
    }

    #[test]
    fn two_knocks_differ_and_the_key_never_shows_in_debug() {
        let key = DoorKey::from_bytes([7; 32]);
        assert_ne!(key.knock(), key.knock());
        assert_eq!(format!("{key:?}"), "DoorKey(…)");
    }
}
