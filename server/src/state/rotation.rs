//! Rotates the certificate authority of a state, and ends older ones. Each step is whole when it is
//! on the disk; a process that is killed between two of them leaves what the next one goes on with.
//!
//! The steps of a rotation: the files of the new CA, the row in the register by which it is in force,
//! the server's certificate. Those of an end: the row in the register, then the private key is
//! removed.

use std::path::Path;

use common::machine::{
    files::FileError,
    report::{Exit, Failure},
};
use proto::{
    human,
    identity::{DeviceId, Name, RECOVER_WITHIN},
    rotation::{CaNumber, CaRecords, CaState, NoRotation, OVERLAP},
};
use serde::Serialize;
use time::OffsetDateTime;
use tracing::error;

use super::{
    State,
    authorities::{Authorities, create_knock_secret},
    ca::{Ca, CaFiles, ClockError, files},
    register::{Device, RegisterError, Snapshot},
};

/// The CAs of a server, as `aditd ca status` prints them. Times are Unix seconds.
#[derive(Debug, Serialize)]
pub(crate) struct CaStatus {
    /// Oldest first.
    pub(crate) cas: Vec<CaShown>,
    /// The devices that do not have the newest CA, and are not revoked.
    pub(crate) behind: Vec<DeviceBehind>,
    /// How many devices have it.
    pub(crate) up_to_date: usize,
}

/// One CA.
#[derive(Debug, Serialize)]
pub(crate) struct CaShown {
    pub(crate) number: CaNumber,
    pub(crate) state: CaState,
    /// The SHA-256 fingerprint of its certificate.
    pub(crate) sha256: String,
    /// When it was made.
    pub(crate) since: Option<i64>,
    /// The last second of its own certificate.
    pub(crate) certificate_until: Option<i64>,
    /// When a newer one took its place.
    pub(crate) replaced: Option<i64>,
    /// When it can retire by itself, if it has been replaced.
    pub(crate) retires_from: Option<i64>,
    pub(crate) retired: Option<i64>,
    /// Until when its devices get a new certificate by proof of their keys, if it has retired.
    pub(crate) recovers_until: Option<i64>,
    /// How many devices have no newer one.
    pub(crate) devices: usize,
    /// How many codes name it that have not expired.
    pub(crate) codes: usize,
}

/// A device that does not have the newest CA.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeviceBehind {
    pub(crate) name: Name,
    pub(crate) id: DeviceId,
    /// The CA that it has.
    pub(crate) ca: CaNumber,
    pub(crate) seen: Option<i64>,
}

/// Why CAs were not changed.
#[derive(Debug)]
pub(crate) enum CaError {
    /// It does not fit the state of things.
    Conflict(Failure),
    Failed(Failure),
}

impl From<CaError> for Failure {
    fn from(error: CaError) -> Self {
        let (CaError::Conflict(failure) | CaError::Failed(failure)) = error;
        failure
    }
}

