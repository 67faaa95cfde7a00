//! The register: devices, keys, invitations and revocations, in SQLite. Every change is one transaction,
//! and is on the disk before it takes effect.

mod belongings;
mod cas;
mod devices;
pub(crate) mod epoch;
mod errors;
mod invitations;
mod key_errors;
mod keys;
mod names;
pub(crate) mod restored;
mod shared_knock;
mod sign_ins;
mod user_errors;
mod users;

pub(crate) use belongings::KnownUser;
pub(crate) use devices::{Device, default_role};
pub(crate) use errors::{DeviceError, RegisterError};
pub(crate) use invitations::{Invited, MOST_INVITATIONS};
pub(crate) use key_errors::KeyError;
pub(crate) use keys::{Key, KeySecret, NewKey};
pub(crate) use names::User;
pub(crate) use sign_ins::{Renewed, SignedIn, StoredSignIn};
pub(crate) use user_errors::UserError;
pub(crate) use users::RevokedUser;

use std::{
    collections::HashMap,
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::machine::files::{self, FileError};
use proto::{
    api_key::{ApiKey, KeyPrefix},
    epoch::Standing,
    identity::{DeviceId, KeyHash, UserName},
    knock::{Checker, SharedKey},
    rotation::{CaNumber, CaRecords},
    wire::{Code, Reason, Revocation},
};
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use self::{
    devices::all_devices, epoch::History, errors::classify, keys::Keys, shared_knock::SharedKnock,
    users::RevokedUsers,
};

const SCHEMA_VERSION: i64 = 11;
const SCHEMA: &str = "
    CREATE TABLE device (
        id          TEXT PRIMARY KEY,
        name        TEXT NOT NULL UNIQUE,
        key         BLOB NOT NULL,
        enrolled    INTEGER NOT NULL,
        not_after   INTEGER NOT NULL,
        revoked     INTEGER,
        seen        INTEGER
    ) STRICT;
    CREATE TABLE invitation (
        token       BLOB PRIMARY KEY,
        door_key    BLOB NOT NULL,
        device_name TEXT NOT NULL,
        expires     INTEGER NOT NULL,
        device      TEXT,
        key         BLOB
    ) STRICT;
    CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
";
/// The changes from each format to the next; a new register runs all of them.
const CHANGES: [&str; SCHEMA_VERSION as usize] = [
    SCHEMA,
    "
    ALTER TABLE device ADD COLUMN role TEXT NOT NULL DEFAULT 'infer';
    ALTER TABLE device ADD COLUMN models TEXT;
    ALTER TABLE invitation ADD COLUMN role TEXT NOT NULL DEFAULT 'infer';
",
    names::CHANGE,
    shared_knock::CHANGE,
    // Why a device was revoked, in the owner's words.
    "ALTER TABLE device ADD COLUMN reason TEXT;",
    keys::CHANGE,
    epoch::CHANGE,
    users::CHANGE,
    sign_ins::CHANGE,
    cas::CHANGE,
    // How a device keeps its key, as it says. Older ones kept it in a file.
    "ALTER TABLE device ADD COLUMN key_storage TEXT NOT NULL DEFAULT 'file';",
];

/// The register of one server. Several processes may have it open at once.
pub(crate) struct Register {
    db: Mutex<Connection>,
    path: PathBuf,
}

/// The register's content at one time, held in memory for the hot path.
#[derive(Debug, Default)]
pub struct Snapshot {
    devices: HashMap<DeviceId, Device>,
    invitations: Vec<OpenInvitation>,
    shared_knock: SharedKnock,
    keys: Keys,
    users: RevokedUsers,
    history: History,
    cas: CaRecords,
}

/// What is needed to check the knocks of one invitation.
#[derive(Debug)]
struct OpenInvitation {
    number: i64,
    knock: Checker,
    /// The CA whose hash is in the code.
    ca: CaNumber,
    /// In Unix time.
    expires: i64,
}

impl Snapshot {
    /// The users who are revoked, and why.
    pub(crate) fn revoked_users(&self) -> impl Iterator<Item = (&UserName, Option<&Reason>)> {
        self.users.all().map(|(user, revoked)| (user, revoked.reason.as_ref()))
    }

    /// The device with this id and this key, if it is enrolled, not revoked and not held back.
    pub fn admits(&self, id: DeviceId, key: KeyHash) -> Option<&Device> {
        self.judge(id, key).ok()
    }

    /// The device with this id and this key, if it may connect.
    ///
    /// # Errors
    /// [`Code::Revoked`], also for an unknown device; [`Code::Held`]; [`Code::SignedOut`].
    pub fn judge(&self, id: DeviceId, key: KeyHash) -> Result<&Device, Code> {
        let device = self.devices.get(&id).filter(|device| device.key == key);
        match device.map(|device| (device.standing(), device)) {
            Some((Standing::Admitted, device)) => match self.users.of(device.user.as_ref()) {
                Some(_) => Err(Code::Revoked),
                None if device.has_signed_out() => Err(Code::SignedOut),
                None => Ok(device),
            },
            Some((Standing::Held, _)) => Err(Code::Held),
            Some((Standing::Revoked, _)) | None => Err(Code::Revoked),
        }
    }

    /// The register's place in its history.
    pub fn history(&self) -> History {
        self.history
    }

    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// The revocation of the device with this id and this key: that of its user if there is one, which
    /// has to be undone first.
    pub fn revocation(&self, id: DeviceId, key: KeyHash) -> Option<Revocation> {
        let device = self.devices.get(&id).filter(|device| device.key == key)?;
        let own = device.reason.clone();
        match self.users.of(device.user.as_ref()) {
            Some(RevokedUser { reason }) => {
                Some(Revocation { user: device.user.clone(), reason: reason.clone().or(own) })
            }
            None => device.revoked.map(|_| Revocation { user: None, reason: own }),
        }
    }

    /// The key with which this device has enrolled, unless it or its user was revoked.
    pub fn key(&self, id: DeviceId) -> Option<KeyHash> {
        let device = self.devices.get(&id).filter(|device| device.revoked.is_none())?;
        self.users.of(device.user.as_ref()).is_none().then_some(device.key)
    }

    /// The key with this secret, and that secret, if it is valid at `now`, in Unix time. Its user may
    /// be revoked: [`Snapshot::revoked_user`].
    pub fn key_of(&self, sent: &ApiKey, now: i64) -> Option<(&Key, &KeySecret)> {
        self.keys.find(sent, now)
    }

    /// The key with this id, if its secret with this prefix was neither revoked nor replaced. Its user
    /// may be revoked: [`Snapshot::revoked_user`].
    pub fn admits_key(&self, id: DeviceId, prefix: &KeyPrefix) -> Option<&Key> {
        self.keys.admits(id, prefix)
    }

    /// The last second, in Unix time, in which the secret with this prefix of a key is valid; `None`
    /// if it has no end, or is none of that key.
    pub(crate) fn last_second_of_key(&self, id: DeviceId, prefix: &KeyPrefix) -> Option<i64> {
        self.admits_key(id, prefix)?.secret(prefix)?.expires.map(|end| end - 1)
    }

    /// The revocation of this user, if there is one.
    pub(crate) fn revoked_user(&self, user: Option<&UserName>) -> Option<&RevokedUser> {
        self.users.of(user)
    }

    /// All keys, the revoked ones too.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.all()
    }

    /// The number of the invitation with whose key `knock` was made, and that of its CA, if it is open
    /// at `now`.
    pub fn invites(&self, knock: &[u8], now: i64) -> Option<(i64, CaNumber)> {
        let mut open = self.invitations.iter().filter(|invitation| invitation.expires > now);
        let found = open.find(|invitation| invitation.knock.opens_for(knock))?;
        Some((found.number, found.ca))
    }

    /// Whether a knock with the old key of all devices is accepted at `now`, in Unix time.
    pub fn accepts_shared_knock(&self, now: i64) -> bool {
        self.shared_knock.is_accepted(now)
    }

    /// Whether this device has not used a knock key of its own yet.
    pub fn needs_shared_knock(&self, id: DeviceId) -> bool {
        self.shared_knock.is_needed_by(id)
    }
}

