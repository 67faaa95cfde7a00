//! The connection IDs that this server chooses, and how often it sends a stateless reset for one
//! that it has forgotten.
//!
//! A packet for a forgotten connection is answered with a stateless reset (RFC 9000 section 10.3),
//! so that a client learns within seconds that the server was restarted. But anyone who has
//! recorded such a packet could ask for a reset. So a connection ID that this server never chose
//! gets none, and each that it did choose gets a few, at growing intervals. A client whose resets
//! are all lost learns it by a new handshake.
//!
//! Each process of this server has a generation of its own, which its IDs carry. So a process that
//! has replaced another one knows which datagrams are for that one.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use proto::{crypto::fill_random, knock::SharedKey};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

use super::recent::Recent;

/// The length of the connection IDs, in bytes.
pub(crate) const LEN: usize = NONCE_LEN + MAC_LEN;
/// A masked generation, and two random bytes.
const NONCE_LEN: usize = 3;
const MAC_LEN: usize = 5;
/// How many forgotten connection IDs are remembered.
const FORGOTTEN: usize = 1 << 12;
/// Resets for one connection ID: the first at once, the second a second later, and each pause is
/// twice as long as the one before.
const RESETS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The generation of a process of this server: a new one has the next number, and after 255 comes 0.
pub(crate) type Generation = u8;

/// A generation for a process that has replaced no other one. It is random, so that the IDs of a
/// process that was killed are most likely not chosen again.
pub(crate) fn first_generation() -> Generation {
    let mut one = [0];
    fill_random(&mut one);
    one[0]
}

/// Makes and reads the connection IDs of this server: the generation, masked ‖ 2 random bytes ‖ 5
/// bytes of a MAC.
#[derive(Clone)]
pub(crate) struct IdKey(hmac::Key);

impl IdKey {
    /// IDs made with `key` are recognized after a restart, too.
    pub(crate) fn new(key: &SharedKey) -> Self {
        let key = key.derive(b"adit/1 connection ids");
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))
    }

    fn id(&self, generation: Generation, random: [u8; 2]) -> [u8; LEN] {
        let mut id = [0; LEN];
        id[0] = generation ^ self.mask(random);
        id[1..NONCE_LEN].copy_from_slice(&random);
        let tag = hmac::sign(&self.0, &id[..NONCE_LEN]);
        id[NONCE_LEN..].copy_from_slice(&tag.as_ref()[..MAC_LEN]);
        id
    }

    /// The generation of the process that has chosen `id`; `None` if this server did not choose it.
    pub(crate) fn generation(&self, id: &[u8]) -> Option<Generation> {
        let [masked, one, two, ..] = *id else { return None };
        let generation = masked ^ self.mask([one, two]);
        (self.id(generation, [one, two]) == *id).then_some(generation)
    }

    /// Without it, everybody could see which IDs are of one generation.
    fn mask(&self, random: [u8; 2]) -> u8 {
        hmac::sign(&self.0, &random).as_ref()[0]
    }
}

/// Chooses the connection IDs of one process.
pub(crate) struct OwnIds {
    key: IdKey,
    generation: Generation,
    resets: Arc<Mutex<Resets>>,
    began: Instant,
}

impl OwnIds {
    /// Chooses IDs of this generation.
    pub(crate) fn new(key: IdKey, generation: Generation, resets: Arc<Mutex<Resets>>) -> Self {
        Self { key, generation, resets, began: Instant::now() }
    }
}

impl fmt::Debug for OwnIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnIds(…)")
    }
}

impl ConnectionIdGenerator for OwnIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut random = [0; 2];
        fill_random(&mut random);
        ConnectionId::new(&self.key.id(self.generation, random))
    }

    /// QUIC calls this for an unknown connection ID, right before it sends a stateless reset.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let mut resets = self.resets.lock().unwrap_or_else(PoisonError::into_inner);
        let may = self.key.generation(id).is_some() && resets.may_send(id, self.began.elapsed());
        may.then_some(()).ok_or(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The resets that were sent.
#[derive(Debug)]
pub(crate) struct Resets(Recent<Vec<u8>, (u32, Duration)>);

impl Default for Resets {
    fn default() -> Self {
        Self(Recent::new(FORGOTTEN))
    }
}

impl Resets {
    /// Whether a reset may be sent for a forgotten connection ID of this server. `now` is a time
    /// since any fixed moment.
    fn may_send(&mut self, id: &[u8], now: Duration) -> bool {
        let id = id.to_vec();
        match self.0.get_mut(&id) {
            Some((sent, next)) => {
                let may = *sent < RESETS && now >= *next;
                if may {
                    *next = now + FIRST_PAUSE * (1 << *sent);
                    *sent += 1;
                }
                may
            }
            None => {
                self.0.put(id, (1, now + FIRST_PAUSE));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(key: u8) -> OwnIds {
        OwnIds::new(IdKey::new(&SharedKey::from_bytes([key; 32])), 7, Arc::default())
    }

    #[test]
    fn the_generation_of_an_id_is_read_by_its_server_alone() {
        let key = |key| IdKey::new(&SharedKey::from_bytes([key; 32]));
        let mut firsts = std::collections::HashSet::new();
        for generation in 0..=255 {
            let id = OwnIds::new(key(1), generation, Arc::default()).generate_cid();
            assert_eq!(key(1).generation(&id), Some(generation));
            assert_eq!(key(2).generation(&id), None);
            let id = ids(1).generate_cid();
            firsts.insert(id[0]);
            let mut forged = id.to_vec();
            forged[0] ^= 1;
            assert_eq!(key(1).generation(&forged), None);
        }
        assert!(firsts.len() > 64, "the generation is masked: {firsts:?}");
    }

    #[test]
    fn an_id_is_recognized_after_a_restart_and_by_no_other_server() {
        let id = ids(1).generate_cid();
        assert_eq!(id.len(), LEN);
        assert!(ids(1).validate(&id).is_ok());
        assert!(ids(2).validate(&id).is_err());
        assert!(ids(1).validate(&ConnectionId::new(&[])).is_err());
        assert!(ids(1).validate(&ConnectionId::new(&[0; LEN])).is_err());
    }

    #[test]
    fn a_forgotten_id_is_reset_a_few_times_at_growing_intervals() {
        let mut resets = Resets::default();
        let sent: Vec<_> = (0..100_000u64)
            .filter(|tenths| resets.may_send(&[1; LEN], Duration::from_millis(tenths * 100)))
            .map(|tenths| tenths / 10)
            .collect();
        assert_eq!(sent, [0, 1, 3, 7, 15, 31, 63, 127]);
        assert!(
            resets.may_send(&[2; LEN], Duration::ZERO),
            "another client's first reset is not delayed"
        );
    }
}
