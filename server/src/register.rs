//! The register: devices, invitations and revocations, in SQLite. Every change is one transaction, on the disk before it counts.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    door::DoorKey,
    identity::{DeviceId, KeyHash, Name},
    invitation::{Secret, sha256},
    private::{self, FileError},
    report::Failure,
    wire::EnrollRefusal,
};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::{gate::model::ModelPattern, roles};

const SCHEMA_VERSION: i64 = 2;
/// Invitations that may be open at once.
pub const MOST_INVITATIONS: i64 = 64;
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
/// From each format to the next; a new register takes all of them.
const CHANGES: [&str; SCHEMA_VERSION as usize] = [
    SCHEMA,
    "
    ALTER TABLE device ADD COLUMN role TEXT NOT NULL DEFAULT 'infer';
    ALTER TABLE device ADD COLUMN models TEXT;
    ALTER TABLE invitation ADD COLUMN role TEXT NOT NULL DEFAULT 'infer';
",
];

/// The register of one server. Several processes may have it open at once.
pub struct Register {
    db: Mutex<Connection>,
    path: PathBuf,
}

/// A device as the register knows it. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Never changes, never used twice.
    pub id: DeviceId,
    /// Unique.
    pub name: Name,
    /// The key that it enrolled with.
    pub key: KeyHash,
    /// When it enrolled.
    pub enrolled: i64,
    /// When its newest certificate ends.
    pub not_after: i64,
    /// When it was revoked.
    pub revoked: Option<i64>,
    /// When its last session ended, or began if it hasn't.
    pub seen: Option<i64>,
    /// What it may do.
    pub role: Name,
    /// The only models that it may use, whatever its role may; `None` for no such limit.
    pub models: Option<Vec<ModelPattern>>,
}

/// What the hot path asks, held in memory: one look at the register at one time.
#[derive(Debug, Default)]
pub struct Snapshot {
    devices: HashMap<DeviceId, Device>,
    doors: Vec<(DoorKey, i64)>,
}

impl Snapshot {
    /// The device with this id and this key, if it is enrolled and not revoked.
    pub fn admits(&self, id: DeviceId, key: KeyHash) -> Option<&Device> {
        self.devices.get(&id).filter(|device| device.key == key && device.revoked.is_none())
    }

    /// All devices.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// Whether `knock` was made with the key of an invitation that is open at `now`.
    pub fn invites(&self, knock: &[u8], now: i64) -> bool {
        self.doors.iter().any(|(key, expires)| *expires > now && key.opens_for(knock))
    }
}

/// Why the register could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It isn't a register any more.
    #[error("the register `{}` is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A newer version wrote it.
    #[error("the register `{}` was written by a newer version of aditd (format {found})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// Anything else: a full disk, missing permission.
    #[error("cannot use the register `{}`", path.display())]
    Sql {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Its file.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<RegisterError> for Failure {
    fn from(error: RegisterError) -> Self {
        let hint = match &error {
            RegisterError::Damaged { path, .. } => format!(
                "put it back from a backup; without one, move `{}` away: every device then has to be enrolled again",
                path.display()
            ),
            RegisterError::Newer { .. } => "use the newer aditd".to_owned(),
            RegisterError::Sql { source, path } => match source.sqlite_error_code() {
                Some(ErrorCode::SystemIoFailure) => {
                    format!(
                        "is the disk full or failing (`df '{}'`)? free some disk space and run it again: nothing was changed",
                        path.display()
                    )
                }
                Some(ErrorCode::DiskFull) => "free some disk space and run it again: nothing was changed".to_owned(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    "another command is changing it: run it again".to_owned()
                }
                _ => format!("run this as the owner of `{}`, and look at the free space of its disk", path.display()),
            },
            RegisterError::File(e) => e.hint(),
        };
        Self::from_error(error).hint(hint)
    }
}

/// What to do to a device by its name or id did not fit the register.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No such device.
    #[error("there is no device `{0}`")]
    Unknown(String),
    /// Already revoked.
    #[error("device `{0}` is revoked already")]
    AlreadyRevoked(Name),
    /// Only a revoked device can be forgotten.
    #[error("device `{0}` is still enrolled")]
    StillEnrolled(Name),
    /// The name of a new device belongs to another.
    #[error("there is a device `{0}` already")]
    NameTaken(Name),
    /// The name of a new device belongs to a revoked one.
    #[error("the name `{0}` belongs to a revoked device")]
    NameOfRevoked(Name),
    /// Every stranger's packet is tried against every open invitation.
    #[error("{MOST_INVITATIONS} invitations are open already")]
    TooManyInvitations,
    /// The register.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let hint = match &error {
            DeviceError::Unknown(_) => "see which there are with `aditd device list`".to_owned(),
            DeviceError::AlreadyRevoked(name) | DeviceError::NameOfRevoked(name) => {
                format!("to free its name: `aditd device forget {name}`")
            }
            DeviceError::StillEnrolled(name) => format!("end its access first: `aditd device revoke {name}`"),
            DeviceError::NameTaken(name) => {
                format!("choose another name, or end that device's access: `aditd device revoke {name}`")
            }
            DeviceError::TooManyInvitations => "wait until some have expired or been used".to_owned(),
            DeviceError::Register(_) => String::new(),
        };
        match error {
            DeviceError::Register(e) => e.into(),
            other => Self::from_error(other).hint(hint),
        }
    }
}