impl Register {
    /// The name of its file in the state directory.
    pub(crate) const FILE: &str = "register.sqlite";

    /// Opens the register and checks its integrity; creates it if it does not exist.
    pub(crate) fn open(path: &Path) -> Result<Self, RegisterError> {
        // SQLite gives its side files the mode of the main file.
        drop(files::open_append(path)?);
        if is_torn(path).unwrap_or(false) {
            return Err(RegisterError::damaged(path, "it ends in the middle of a page".to_owned()));
        }
        let error = |e| classify(path, e);
        // The directory may be a link (systemd makes one); the register and its side files must not
        // be links.
        let dir = path.parent().unwrap_or(Path::new("."));
        let dir = dir.canonicalize().map_err(FileError::io("read", dir))?;
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut db =
            Connection::open_with_flags(dir.join(path.file_name().unwrap_or_default()), flags)
                .map_err(error)?;
        db.busy_timeout(Duration::from_secs(5)).map_err(error)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(error)?;
        db.pragma_update(None, "synchronous", "FULL").map_err(error)?;
        // A server in its sandbox can write to no directory for temporary files.
        db.pragma_update(None, "temp_store", "MEMORY").map_err(error)?;
        let verdict: String =
            db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(error)?;
        if verdict != "ok" {
            return Err(RegisterError::damaged(path, verdict));
        }
        let transaction =
            db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        match transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(error)? {
            SCHEMA_VERSION => {}
            found @ 0..SCHEMA_VERSION => {
                for change in &CHANGES[found as usize..] {
                    transaction.execute_batch(change).map_err(error)?;
                }
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(error)?;
            }
            found => {
                return Err(RegisterError::Newer { path: path.to_owned(), found });
            }
        }
        epoch::begin(&transaction).map_err(error)?;
        transaction.commit().map_err(error)?;
        let register = Self { db: Mutex::new(db), path: path.to_owned() };
        register.check_memory()?;
        Ok(register)
    }

