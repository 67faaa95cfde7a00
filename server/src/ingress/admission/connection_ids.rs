//! The connection IDs that this server chooses, and how often it sends a stateless reset for one
//! that it has forgotten.
//!
//! A packet for a forgotten connection is answered with a stateless reset (RFC 9000 section 10.3),
//! so that a client learns within seconds that the server was restarted. But anyone who has
//! recorded such a packet could ask for a reset. So a connection ID that this server never chose
//! gets none, and each that it did choose gets a few, at growing intervals. A client whose resets
//! are all lost learns it by a new handshake.

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
const NONCE_LEN: usize = 3;
const MAC_LEN: usize = 5;
/// How many forgotten connection IDs are remembered.
const FORGOTTEN: usize = 1 << 12;
/// Resets for one connection ID: the first at once, the second a second later, and each pause is
/// twice as long as the one before.
const RESETS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Makes connection IDs that this server can recognize: 3 random bytes ‖ 5 bytes of a MAC.
pub(crate) struct OwnIds {
    key: hmac::Key,
    resets: Arc<Mutex<Resets>>,
    began: Instant,
}

impl OwnIds {
    /// Makes connection IDs with `key`: they are recognized after a restart, too.
    pub(crate) fn new(key: &SharedKey, resets: Arc<Mutex<Resets>>) -> Self {
        let key = key.derive(b"adit/1 connection ids");
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        Self { key, resets, began: Instant::now() }
    }

    fn is_ours(&self, id: &[u8]) -> bool {
        let Some((nonce, mac)) = id.split_at_checked(NONCE_LEN) else { return false };
        hmac::sign(&self.key, nonce).as_ref()[..MAC_LEN] == *mac
    }
}

impl fmt::Debug for OwnIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnIds(…)")
    }
}

impl ConnectionIdGenerator for OwnIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; LEN];
        fill_random(&mut id[..NONCE_LEN]);
        let tag = hmac::sign(&self.key, &id[..NONCE_LEN]);
        id[NONCE_LEN..].copy_from_slice(&tag.as_ref()[..MAC_LEN]);
        ConnectionId::new(&id)
    }

    /// QUIC calls this for an unknown connection ID, right before it sends a stateless reset.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let mut resets = self.resets.lock().unwrap_or_else(PoisonError::into_inner);
        let may = self.is_ours(id) && resets.may_send(id, self.began.elapsed());
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
        OwnIds::new(&SharedKey::from_bytes([key; 32]), Arc::default())
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
