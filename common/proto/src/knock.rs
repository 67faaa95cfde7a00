//! The MAC in a client's first packet. The server does not answer a first packet without it.
//!
//! This is single-packet authorization; here it is called a knock. A client chooses the Destination
//! Connection ID of its first Initial packet (RFC 9000 section 7.2: at least 8 bytes,
//! unpredictable). Adit uses a MAC as this ID. Without a key nobody can make one. There are two
//! kinds of keys:
//!
//! - A [`SharedKey`] makes 8 random bytes ‖ 12 bytes of HMAC-SHA-256 over them. Each open invitation
//!   has one.
//! - A [`DeviceKnock`] makes 6 random bytes ‖ the device's id, masked (4) ‖ 10 bytes of
//!   HMAC-SHA-256 over both, under a key that only this device and the server know.
//!
//! The id is in the knock so that the server finds the device's key with one HMAC and one look-up:
//! trying the keys of 10,000 devices would cost milliseconds for each packet of a stranger. The
//! mask is a function of the random bytes and of a secret that all devices of a server share, so
//! that an observer on the path cannot see whether two knocks are of the same device. A present or
//! former device of this server that also sees the packets of others can remove the mask and
//! recognise a device by its id. That is the cost of the look-up. Nobody can make a knock with the
//! shared secret alone, so it does not change when a device is revoked.

use std::{fmt, str::FromStr};

use aws_lc_rs::hmac;
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    crypto::fill_random,
    identity::{DeviceId, KeyHash},
    secret,
};

/// The length of a knock in bytes: that of the longest connection ID of QUIC version 1 (RFC 9000
/// section 17.2).
pub const KNOCK_LEN: usize = NONCE_LEN + MAC_LEN;
const NONCE_LEN: usize = 8;
const MAC_LEN: usize = 12;
/// The lengths of the parts of a device's knock. Its MAC has 80 bits: guessing one takes 2^79
/// packets on average.
const DEVICE_NONCE_LEN: usize = 6;
const MASKED_LEN: usize = 10;

/// A whole knock.
pub type Knock = [u8; KNOCK_LEN];

/// A secret of 32 bytes that makes and checks knocks. Such a knock does not contain a device id.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey([u8; 32]);

impl Drop for SharedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl SharedKey {
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
        self.checker().opens_for(id)
    }

    /// This key, prepared for checking many knocks.
    pub fn checker(&self) -> Checker {
        Checker(self.hmac())
    }

    /// Derives another secret, from which this one cannot be computed.
    pub fn derive(&self, label: &[u8]) -> Self {
        Self(tag(&self.hmac(), label))
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

/// A [`SharedKey`] that is prepared for checking.
#[derive(Clone)]
pub struct Checker(hmac::Key);

impl Checker {
    /// Whether `id` was made with this key; takes the same time for every wrong MAC.
    pub fn opens_for(&self, id: &[u8]) -> bool {
        let Ok(knock) = Knock::try_from(id) else { return false };
        let (nonce, mac) = knock.split_at(NONCE_LEN);
        is_tag(&self.0, nonce, mac)
    }
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checker(…)")
    }
}

/// The key with which one device makes its knocks.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceKnock {
    id: DeviceId,
    mask: SharedKey,
    key: SharedKey,
}

impl DeviceKnock {
    const LEN: usize = 4 + 32 + 32;

    fn knock(&self) -> Knock {
        let mut knock = [0; KNOCK_LEN];
        fill_random(&mut knock[..DEVICE_NONCE_LEN]);
        let mask = mask(&self.mask.hmac(), &knock);
        let masked = u32::from(self.id) ^ mask;
        knock[DEVICE_NONCE_LEN..MASKED_LEN].copy_from_slice(&masked.to_be_bytes());
        let mac = tag(&self.key.hmac(), &knock[..MASKED_LEN]);
        knock[MASKED_LEN..].copy_from_slice(&mac[..KNOCK_LEN - MASKED_LEN]);
        knock
    }
}

/// The server's keys for the knocks of all its devices: derives the key of each device, and finds
/// the device that made a knock.
#[derive(Clone)]
pub struct DeviceKnocks {
    mask: SharedKey,
    unmask: hmac::Key,
    keys: hmac::Key,
}

impl DeviceKnocks {
    /// Derives all keys from `master`, which never leaves the server.
    pub fn new(master: &SharedKey) -> Self {
        let mask = master.derive(b"adit/1 knock mask");
        Self { unmask: mask.hmac(), mask, keys: master.derive(b"adit/1 knock of a device").hmac() }
    }

