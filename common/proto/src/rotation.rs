//! Which of a server's certificate authorities may do what, while a new one takes the place of an
//! older one. No clock is asked: times are Unix seconds that the caller gives.
//!
//! Each CA has a number. With it come the server's certificate that it signed, and the keys of the
//! knocks: a device gets its certificate, the CA and its knock key together, so the knock in its
//! first packet tells which CA the device knows, before the server shows a certificate.

use serde::{Deserialize, Serialize};

use crate::identity::RECOVER_WITHIN;

/// The number of a CA: 1 for that of the first start, one more with each rotation.
pub type CaNumber = u32;

/// The number of the CA of the first start.
pub const FIRST_CA: CaNumber = 1;
/// A CA that was replaced does not retire by itself before this time has passed, in seconds.
pub const OVERLAP: i64 = 24 * 3600;
/// How many CAs a server knows at most, the retired ones too: each costs a stranger's first packet
/// one HMAC.
pub const MOST_CAS: usize = 8;

/// What a server remembers of one CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaRecord {
    pub number: CaNumber,
    /// Since when it is in force.
    pub since: i64,
    /// When it retired.
    pub retired: Option<i64>,
}

/// What a CA is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaState {
    /// Every new certificate is of this one.
    Current,
    /// It was replaced. Its certificates are valid, and their devices get new ones.
    Old,
    /// Its certificates only prove the key of a device, which gets a new certificate.
    Retired,
}

/// The CAs that a server knows, oldest first. There is always one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaRecords(Vec<CaRecord>);

impl Default for CaRecords {
    fn default() -> Self {
        Self(vec![CaRecord { number: FIRST_CA, since: 0, retired: None }])
    }
}

/// Why there can be no new CA now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRotation {
    /// So many CAs have not retired that no more can be known.
    TooMany,
}

impl CaRecords {
    /// The CAs in any order; without any, the first one.
    pub fn new(mut records: Vec<CaRecord>) -> Self {
        records.sort_by_key(|record| record.number);
        records.dedup_by_key(|record| record.number);
        if records.is_empty() { Self::default() } else { Self(records) }
    }

    /// All of them, oldest first.
    pub fn all(&self) -> &[CaRecord] {
        &self.0
    }

    /// The newest one.
    pub fn current(&self) -> CaRecord {
        self.0.last().copied().unwrap_or(CaRecord { number: FIRST_CA, since: 0, retired: None })
    }

    /// What is remembered of this CA.
    pub fn get(&self, number: CaNumber) -> Option<CaRecord> {
        self.0.iter().find(|record| record.number == number).copied()
    }

    /// What this CA is good for; `None` if it is unknown.
    pub fn state(&self, number: CaNumber) -> Option<CaState> {
        let record = self.get(number)?;
        Some(match record.retired {
            _ if number == self.current().number => CaState::Current,
            None => CaState::Old,
            Some(_) => CaState::Retired,
        })
    }

    /// When this CA was replaced.
    pub fn replaced(&self, number: CaNumber) -> Option<i64> {
        self.0.iter().find(|record| record.number > number).map(|next| next.since)
    }

    /// Whether a knock with a key of this CA is answered, if the newest CA that the device is known
    /// to have is `has`. A retired one opens only to those who never got a newer one: after that,
    /// whoever has stolen the old keys meets silence.
    pub fn answers(&self, number: CaNumber, has: CaNumber) -> bool {
        match self.state(number) {
            Some(CaState::Current | CaState::Old) => true,
            Some(CaState::Retired) => has <= number,
            None => false,
        }
    }

    /// Until when a device with this CA gets a new certificate by proof of its key, if it retired.
    pub fn recovers_until(&self, number: CaNumber) -> Option<i64> {
        self.get(number)?.retired.map(|retired| retired.saturating_add(RECOVER_WITHIN))
    }

    /// The CAs that were replaced and have not retired.
    pub fn old(&self) -> impl Iterator<Item = CaRecord> {
        self.0.iter().copied().filter(|record| self.state(record.number) == Some(CaState::Old))
    }

    /// The CAs that retire by themselves at `now`: no device needs one of them or an older one, and
    /// the time of the overlap has passed. `oldest` is the oldest CA that a device has
    /// as its newest one; `None` without devices.
    pub fn due(&self, oldest: Option<CaNumber>, now: i64) -> Vec<CaNumber> {
        let is_due = |record: &CaRecord| {
            let replaced = self.replaced(record.number).unwrap_or(i64::MAX);
            oldest.is_none_or(|oldest| oldest > record.number)
                && now >= replaced.saturating_add(OVERLAP)
        };
        self.old().filter(is_due).map(|record| record.number).collect()
    }

    /// The CAs that have to be forgotten before there can be another: the oldest retired ones.
    ///
    /// # Errors
    /// [`NoRotation::TooMany`] if that is not enough.
    pub fn to_forget(&self) -> Result<Vec<CaNumber>, NoRotation> {
        let over = (self.0.len() + 1).saturating_sub(MOST_CAS);
        let retired =
            self.0.iter().filter(|record| self.state(record.number) == Some(CaState::Retired));
        let forgotten: Vec<_> = retired.map(|record| record.number).take(over).collect();
        if forgotten.len() == over { Ok(forgotten) } else { Err(NoRotation::TooMany) }
    }

    /// What a register has to be told, so that it agrees with the files that are there. It may have
    /// been put back to an older state, and the files were not, or the other way round.
    pub fn missing(&self, files: &[CaFilesFound]) -> Vec<CaChange> {
        let newest = self.current().number;
        let mut new: Vec<_> =
            files.iter().filter(|found| found.number > newest && found.was_in_force).collect();
        new.sort_by_key(|found| found.number);
        // The newest one must be able to sign.
        while new.last().is_some_and(|last| !last.has_key) {
            new.pop();
        }
        let last = new.last().map_or(newest, |found| found.number);
        let mut changes: Vec<_> = new.iter().map(|found| CaChange::Add(found.number)).collect();
        let lost = files.iter().filter(|found| !found.has_key && found.number < last);
        let lost = lost.filter(|found| {
            changes.contains(&CaChange::Add(found.number))
                || self.get(found.number).is_some_and(|record| record.retired.is_none())
        });
        changes.extend(lost.map(|found| CaChange::Retire(found.number)).collect::<Vec<_>>());
        // One is forgotten, with its files, only when there are as many others as can be known.
        let has_files = |number| files.iter().any(|found| found.number == number);
        let forgotten = self
            .0
            .iter()
            .map(|record| record.number)
            .filter(|number| files.len() >= MOST_CAS && *number < last && !has_files(*number));
        changes.extend(forgotten.map(CaChange::Forget));
        changes
    }
}

/// The files of one CA in a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaFilesFound {
    pub number: CaNumber,
    /// Whether its private key is there: it is removed when a CA retires.
    pub has_key: bool,
    /// Whether it has been in force: the server's certificate is made last.
    pub was_in_force: bool,
}

/// What a register is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaChange {
    /// There is this CA.
    Add(CaNumber),
    /// This one has retired.
    Retire(CaNumber),
    /// This one was forgotten.
    Forget(CaNumber),
}

#[cfg(test)]
mod tests;