impl Register {
    /// Its file in the state directory.
    pub const FILE: &str = "register.sqlite";

    /// Opens the register and checks it whole; an absent one is made.
    pub fn open(path: &Path) -> Result<Self, RegisterError> {
        // SQLite gives its side files the mode of the main one.
        drop(private::open_append(path)?);
        let error = |e| classify(path, e);
        let mut db = Connection::open(path).map_err(error)?;
        db.busy_timeout(Duration::from_secs(5)).map_err(error)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(error)?;
        db.pragma_update(None, "synchronous", "FULL").map_err(error)?;
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(error)?;
        if verdict != "ok" {
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(verdict));
            return Err(RegisterError::Damaged { path: path.to_owned(), source });
        }
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
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
        transaction.commit().map_err(error)?;
        Ok(Self { db: Mutex::new(db), path: path.to_owned() })
    }

    /// A number that changes whenever another process has changed the register.
    pub fn version(&self) -> Result<i64, RegisterError> {
        self.lock().query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(|e| classify(&self.path, e))
    }

    /// One look at everything that decides who may do what.
    pub fn snapshot(&self) -> Result<Snapshot, RegisterError> {
        self.read(|t| {
            let devices = all_devices(t)?.into_iter().map(|device| (device.id, device)).collect();
            let mut doors = t.prepare_cached("SELECT door_key, expires FROM invitation")?;
            let doors =
                doors.query_map([], |row| Ok((DoorKey::from_bytes(row.get(0)?), row.get(1)?)))?.collect::<Result<_, _>>()?;
            Ok(Snapshot { devices, doors })
        })
    }

    /// All devices, by name.
    pub fn devices(&self) -> Result<Vec<Device>, RegisterError> {
        self.read(all_devices)
    }

    /// The device with this name or id.
    pub fn find(&self, name_or_id: &str) -> Result<Device, DeviceError> {
        let found = self.devices()?.into_iter().find(|d| d.name.as_str() == name_or_id || d.id.to_string() == name_or_id);
        found.ok_or_else(|| DeviceError::Unknown(name_or_id.to_owned()))
    }

    /// Opens an invitation for a device of this name until `expires`. An older one for the same name is withdrawn; says whether there was one.
    pub fn invite(&self, name: &Name, role: &Name, secret: &Secret, expires: i64, now: i64) -> Result<bool, DeviceError> {
        let taken = self.devices()?.into_iter().find(|device| device.name == *name);
        match taken {
            Some(device) if device.revoked.is_some() => return Err(DeviceError::NameOfRevoked(device.name)),
            Some(device) => return Err(DeviceError::NameTaken(device.name)),
            None => {}
        }
        let withdrew = self.change(|t| {
            t.execute("DELETE FROM invitation WHERE expires <= ?1", params![now])?;
            let withdrawn =
                t.execute("DELETE FROM invitation WHERE device_name = ?1 AND device IS NULL", params![name.as_str()])?;
            let open: i64 = t.query_row("SELECT count(*) FROM invitation", [], |row| row.get(0))?;
            if open >= MOST_INVITATIONS {
                return Ok(None);
            }
            t.execute(
                "INSERT INTO invitation (token, door_key, device_name, expires, role) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![sha256(&secret.token()), secret.door_key().as_bytes(), name.as_str(), expires, role.as_str()],
            )?;
            Ok(Some(withdrawn > 0))
        })?;
        withdrew.ok_or(DeviceError::TooManyInvitations)
    }

    /// Whom an invitation is for, and the role that it gives; `None` if there is none that is open.
    pub fn invited(&self, token: &[u8], now: i64) -> Result<Option<(Name, Name)>, RegisterError> {
        self.read(|t| {
            let mut query = t.prepare_cached("SELECT device_name, role FROM invitation WHERE token = ?1 AND expires > ?2")?;
            query.query_row(params![sha256(token), now], |row| Ok((parsed(row.get(0)?)?, parsed(row.get(1)?)?))).optional()
        })
    }

    /// Redeems an invitation for `key`: makes the device, or returns the one that this same key has made with it before.
    ///
    /// Of any number of keys that redeem one invitation at once, one succeeds.
    pub fn redeem(
        &self,
        token: &[u8],
        key: KeyHash,
        not_after: i64,
        now: i64,
    ) -> Result<Result<Device, EnrollRefusal>, RegisterError> {
        self.change(|t| {
            let token = sha256(token);
            let found = t
                .query_row(
                    "SELECT device_name, role, device, key FROM invitation WHERE token = ?1 AND expires > ?2",
                    params![token, now],
                    |row| {
                        Ok((
                            row.get::<_, String>(0)?,
                            row.get::<_, String>(1)?,
                            row.get::<_, Option<String>>(2)?,
                            row.get::<_, Option<[u8; 32]>>(3)?,
                        ))
                    },
                )
                .optional()?;
            let Some((name, role, device, used_by)) = found else {
                return Ok(Err(EnrollRefusal::Closed));
            };
            if let Some(device) = device {
                let same_key = used_by == Some(key.0);
                let again = if same_key {
                    all_devices(t)?.into_iter().find(|d| d.id.to_string() == device && d.revoked.is_none())
                } else {
                    None
                };
                return Ok(again.ok_or(EnrollRefusal::Used));
            }
            let name: Name = parsed(name)?;
            if all_devices(t)?.iter().any(|device| device.name == name) {
                return Ok(Err(EnrollRefusal::Closed));
            }
            let device = insert_device(t, &name, &parsed(role)?, key, not_after, now)?;
            t.execute(
                "UPDATE invitation SET device = ?2, key = ?3 WHERE token = ?1",
                params![token, device.id.to_string(), key.0],
            )?;
            Ok(Ok(device))
        })
    }

    /// Enrolls a device without an invitation: sshd has judged who asks. The same key under the same name is the same device.
    pub fn enroll(&self, name: &Name, key: KeyHash, not_after: i64, now: i64) -> Result<Device, DeviceError> {
        let made = self.change(|t| match all_devices(t)?.into_iter().find(|device| device.name == *name) {
            Some(device) => Ok(Err(device)),
            None => insert_device(t, name, &roles::default_role(), key, not_after, now).map(Ok),
        })?;
        match made {
            Ok(device) => Ok(device),
            Err(device) if device.revoked.is_some() => Err(DeviceError::NameOfRevoked(device.name)),
            Err(device) if device.key == key => Ok(device),
            Err(device) => Err(DeviceError::NameTaken(device.name)),
        }
    }

    /// Ends a device's access.
    pub fn revoke(&self, id: DeviceId, now: i64) -> Result<(), RegisterError> {
        self.change(|t| {
            t.execute("UPDATE device SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL", params![id.to_string(), now])
        })
        .map(drop)
    }

    /// Removes a revoked device and frees its name.
    pub fn forget(&self, id: DeviceId) -> Result<(), RegisterError> {
        self.change(|t| t.execute("DELETE FROM device WHERE id = ?1 AND revoked IS NOT NULL", params![id.to_string()])).map(drop)
    }

    /// Gives a device another role.
    pub fn set_role(&self, id: DeviceId, role: &Name) -> Result<(), RegisterError> {
        self.change(|t| t.execute("UPDATE device SET role = ?2 WHERE id = ?1", params![id.to_string(), role.as_str()])).map(drop)
    }

    /// Limits a device to these models, or to those of its role.
    pub fn set_models(&self, id: DeviceId, models: Option<&[ModelPattern]>) -> Result<(), RegisterError> {
        let text = models.map(|models| models.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        self.change(|t| t.execute("UPDATE device SET models = ?2 WHERE id = ?1", params![id.to_string(), text])).map(drop)
    }

    /// Notes when a device was seen.
    pub fn seen(&self, id: DeviceId, now: i64) -> Result<(), RegisterError> {
        self.change(|t| t.execute("UPDATE device SET seen = ?2 WHERE id = ?1", params![id.to_string(), now])).map(drop)
    }

    /// Notes the end of a device's newest certificate.
    pub fn renewed(&self, id: DeviceId, not_after: i64) -> Result<(), RegisterError> {
        self.change(|t| t.execute("UPDATE device SET not_after = ?2 WHERE id = ?1", params![id.to_string(), not_after])).map(drop)
    }

    /// Where the server can be reached, as its last start said; `None` before the first.
    pub fn addresses(&self) -> Result<Option<Vec<String>>, RegisterError> {
        self.read(|t| {
            let text = t
                .query_row("SELECT value FROM setting WHERE name = 'addresses'", [], |row| row.get::<_, String>(0))
                .optional()?;
            Ok(text.map(|t| t.split_whitespace().map(str::to_owned).collect()))
        })
    }

    /// Keeps where the server can be reached.
    pub fn set_addresses(&self, addresses: &[String]) -> Result<(), RegisterError> {
        if self.addresses()?.as_deref() == Some(addresses) {
            return Ok(());
        }
        self.change(|t| t.execute("INSERT OR REPLACE INTO setting VALUES ('addresses', ?1)", params![addresses.join(" ")]))
            .map(drop)
    }

    fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, RegisterError> {
        self.transact(TransactionBehavior::Deferred, work)
    }

    fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, RegisterError> {
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
        // A panic inside a transaction has rolled it back.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_devices(t: &Transaction<'_>) -> rusqlite::Result<Vec<Device>> {
    let mut query =
        t.prepare_cached("SELECT id, name, key, enrolled, not_after, revoked, seen, role, models FROM device ORDER BY name")?;
    let rows = query.query_map([], |row| {
        Ok(Device {
            id: parsed(row.get(0)?)?,
            name: parsed(row.get(1)?)?,
            key: KeyHash(row.get(2)?),
            enrolled: row.get(3)?,
            not_after: row.get(4)?,
            revoked: row.get(5)?,
            seen: row.get(6)?,
            role: parsed(row.get(7)?)?,
            models: row.get::<_, Option<String>>(8)?.map(models).transpose()?,
        })
    })?;
    rows.collect()
}

fn insert_device(
    t: &Transaction<'_>,
    name: &Name,
    role: &Name,
    key: KeyHash,
    not_after: i64,
    now: i64,
) -> rusqlite::Result<Device> {
    let unused =
        |id: &DeviceId| t.query_row("SELECT 1 FROM device WHERE id = ?1", params![id.to_string()], |_| Ok(())).optional();
    let mut id = DeviceId::generate();
    while unused(&id)?.is_some() {
        id = DeviceId::generate();
    }
    t.execute(
        "INSERT INTO device (id, name, key, enrolled, not_after, role) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![id.to_string(), name.as_str(), key.0, now, not_after, role.as_str()],
    )?;
    let role = role.clone();
    Ok(Device { id, name: name.clone(), key, enrolled: now, not_after, revoked: None, seen: None, role, models: None })
}

fn parsed<T: FromStr<Err: ToString>>(text: String) -> rusqlite::Result<T> {
    let wrong = |why: T::Err| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, why.to_string().into());
    text.parse().map_err(wrong)
}

