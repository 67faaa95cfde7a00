//! The certificate authorities of one server: the current one, and those before it that devices may
//! still have.

use std::{path::Path, sync::Arc};

use common::machine::files::{self, FileError};
use proto::{
    crypto::sha256,
    identity::{CLOCK_SLACK, Certificate, DeviceId, KeyHash},
    knock::{DeviceKnocks, KnockKey, SharedKey},
    rotation::{CaNumber, CaRecord, CaRecords, CaState, FIRST_CA},
};
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::error;

use super::{
    EndpointKeys,
    ca::{self, Ca, CaFiles, ClockError, check_clock},
    secret_json,
};

/// One CA, and what goes with it.
pub(crate) struct Authority {
    pub(crate) number: CaNumber,
    files: CaFiles,
    /// Signs; `None` once it has retired.
    ca: Option<Arc<Ca>>,
    certificate: CertificateDer<'static>,
    knocks: DeviceKnocks,
}

/// All CAs that the server knows.
pub(crate) struct Authorities {
    records: CaRecords,
    /// Oldest first; without those that can't be read, for which their devices need a new code.
    all: Vec<Arc<Authority>>,
    current: Arc<Authority>,
    signing: Arc<Ca>,
}

/// The authorities of a running process, which change when one is rotated.
pub(crate) struct SharedAuthorities(watch::Sender<Arc<Authorities>>);

impl SharedAuthorities {
    pub(crate) fn new(authorities: Authorities) -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Arc::new(authorities))))
    }

    /// The authorities now.
    pub(crate) fn get(&self) -> Arc<Authorities> {
        self.0.borrow().clone()
    }

    /// Puts others in force, unless the register has known newer ones since they were read. Returns
    /// whether they are in force.
    pub(crate) fn set(&self, authorities: Authorities) -> bool {
        self.0.send_if_modified(|known| {
            let is_newer = !is_older(&authorities.records, &known.records);
            if is_newer {
                *known = Arc::new(authorities);
            }
            is_newer
        })
    }

    /// Tells when others are put in force.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Authorities>> {
        self.0.subscribe()
    }
}

/// Whether these were read before `known` was: there is a newer CA since, or one has ended.
fn is_older(records: &CaRecords, known: &CaRecords) -> bool {
    let is_back = |record: &CaRecord| {
        let before = known.get(record.number);
        record.retired.is_none() && before.is_some_and(|before| before.retired.is_some())
    };
    records.current().number < known.current().number || records.all().iter().any(is_back)
}

impl Authorities {
    /// [`Authorities::open`], with the records that `read` gives. Another process that ends a CA removes
    /// its key after the row in the register: if a file can't be read, the records are read again, and
    /// the error counts only if they have stayed the same.
    ///
    /// # Errors
    /// As [`Authorities::open`]; or as `read`.
    pub(crate) fn open_newest<E: From<FileError>>(
        dir: &Path,
        read: impl Fn() -> Result<CaRecords, E>,
        keys: &EndpointKeys,
        now: OffsetDateTime,
    ) -> Result<Self, E> {
        let mut records = read()?;
        loop {
            let failed = match Self::open(dir, records.clone(), keys, now) {
                Ok(authorities) => return Ok(authorities),
                Err(e) => e,
            };
            let newest = read()?;
            if newest == records {
                return Err(failed.into());
            }
            records = newest;
        }
    }