impl From<ClockError> for CaError {
    fn from(error: ClockError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<FileError> for CaError {
    fn from(error: FileError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<RegisterError> for CaError {
    fn from(error: RegisterError) -> Self {
        Self::Failed(error.into())
    }
}

/// What [`State::retire_cas`] has done.
#[derive(Clone)]
pub(crate) struct Retired {
    pub(crate) numbers: Vec<CaNumber>,
    /// The devices that have no newer CA.
    pub(crate) without: Vec<DeviceBehind>,
    /// How many open invitations have ended, because their codes name a CA that has ended.
    pub(crate) invitations: usize,
}

impl State {
    /// Makes a new CA and puts it in force, in the register: a running server has to be told. Returns
    /// its number. Blocks.
    ///
    /// What comes after the row in the register is tried, and logged if it fails: the CA is in force
    /// then, and the next start makes what is missing.
    ///
    /// # Errors
    /// The clock is wrong; too many CAs are in force; another process does the same; a file or the
    /// register can't be written. No new CA is in force then, and the same call uses the files that
    /// were made.
    pub(crate) fn rotate_ca(&self, now: OffsetDateTime) -> Result<CaNumber, CaError> {
        self.authorities.get().check_clock(now.unix_timestamp())?;
        let records = self.register.cas()?;
        let forgotten = records.to_forget().map_err(|NoRotation::TooMany| {
            CaError::Conflict(
                Failure::new("too many certificate authorities are in force")
                    .hint("end the old ones first: `aditd ca retire`")
                    .exit(Exit::Usage),
            )
        })?;
        let current = records.current().number;
        let next = current + 1;
        let names = CaFiles::of(next);
        create_knock_secret(&self.dir, &names)?;
        let ca = Ca::open_number(&self.dir, next, now)?;
        if !self.register.rotate_ca(current, &forgotten, now.unix_timestamp())? {
            let raced = Failure::new("another command has just rotated the certificate authority");
            return Err(CaError::Conflict(raced.hint("look at `aditd ca status`")));
        }
        if let Err(e) = ca.server_identity(&self.dir, now) {
            error!("CA {next} is in force, but the server has no certificate of it yet: {e}");
        }
        for number in forgotten {
            if let Err(e) = CaFiles::of(number).remove(&self.dir) {
                error!("files of CA {number}, which is forgotten, are still there: {e}");
            }
        }
        if let Err(e) = self.reload() {
            error!("CA {next} is in force, but this process does not use it yet: {e}");
        }
        Ok(next)
    }

    /// Puts the CAs of the register in force in this process, unless it knows newer ones.
    fn reload(&self) -> Result<(), Failure> {
        let now = OffsetDateTime::now_utc();
        let read = || self.register.cas().map_err(Failure::from);
        self.authorities.set(Authorities::open_newest(&self.dir, read, &self.keys, now)?);
        Ok(())
    }

    /// Makes the server's certificates that are missing, of the CAs that sign: a rotation may have
    /// ended before it did. Only a CA that has one is known to have been in force, and is in a backup.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub(super) fn make_identities(&self, now: OffsetDateTime) -> Result<(), FileError> {
        for (authority, ca) in self.authorities.get().valid() {
            if !self.dir.join(CaFiles::of(authority.number).server_certificate).exists() {
                ca.server_identity(&self.dir, now)?;
            }
        }
        Ok(())
    }

    /// Ends all CAs that were replaced, in the register: a running server has to be told. Blocks.
    ///
    /// # Errors
    /// There is none; devices have no newer one and `force` is not set: nothing has changed then.
    pub(crate) fn retire_cas(&self, force: bool, now: i64) -> Result<Retired, CaError> {
        let snapshot = self.register.snapshot()?;
        let numbers: Vec<_> = snapshot.cas().old().map(|record| record.number).collect();
        let Some(last) = numbers.last() else {
            let none = Failure::new("there is no old certificate authority to end")
                .hint("to make a new one, and an old one of this: `aditd ca rotate`");
            return Err(CaError::Conflict(none.exit(Exit::Usage)));
        };
        let without: Vec<_> =
            behind(&snapshot).into_iter().filter(|device| device.ca <= *last).collect();
        if !without.is_empty() && !force {
            let names: Vec<_> = without.iter().map(|device| format!("`{}`", device.name)).collect();
            let behind = Failure::new(format!(
                "{} {} not have the newest certificate authority yet: {}",
                human::count(without.len() as u64, "device"),
                if without.len() == 1 { "does" } else { "do" },
                names.join(", ")
            ))
            .hint("each gets it when it connects: `aditd ca status` shows when it was seen")
            .hint("a lost one: `aditd device revoke NAME`")
            .hint(format!(
                "or end the old one all the same: `aditd ca retire --force`; they then have {} days to get a new certificate by proof of their keys",
                RECOVER_WITHIN / 86_400
            ));
            return Err(CaError::Conflict(behind));
        }
        let invitations = self.end(&numbers, now)?;
        Ok(Retired { numbers, without, invitations })
    }

    /// Ends the CAs that no device needs any more, if their time has come. Returns them. Blocks.
    pub(crate) fn retire_unneeded(&self, now: i64) -> Result<Vec<CaNumber>, CaError> {
        let snapshot = self.register.snapshot()?;
        let due = snapshot.cas().due(snapshot.oldest_ca(now), now);
        if !due.is_empty() {
            self.end(&due, now)?;
        }
        Ok(due)
    }

    fn end(&self, numbers: &[CaNumber], now: i64) -> Result<usize, CaError> {
        let invitations = self.register.retire_cas(numbers, now)?;
        // They have ended, whatever becomes of the rest, which is done at the next start too.
        match self.register.cas().map(|records| remove_retired_keys(&self.dir, &records)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => error!("the key of a CA that has ended is still there: {e}"),
            Err(e) => error!("the key of a CA that has ended is still there: {e}"),
        }
        if let Err(e) = self.reload() {
            error!("a CA has ended, but this process still uses it: {e}");
        }
        Ok(invitations)
    }

    /// The CAs, and the devices that do not have the newest one.
    /// `now` is Unix time.
    pub(crate) fn ca_status(&self, now: i64) -> Result<CaStatus, RegisterError> {
        let snapshot = self.register.snapshot()?;
        let authorities = self.authorities.get();
        let records = snapshot.cas();
        let shown = authorities.all().iter().filter_map(|authority| {
            let number = authority.number;
            let (since, certificate_until) = authority.times().unzip();
            let replaced = records.replaced(number);
            Some(CaShown {
                number,
                state: records.state(number)?,
                sha256: authority.fingerprint(),
                since,
                certificate_until,
                replaced,
                retires_from: replaced.map(|replaced| replaced.saturating_add(OVERLAP)),
                retired: records.get(number)?.retired,
                recovers_until: records.recovers_until(number),
                codes: snapshot.codes_of(number, now),
                devices: snapshot.counted().filter(|device| device.ca == number).count(),
            })
        });
        let behind = behind(&snapshot);
        let up_to_date = snapshot.counted().count() - behind.len();
        Ok(CaStatus { cas: shown.collect(), behind, up_to_date })
    }
}

/// Removes the private keys of CAs that have retired: nobody can sign with them any more, not even a
/// thief of this directory.
pub(super) fn remove_retired_keys(dir: &Path, records: &CaRecords) -> Result<(), FileError> {
    for record in records.all() {
        if records.state(record.number) == Some(CaState::Retired) {
            files::remove(&dir.join(CaFiles::of(record.number).key))?;
        }
    }
    Ok(())
}

fn behind(snapshot: &Snapshot) -> Vec<DeviceBehind> {
    let newest = snapshot.cas().current().number;
    let shown = |device: &Device| DeviceBehind {
        name: device.name.clone(),
        id: device.id,
        ca: device.ca,
        seen: device.seen,
    };
    let mut all: Vec<_> =
        snapshot.counted().filter(|device| device.ca < newest).map(shown).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

#[cfg(test)]
mod tests;