    /// The knock key of this device. It depends on the hash of the certificate's key, too: should
    /// two devices ever get the same id, their knock keys still differ.
    pub fn of(&self, id: DeviceId, key: KeyHash) -> KnockKey {
        KnockKey::Device(DeviceKnock { id, mask: self.mask.clone(), key: self.key(id, key) })
    }

    /// The device that made this knock. `find` returns the hash of the key with which the device of
    /// an id enrolled, or `None` if no such device may connect.
    pub fn whose(
        &self,
        knock: &[u8],
        find: impl FnOnce(DeviceId) -> Option<KeyHash>,
    ) -> Option<DeviceId> {
        let knock = Knock::try_from(knock).ok()?;
        let mut masked = [0; MASKED_LEN - DEVICE_NONCE_LEN];
        masked.copy_from_slice(&knock[DEVICE_NONCE_LEN..MASKED_LEN]);
        let id = DeviceId::from(u32::from_be_bytes(masked) ^ mask(&self.unmask, &knock));
        let key = self.key(id, find(id)?);
        is_tag(&key.hmac(), &knock[..MASKED_LEN], &knock[MASKED_LEN..]).then_some(id)
    }

    fn key(&self, id: DeviceId, key: KeyHash) -> SharedKey {
        SharedKey(tag(&self.keys, &[&u32::from(id).to_be_bytes()[..], &key.0].concat()))
    }
}

fn mask(key: &hmac::Key, knock: &Knock) -> u32 {
    let [a, b, c, d, ..] = tag(key, &knock[..DEVICE_NONCE_LEN]);
    u32::from_be_bytes([a, b, c, d])
}

fn tag(key: &hmac::Key, message: &[u8]) -> [u8; 32] {
    let mut tag = [0; 32];
    tag.copy_from_slice(hmac::sign(key, message).as_ref());
    tag
}

/// Whether `start` is how the MAC of `message` begins.
fn is_tag(key: &hmac::Key, message: &[u8], start: &[u8]) -> bool {
    let tag = tag(key, message);
    aws_lc_rs::constant_time::verify_slices_are_equal(&tag[..start.len()], start).is_ok()
}

/// The key with which a client makes its knocks. Its text form is base64.
#[derive(Clone, PartialEq, Eq)]
pub enum KnockKey {
    /// A key that several devices may have: that of an invitation, or the one that all devices of a
    /// server shared before each device had its own.
    Shared(SharedKey),
    /// The key of one device.
    Device(DeviceKnock),
}

impl KnockKey {
    /// A new connection ID that only holders of this key can make.
    pub fn knock(&self) -> Knock {
        match self {
            Self::Shared(key) => key.knock(),
            Self::Device(device) => device.knock(),
        }
    }
}

impl From<SharedKey> for KnockKey {
    fn from(key: SharedKey) -> Self {
        Self::Shared(key)
    }
}

impl fmt::Debug for KnockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnockKey(…)")
    }
}

impl KnockKey {
    /// The key as text, which [`KnockKey::from_str`] reads.
    pub fn text(&self) -> Zeroizing<String> {
        match self {
            Self::Shared(key) => key.text(),
            Self::Device(DeviceKnock { id, mask, key }) => {
                let mut bytes = Zeroizing::new([0; DeviceKnock::LEN]);
                bytes[..4].copy_from_slice(&u32::from(*id).to_be_bytes());
                bytes[4..36].copy_from_slice(&mask.0);
                bytes[36..].copy_from_slice(&key.0);
                Zeroizing::new(BASE64.encode(&*bytes))
            }
        }
    }
}

impl FromStr for KnockKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "a knock key is 32 or 68 bytes in base64";
        let bytes = Zeroizing::new(BASE64.decode(text.as_bytes()).map_err(|_| WHY)?);
        if bytes.len() != DeviceKnock::LEN {
            return shared_key(&bytes).map(Self::Shared).ok_or(WHY);
        }
        let (id, keys) = bytes.split_first_chunk().ok_or(WHY)?;
        let (mask, key) = keys.split_at(keys.len() / 2);
        Ok(Self::Device(DeviceKnock {
            id: u32::from_be_bytes(*id).into(),
            mask: shared_key(mask).ok_or(WHY)?,
            key: shared_key(key).ok_or(WHY)?,
        }))
    }
}

impl Serialize for KnockKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        secret::serialize(&self.text(), to)
    }
}

impl<'de> Deserialize<'de> for KnockKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        secret::parse(from)
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(…)")
    }
}

impl SharedKey {
    fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(&self.0))
    }
}

/// The key that has these bytes, if they are as many as one has.
fn shared_key(bytes: &[u8]) -> Option<SharedKey> {
    let mut key = SharedKey([0; 32]);
    (bytes.len() == key.0.len()).then(|| {
        key.0.copy_from_slice(bytes);
        key
    })
}