    /// Opens the CAs of the records in `dir`, and creates the first one if it is the only one.
    /// Several processes that do so at once get the same one.
    ///
    /// # Errors
    /// A file of the current one, or of one that still signs, can't be read.
    pub(crate) fn open(
        dir: &Path,
        records: CaRecords,
        keys: &EndpointKeys,
        now: OffsetDateTime,
    ) -> Result<Self, FileError> {
        let newest = records.current().number;
        // A CA that devices know is never made anew.
        let is_new = records.all().len() == 1 && newest == FIRST_CA;
        let missing = |record: &&CaRecord| {
            !is_new && !dir.join(CaFiles::of(record.number).certificate).exists()
        };
        let still_signs = |record: &&CaRecord| record.retired.is_none();
        if let Some(lost) = records.all().iter().filter(still_signs).find(missing) {
            let path = dir.join(CaFiles::of(lost.number).certificate);
            return Err(FileError::damaged(path, "it is missing"));
        }
        let signing = Arc::new(Ca::open_number(dir, newest, now)?);
        let current = Arc::new(Authority::signing(dir, newest, signing.clone(), keys)?);
        let mut all = Vec::new();
        for record in records.all().iter().filter(|record| record.number != newest) {
            let opened = match records.state(record.number) {
                Some(CaState::Retired) => Authority::retired(dir, record.number, keys),
                _ => Ca::open_number(dir, record.number, now)
                    .and_then(|ca| Authority::signing(dir, record.number, Arc::new(ca), keys)),
            };
            match (opened, records.state(record.number)) {
                (Ok(authority), _) => all.push(Arc::new(authority)),
                (Err(e), Some(CaState::Retired)) => {
                    error!("{e}: devices that have only CA {} have to enroll again", record.number)
                }
                (Err(e), _) => return Err(e),
            }
        }
        all.push(current.clone());
        Ok(Self { records, all, current, signing })
    }

    /// What the register knows of them.
    pub(crate) fn records(&self) -> &CaRecords {
        &self.records
    }

    /// All that can be read, oldest first.
    pub(crate) fn all(&self) -> &[Arc<Authority>] {
        &self.all
    }

    /// The one that new certificates are of.
    pub(crate) fn current(&self) -> &Arc<Authority> {
        &self.current
    }

    /// The same; it signs.
    pub(crate) fn signing(&self) -> &Arc<Ca> {
        &self.signing
    }

    /// The authority with this number.
    pub(crate) fn get(&self, number: CaNumber) -> Option<&Arc<Authority>> {
        self.all.iter().find(|authority| authority.number == number)
    }

    /// Those whose certificates are valid, oldest first. HTTPS is served with a certificate of the
    /// first of them: programs trust it by a file, and cannot be told of a newer one.
    pub(crate) fn valid(&self) -> impl Iterator<Item = (&Arc<Authority>, &Arc<Ca>)> {
        self.all.iter().filter_map(|authority| Some((authority, authority.ca()?)))
    }

    /// The CA whose certificate HTTPS shows.
    pub(crate) fn of_https(&self) -> (CaNumber, &Arc<Ca>) {
        let oldest = self.valid().next().map(|(authority, ca)| (authority.number, ca));
        oldest.unwrap_or((self.current.number, &self.signing))
    }

    /// The device that made this knock, and the CA that it has. `find` returns the hash of the key
    /// with which the device of an id enrolled, and the newest CA that it is known to have; `None` if
    /// no such device may connect.
    pub(crate) fn whose(
        &self,
        knock: &[u8],
        find: impl Fn(DeviceId) -> Option<(KeyHash, CaNumber)>,
    ) -> Option<(DeviceId, CaNumber)> {
        // Most devices have the newest.
        self.all.iter().rev().find_map(|authority| {
            let number = authority.number;
            let admitted = |id| {
                let (key, has) = find(id)?;
                self.records.answers(number, has).then_some(key)
            };
            Some((authority.knocks.whose(knock, admitted)?, number))
        })
    }

    /// Whether `now`, in Unix seconds, is a plausible time.
    ///
    /// # Errors
    /// When it is before the oldest authority was created or before this version was released.
    pub(crate) fn check_clock(&self, now: i64) -> Result<(), ClockError> {
        let earliest = self.valid().map(|(_, ca)| ca.earliest()).min();
        check_clock(earliest.unwrap_or_else(|| self.signing.earliest()), now)
    }
}

impl Authority {
    fn signing(
        dir: &Path,
        number: CaNumber,
        ca: Arc<Ca>,
        keys: &EndpointKeys,
    ) -> Result<Self, FileError> {
        let (files, certificate) = (CaFiles::of(number), ca.certificate().clone());
        let knocks = DeviceKnocks::new(&knock_secret(dir, &files, keys)?);
        Ok(Self { number, files, ca: Some(ca), certificate, knocks })
    }

