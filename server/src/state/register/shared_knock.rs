//! The knock key that all devices of this server shared up to format 3, and who still needs it.
//!
//! Since format 4 each device has a key of its own. A device gets it when it enrolls or, if it
//! enrolled earlier, in its next session. The shared key is accepted
//!
//! - while a device that has only this key has not been given its own,
//! - for 120 days at most: after that a certificate of 30 days can't be renewed either,
//! - and until a device that knows it is revoked. From then on a packet with this key is a
//!   stranger's. A device that was away all that time has to be enrolled again.
//!
//! Devices that were revoked before format 4 may know the key. It is accepted all the same, because
//! otherwise no device would survive the update. Knocks with it get at most half of the handshake
//! slots.

use std::collections::HashMap;

use proto::identity::DeviceId;
use rusqlite::{Transaction, params};

use super::{Register, RegisterError, parsed};

/// How long the shared key is accepted after the update, in seconds.
const ACCEPTED_FOR: i64 = 120 * 24 * 3600;

/// The change from format 3 to 4. `shared_since` is set for devices that know the shared key.
pub(super) const CHANGE: &str = "
    ALTER TABLE device ADD COLUMN shared_since INTEGER;
    ALTER TABLE device ADD COLUMN own_knock INTEGER NOT NULL DEFAULT 1;
    UPDATE device SET shared_since = unixepoch(), own_knock = 0;
";

/// The devices that have only the shared key, and since when they could have got their own.
#[derive(Debug, Default)]
pub(super) struct SharedKnock(HashMap<DeviceId, i64>);

impl SharedKnock {
    /// Whether a knock with the shared key is accepted at `now`.
    pub(super) fn is_accepted(&self, now: i64) -> bool {
        self.0.values().any(|since| now < since.saturating_add(ACCEPTED_FOR))
    }

    /// Whether this device is not known to have a key of its own.
    pub(super) fn is_needed_by(&self, id: DeviceId) -> bool {
        self.0.contains_key(&id)
    }
}

impl Register {
    /// Notes that a device has knocked with its own key.
    pub(crate) fn has_own_knock(&self, id: DeviceId) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute("UPDATE device SET own_knock = 1 WHERE id = ?1", [id.to_string()])
        })
        .map(drop)
    }
}

pub(super) fn read(t: &Transaction<'_>) -> rusqlite::Result<SharedKnock> {
    let mut query = t.prepare_cached(
        "SELECT id, shared_since FROM device
         WHERE shared_since IS NOT NULL AND NOT own_knock AND revoked IS NULL",
    )?;
    let rows = query.query_map([], |row| Ok((parsed(row.get(0)?)?, row.get(1)?)))?;
    Ok(SharedKnock(rows.collect::<Result<_, _>>()?))
}

/// If this device knows the shared key, the key is no longer accepted.
pub(super) fn revoked(t: &Transaction<'_>, id: DeviceId) -> rusqlite::Result<()> {
    t.execute(
        "UPDATE device SET shared_since = NULL
         WHERE EXISTS (SELECT 1 FROM device WHERE id = ?1 AND shared_since IS NOT NULL)",
        params![id.to_string()],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_key_is_accepted_while_a_device_needs_it_and_for_a_bounded_time() {
        let id = |text: &str| text.parse::<DeviceId>().expect("an id");
        let knock = SharedKnock([(id("0000-0001"), 1000), (id("0000-0002"), 2000)].into());
        for (now, accepted) in [
            (0, true),
            (1000 + ACCEPTED_FOR, true),
            (2000 + ACCEPTED_FOR, false),
            (i64::MAX, false),
        ] {
            assert_eq!(knock.is_accepted(now), accepted, "{now}");
        }
        assert!(knock.is_needed_by(id("0000-0001")) && !knock.is_needed_by(id("0000-0003")));
        assert!(!SharedKnock::default().is_accepted(0));
    }
}