impl FromStr for SharedKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "a knock key is 32 bytes in base64";
        let bytes = Zeroizing::new(BASE64.decode(text.as_bytes()).map_err(|_| WHY)?);
        shared_key(&bytes).ok_or(WHY)
    }
}

impl Serialize for SharedKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        secret::serialize(&self.text(), to)
    }
}

impl<'de> Deserialize<'de> for SharedKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        secret::parse(from)
    }
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
        let (ours, theirs) = (SharedKey::generate(), SharedKey::generate());
        let knock = ours.knock();
        assert!(ours.opens_for(&knock));
        assert!(!theirs.opens_for(&knock));
    }

    #[test]
    fn a_knock_with_any_bit_changed_or_another_length_is_refused() {
        let key = SharedKey::generate();
        let knock = key.knock();
        for bit in 0..KNOCK_LEN * 8 {
            let mut bad = knock;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.opens_for(&bad), "bit {bit}");
        }
        assert!(!key.opens_for(&knock[..19]));
        assert!(!key.opens_for(&[]));
    }

    fn devices() -> (DeviceKnocks, DeviceId, KeyHash) {
        let id = "d7c4-91ae".parse().expect("an id");
        (DeviceKnocks::new(&SharedKey::from_bytes([3; 32])), id, KeyHash([5; 32]))
    }

    #[test]
    fn the_server_finds_the_device_behind_a_knock() {
        let (knocks, id, key) = devices();
        let knock = knocks.of(id, key).knock();
        let asked = std::cell::Cell::new(None);
        let find = |id| {
            asked.set(Some(id));
            Some(key)
        };
        assert_eq!(knocks.whose(&knock, find), Some(id));
        assert_eq!(asked.get(), Some(id));
        // A device that may not connect is not found, nor is one with another key under the same
        // id.
        assert_eq!(knocks.whose(&knock, |_| None), None);
        assert_eq!(knocks.whose(&knock, |_| Some(KeyHash([6; 32]))), None);
        let other = DeviceKnocks::new(&SharedKey::from_bytes([4; 32]));
        assert_eq!(other.whose(&knock, |_| Some(key)), None);
    }

    #[test]
    fn a_devices_knock_with_any_bit_changed_is_nobodys() {
        let (knocks, id, key) = devices();
        let knock = knocks.of(id, key).knock();
        for bit in 0..KNOCK_LEN * 8 {
            let mut bad = knock;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(knocks.whose(&bad, |_| Some(key)), None, "bit {bit}");
        }
        assert_eq!(knocks.whose(&knock[..19], |_| Some(key)), None);
    }

    #[test]
    fn one_device_cannot_knock_as_another() {
        let (knocks, id, key) = devices();
        let KnockKey::Device(mut own) = knocks.of(id, key) else { panic!("its own") };
        own.id = "0000-0001".parse().expect("an id");
        assert_eq!(knocks.whose(&own.knock(), |_| Some(key)), None);
    }

    #[test]
    fn two_knocks_of_one_device_have_nothing_in_common() {
        let (knocks, id, key) = devices();
        let own = knocks.of(id, key);
        let all: Vec<_> = (0..64).map(|_| own.knock()).collect();
        for part in [0..4, 2..6, 6..10, 10..14, 16..20] {
            let parts: std::collections::HashSet<_> =
                all.iter().map(|knock| &knock[part.clone()]).collect();
            assert_eq!(parts.len(), all.len(), "{part:?}");
        }
    }

    #[test]
    fn both_kinds_of_keys_are_read_as_they_are_written() {
        let (knocks, id, key) = devices();
        for key in [knocks.of(id, key), SharedKey::generate().into()] {
            let text = serde_json::to_string(&key).expect("JSON");
            assert!(serde_json::from_str::<KnockKey>(&text).expect("a key") == key);
            assert_eq!(format!("{key:?}"), "KnockKey(…)");
        }
        let shared: KnockKey = SharedKey::from_bytes([7; 32]).into();
        let before = serde_json::to_string(&SharedKey::from_bytes([7; 32])).expect("JSON");
        assert_eq!(serde_json::to_string(&shared).expect("JSON"), before, "as it always was");
        for bad in ["", "x", "AAAA", &BASE64.encode(&[0; 33]), &BASE64.encode(&[0; 69])] {
            assert!(bad.parse::<KnockKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_knocks_differ_and_the_key_never_shows_in_debug() {
        let key = SharedKey::from_bytes([7; 32]);
        assert_ne!(key.knock(), key.knock());
        assert_eq!(format!("{key:?}"), "SharedKey(…)");
    }
}