    fn retired(dir: &Path, number: CaNumber, keys: &EndpointKeys) -> Result<Self, FileError> {
        let files = CaFiles::of(number);
        let path = dir.join(&files.certificate);
        let certificate = ca::read_certificate(&files::read(&path)?)
            .ok_or_else(|| FileError::damaged(&path, "it is not a certificate in PEM"))?;
        let knocks = DeviceKnocks::new(&knock_secret(dir, &files, keys)?);
        Ok(Self { number, files, ca: None, certificate, knocks })
    }

    /// Signs with it, unless it has retired.
    pub(crate) fn ca(&self) -> Option<&Arc<Ca>> {
        self.ca.as_ref()
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its own certificate in PEM, for those who are to trust it.
    pub(crate) fn pem(&self) -> String {
        let body = data_encoding::BASE64.encode(&self.certificate);
        let lines: Vec<&str> =
            body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// The SHA-256 of its certificate, as other programs print it.
    pub(crate) fn fingerprint(&self) -> String {
        let hash = sha256(&self.certificate);
        hash.map(|byte| format!("{byte:02X}")).join(":")
    }

    /// When it was made and when its certificate ends, in Unix time.
    pub(crate) fn times(&self) -> Option<(i64, i64)> {
        let read = Certificate::from_der(&self.certificate).ok()?;
        Some((read.not_before.saturating_add(CLOCK_SLACK), read.not_after))
    }

    /// The key for the knocks of a device that has this CA.
    pub(crate) fn knock_key(&self, id: DeviceId, key: KeyHash) -> KnockKey {
        self.knocks.of(id, key)
    }

    /// The certificate that the server shows to those who have this CA: kept, or made anew. Blocks.
    pub(crate) fn server_identity(
        &self,
        dir: &Path,
        now: OffsetDateTime,
    ) -> Result<Arc<CertifiedKey>, FileError> {
        match &self.ca {
            Some(ca) => ca.server_identity(dir, now),
            None => ca::retired_identity(dir, &self.files, self.certificate.clone()),
        }
    }
}

/// The secret of the knocks that go with a CA. Devices have keys that are derived from it, so it is
/// never made anew.
///
/// # Errors
/// It can't be read, or is missing.
fn knock_secret(dir: &Path, names: &CaFiles, keys: &EndpointKeys) -> Result<SharedKey, FileError> {
    let Some(name) = &names.knocks else {
        return Ok(keys.first_knocks());
    };
    let path = dir.join(name);
    let bytes = files::read(&path).map_err(|e| match e.is_not_found() {
        true => FileError::damaged(&path, "it is missing"),
        false => e,
    })?;
    serde_json::from_slice(&bytes).map_err(|e| FileError::damaged(&path, e))
}

/// Creates the secret of the knocks that go with a new CA, unless a rotation that did not end has done
/// so.
///
/// # Errors
/// It can't be written.
pub(super) fn create_knock_secret(dir: &Path, names: &CaFiles) -> Result<(), FileError> {
    if let Some(name) = &names.knocks {
        files::read_or_create(&dir.join(name), || secret_json(&SharedKey::generate()))?;
    }
    Ok(())
}

#[cfg(test)]
impl Authorities {
    /// The only authority of a new state in `dir`, with these keys.
    pub(crate) fn first(dir: &Path, keys: &EndpointKeys) -> Self {
        let now = OffsetDateTime::now_utc();
        Self::open(dir, CaRecords::default(), keys, now).unwrap_or_else(|e| panic!("{e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_were_read_before_a_change_are_older() {
        let records = |cas: &[(CaNumber, Option<i64>)]| {
            let record = |&(number, retired)| CaRecord { number, since: 1, retired };
            CaRecords::new(cas.iter().map(record).collect())
        };
        let (first, rotated) = (records(&[(1, None)]), records(&[(1, None), (2, None)]));
        let ended = records(&[(1, Some(5)), (2, None)]);
        let forgotten = records(&[(2, None), (3, None)]);
        let in_order = [&first, &rotated, &ended, &forgotten];
        for (i, known) in in_order.iter().enumerate() {
            for (j, read) in in_order.iter().enumerate() {
                assert_eq!(is_older(read, known), j < i, "{j} after {i}");
            }
        }
    }
}