/// No model's name has a space in it.
fn models(text: String) -> rusqlite::Result<Vec<ModelPattern>> {
    text.split(' ').filter(|name| !name.is_empty()).map(|name| parsed(name.to_owned())).collect()
}

fn classify(path: &Path, source: rusqlite::Error) -> RegisterError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => RegisterError::Damaged { path, source },
        None if matches!(source, rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..)) => {
            RegisterError::Damaged { path, source }
        }
        _ => RegisterError::Sql { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_of_the_first_format_keeps_its_devices_and_they_may_infer() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join(Register::FILE);
        drop(private::open_append(&path).expect("made"));
        let db = Connection::open(&path).expect("opened");
        db.execute_batch(SCHEMA).expect("made");
        db.execute_batch(
            "INSERT INTO device VALUES ('d7c4-91ae', 'laptop', zeroblob(32), 1, 2, NULL, 3);
             INSERT INTO invitation VALUES (x'00', zeroblob(32), 'desk', 9, NULL, NULL);
             PRAGMA user_version = 1",
        )
        .expect("filled");
        drop(db);
        for _ in 0..2 {
            let register = Register::open(&path).expect("opened");
            let device = register.find("laptop").expect("there");
            assert_eq!((device.role, device.models, device.seen), (roles::default_role(), None, Some(3)));
        }
    }

    #[test]
    fn a_device_has_the_role_of_its_invitation_and_can_be_given_another_and_models() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let register = Register::open(&tmp.path().join(Register::FILE)).expect("opened");
        let (name, role) = ("laptop".parse().expect("a name"), "models".parse().expect("a name"));
        let secret = Secret::generate();
        register.invite(&name, &role, &secret, 100, 1).expect("invited");
        assert_eq!(register.invited(&secret.token(), 1).expect("read"), Some((name, role.clone())));
        assert_eq!(register.invited(&secret.token(), 100).expect("read"), None);
        let device = register.redeem(&secret.token(), KeyHash([1; 32]), 200, 1).expect("read").expect("redeemed");
        assert_eq!((&device.role, &device.models), (&role, &None));
        let models = ["llama3*".parse().expect("a pattern"), "x:1b".parse().expect("a pattern")];
        register.set_models(device.id, Some(&models)).expect("set");
        register.set_role(device.id, &"admin".parse().expect("a name")).expect("set");
        let now = register.find("laptop").expect("there");
        assert_eq!((now.role.as_str(), now.models.as_deref()), ("admin", Some(&models[..])));
        register.set_models(device.id, Some(&[])).expect("set");
        assert_eq!(register.find("laptop").expect("there").models, Some(vec![]), "none at all is not all");
        register.set_models(device.id, None).expect("set");
        assert_eq!(register.find("laptop").expect("there").models, None);
    }
}