    /// A number that changes whenever another process has changed the register.
    pub(crate) fn version(&self) -> Result<i64, RegisterError> {
        self.lock()
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(|e| classify(&self.path, e))
    }

    /// Writes a copy of the register, as it is at one moment, into the new file `path`.
    pub(crate) fn copy_to(&self, path: &Path) -> Result<(), RegisterError> {
        // SQLite keeps the mode of an empty file that is there.
        files::create(path, b"")?;
        let to = path.to_str().unwrap_or_default();
        self.lock().execute("VACUUM INTO ?1", params![to]).map(drop).map_err(|e| classify(path, e))
    }

    /// Closes the register, so that all of it is in its one file.
    pub(crate) fn close(self) -> Result<(), RegisterError> {
        let db = self.db.into_inner().unwrap_or_else(PoisonError::into_inner);
        db.pragma_update(None, "journal_mode", "DELETE").map_err(|e| classify(&self.path, e))?;
        db.close().map_err(|(_, e)| classify(&self.path, e))
    }

    /// Reads everything that decides who may do what.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, RegisterError> {
        self.read(|t| {
            let devices = all_devices(t)?.into_iter().map(|device| (device.id, device)).collect();
            let mut query =
                t.prepare_cached("SELECT rowid, door_key, expires, ca FROM invitation")?;
            let invitations = query
                .query_map([], |row| {
                    Ok(OpenInvitation {
                        number: row.get(0)?,
                        knock: SharedKey::from_bytes(row.get(1)?).checker(),
                        expires: row.get(2)?,
                        ca: row.get(3)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Snapshot {
                devices,
                invitations,
                shared_knock: shared_knock::read(t)?,
                keys: keys::read(t)?,
                users: users::revoked(t)?,
                history: epoch::read(t)?,
                cas: cas::read(t)?,
            })
        })
    }

    /// The addresses of the server, as it last stored them; `None` before its first start.
    pub(crate) fn addresses(&self) -> Result<Option<Vec<String>>, RegisterError> {
        self.read(|t| {
            let text = t
                .query_row("SELECT value FROM setting WHERE name = 'addresses'", [], |row| {
                    row.get::<_, String>(0)
                })
                .optional()?;
            Ok(text.map(|t| t.split_whitespace().map(str::to_owned).collect()))
        })
    }

    /// Stores the addresses of the server.
    pub(crate) fn set_addresses(&self, addresses: &[String]) -> Result<(), RegisterError> {
        if self.addresses()?.as_deref() == Some(addresses) {
            return Ok(());
        }
        self.change(|t| {
            t.execute(
                "INSERT OR REPLACE INTO setting VALUES ('addresses', ?1)",
                params![addresses.join(" ")],
            )
        })
        .map(drop)
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, RegisterError> {
        self.transact(TransactionBehavior::Deferred, work)
    }

    fn change<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, RegisterError> {
        self.transact(TransactionBehavior::Immediate, work)
    }

    fn transact<T>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, RegisterError> {
        let mut db = self.lock();
        let result = db.transaction_with_behavior(behavior).and_then(|t| {
            let done = work(&t)?;
            t.commit()?;
            Ok(done)
        });
        result.map_err(|e| classify(&self.path, e))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction has rolled the transaction back.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the file ends in the middle of a page: then its end is lost, even if SQLite does not
/// notice. With a write-ahead log beside it, whose pages are newer, the file may end anywhere.
fn is_torn(path: &Path) -> std::io::Result<bool> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if std::fs::metadata(log).is_ok_and(|log| log.len() > 0) {
        return Ok(false);
    }
    let mut file = std::fs::File::open(path)?;
    // The page size in the file's header; 1 stands for 65536.
    let mut header = [0; 18];
    file.read_exact(&mut header)?;
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    Ok(page > 0 && file.metadata()?.len() % page != 0)
}

fn parsed<T: FromStr<Err: ToString>>(text: String) -> rusqlite::Result<T> {
    let wrong = |why: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(
            0,
            rusqlite::types::Type::Text,
            why.to_string().into(),
        )
    };
    text.parse().map_err(wrong)
}

#[cfg(test)]
mod tests;
