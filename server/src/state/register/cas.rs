//! The CAs in the register, and the newest one of each device. A CA is in force when its row is
//! here; its files are made before.

use proto::{
    identity::DeviceId,
    rotation::{CaChange, CaNumber, CaRecord, CaRecords, FIRST_CA},
};
use rusqlite::{Transaction, params};

use super::{Device, Register, RegisterError, Snapshot};

/// The change to the format that knows several CAs. Devices of before have the first.
pub(super) const CHANGE: &str = "
    CREATE TABLE ca (
        number      INTEGER PRIMARY KEY,
        since       INTEGER NOT NULL,
        retired     INTEGER
    ) STRICT;
    INSERT INTO ca (number, since) VALUES (1, unixepoch());
    ALTER TABLE device ADD COLUMN ca INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE invitation ADD COLUMN ca INTEGER NOT NULL DEFAULT 1;
";

impl Snapshot {
    /// The CAs that the server knows.
    pub fn cas(&self) -> &CaRecords {
        &self.cas
    }

    /// The newest CA that this device has; the first one if there is no such device.
    pub fn ca_of(&self, id: DeviceId) -> CaNumber {
        self.devices.get(&id).map_or(FIRST_CA, |device| device.ca)
    }

    /// The oldest CA that somebody needs at `now`, in Unix time: a device that is not revoked, or
    /// whoever has the code of an open invitation.
    pub(crate) fn oldest_ca(&self, now: i64) -> Option<CaNumber> {
        let open = self.invitations.iter().filter(|invitation| invitation.expires > now);
        let codes = open.map(|invitation| invitation.ca);
        self.counted().map(|device| device.ca).chain(codes).min()
    }

    /// How many open invitations have a code that names this CA, at `now` in Unix time.
    pub(crate) fn codes_of(&self, number: CaNumber, now: i64) -> usize {
        let open = self.invitations.iter().filter(|invitation| invitation.expires > now);
        open.filter(|invitation| invitation.ca == number).count()
    }

    /// The devices that count when a CA retires: those that are not revoked.
    pub fn counted(&self) -> impl Iterator<Item = &Device> {
        self.devices.values().filter(|device| self.key(device.id).is_some())
    }
}

impl Register {
    /// The CAs that the server knows.
    pub(crate) fn cas(&self) -> Result<CaRecords, RegisterError> {
        self.read(read)
    }

    /// Puts the CA after `current` in force, and forgets those. Returns whether `current` was in
    /// force until now: another process may have been faster.
    pub(crate) fn rotate_ca(
        &self,
        current: CaNumber,
        forgotten: &[CaNumber],
        now: i64,
    ) -> Result<bool, RegisterError> {
        self.change(|t| {
            if read(t)?.current().number != current {
                return Ok(false);
            }
            for number in forgotten {
                t.execute("DELETE FROM ca WHERE number = ?1", [number])?;
            }
            t.execute("INSERT INTO ca (number, since) VALUES (?1, ?2)", params![current + 1, now])?;
            Ok(true)
        })
    }

    /// Ends those of these CAs that are old, with the open invitations whose codes name them. Returns
    /// how many invitations that were.
    pub(crate) fn retire_cas(
        &self,
        numbers: &[CaNumber],
        now: i64,
    ) -> Result<usize, RegisterError> {
        let mut invitations = 0;
        self.change(|t| {
            t.execute("DELETE FROM invitation WHERE expires <= ?1", [now])?;
            for number in numbers {
                let ended = t.execute(
                    "UPDATE ca SET retired = ?2 WHERE number = ?1 AND retired IS NULL
                     AND number < (SELECT max(number) FROM ca)",
                    params![number, now],
                )?;
                if ended == 0 {
                    continue;
                }
                invitations +=
                    t.execute("DELETE FROM invitation WHERE ca = ?1 AND device IS NULL", [number])?;
            }
            Ok(invitations)
        })
    }

    /// Makes the register agree with the files of the CAs.
    pub(crate) fn change_cas(&self, changes: &[CaChange], now: i64) -> Result<(), RegisterError> {
        self.change(|t| {
            for change in changes {
                match change {
                    CaChange::Add(number) => t.execute(
                        "INSERT OR IGNORE INTO ca (number, since) VALUES (?1, ?2)",
                        params![number, now],
                    )?,
                    CaChange::Retire(number) => t.execute(
                        "UPDATE ca SET retired = ?2 WHERE number = ?1 AND retired IS NULL",
                        params![number, now],
                    )?,
                    CaChange::Forget(number) => {
                        t.execute("DELETE FROM ca WHERE number = ?1", [number])?
                    }
                };
            }
            Ok(())
        })
    }

    /// Notes which CA is the newest that a device has.
    pub(crate) fn has_ca(&self, id: DeviceId, number: CaNumber) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute("UPDATE device SET ca = ?2 WHERE id = ?1", params![id.to_string(), number])
        })
        .map(drop)
    }
}

pub(super) fn read(t: &Transaction<'_>) -> rusqlite::Result<CaRecords> {
    let mut query = t.prepare_cached("SELECT number, since, retired FROM ca ORDER BY number")?;
    let rows = query.query_map([], |row| {
        Ok(CaRecord { number: row.get(0)?, since: row.get(1)?, retired: row.get(2)? })
    })?;
    Ok(CaRecords::new(rows.collect::<Result<_, _>>()?))
}
