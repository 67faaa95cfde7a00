//! The errors of the register, and how to correct them.

use std::path::{Path, PathBuf};

use common::machine::{files::FileError, report::Failure};
use proto::identity::{DeviceId, Name};
use rusqlite::ErrorCode;

use super::{MOST_INVITATIONS, UserError};

/// How many of the existing devices an error lists.
const FEW: usize = 10;

/// Why the register could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It is not a valid register any more.
    #[error("the register `{}` is damaged", path.display())]
    Damaged {
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// A newer version wrote it.
    #[error("the register `{}` was written by a newer version of aditd (format {found})", path.display())]
    Newer {
        path: PathBuf,
        /// The format that was found.
        found: i64,
    },
    /// Another error: a full disk, missing permission.
    #[error("cannot use the register `{}`", path.display())]
    Sql {
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

impl RegisterError {
    /// Damage that SQLite does not notice, or reports only as text.
    pub(super) fn damaged(path: &Path, why: String) -> Self {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        let source = rusqlite::Error::SqliteFailure(code, Some(why));
        Self::Damaged { path: path.to_owned(), source }
    }
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
                Some(ErrorCode::DiskFull) => {
                    "free some disk space and run it again: nothing was changed".to_owned()
                }
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    "another command is changing it: run it again".to_owned()
                }
                _ => format!(
                    "run this as the owner of `{}`, and look at the free space of its disk",
                    path.display()
                ),
            },
            RegisterError::File(e) => e.hint(),
        };
        Self::from_error(error).hint(hint)
    }
}

/// An operation on a device, by its name or id, that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("there is no device `{text}`")]
    Unknown {
        /// The name or id that was asked for.
        text: String,
        known: Vec<Name>,
    },
    /// One device has this id, and another device has it as its name. Only an older version allowed
    /// such a name.
    #[error("`{text}` is the id of one device and the name of another")]
    Ambiguous {
        /// The name or id that was asked for.
        text: String,
        /// The name of the device with this id.
        name: Name,
        /// The id of the device with this name.
        id: DeviceId,
    },
    /// The name of a new device looks like an id.
    #[error("`{0}` looks like a device's id, so it can't be a device's name")]
    LooksLikeId(Name),
    #[error("device `{0}` is revoked already")]
    AlreadyRevoked(Name),
    /// Only a revoked device can be let in again.
    #[error("device `{0}` is not revoked")]
    NotRevoked(Name),
    /// Only a certificate that can still be renewed is let in again.
    #[error("the certificate of `{0}` expired too long ago to be renewed")]
    ExpiredTooLongAgo(Name),
    /// Only a revoked device can be forgotten.
    #[error("device `{0}` is still enrolled")]
    StillEnrolled(Name),
    /// The name of a new device is another's.
    #[error("there is a device `{0}` already")]
    NameTaken(Name),
    /// The name of a new device is that of a key.
    #[error("there is a key `{0}`, and a device can't have the name of a key")]
    NameOfKey(Name),
    /// The name of a new device is that of a revoked one.
    #[error("the name `{0}` belongs to a revoked device")]
    NameOfRevoked(Name),
    /// The name of a new device is reserved for the user of a forgotten one.
    #[error(
        "the name `{name}` was that of a device of {}",
        uid.map_or_else(|| "somebody else".to_owned(), |uid| format!("another user (uid {uid})"))
    )]
    NameOfAnother {
        name: Name,
        /// Who enrolled that device over SSH; `None` if it used an invitation.
        uid: Option<u32>,
    },
    /// Another person has signed in on a device.
    #[error("device `{0}` belongs to another person")]
    OfAnotherPerson(Name),
    /// The name of a new device is that of an open invitation.
    #[error("an invitation for `{0}` is open")]
    NameInvited(Name),
    /// A new device would belong to a user who is revoked.
    #[error(transparent)]
    UserRevoked(UserError),
    /// Limited because every packet of a stranger is checked against every open invitation.
    #[error("{MOST_INVITATIONS} invitations are open already")]
    TooManyInvitations,
    /// A code would name a CA that has just ended.
    #[error("the certificate authority has just been changed")]
    CaEnded,
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let hint = match &error {
            DeviceError::Unknown { known, .. } => match known.as_slice() {
                [] => "none is enrolled yet: invite one with `aditd invite NAME`".to_owned(),
                known => format!(
                    "the devices are {}{}; `aditd device list` says more",
                    known.iter().take(FEW).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "),
                    if known.len() > FEW { " and others" } else { "" }
                ),
            },
            DeviceError::Ambiguous { name, id, text } => {
                format!(
                    "the device with the id `{text}` is `{name}`; the device with that name is `{id}`"
                )
            }
            DeviceError::LooksLikeId(_) => {
                "choose a name that says whose or which device it is, like `alice-laptop`"
                    .to_owned()
            }
            DeviceError::AlreadyRevoked(name) | DeviceError::NameOfRevoked(name) => {
                format!(
                    "to let it in again: `aditd device restore {name}`; to free its name: `aditd device forget {name}`"
                )
            }
            DeviceError::NotRevoked(name) => {
                format!("to see how it is: `aditd device show {name}`")
            }
            DeviceError::ExpiredTooLongAgo(name) => {
                format!(
                    "enroll it again: `aditd device forget {name}` and `aditd invite {name}`; then, on that computer, `adit enroll --replace`"
                )
            }
            DeviceError::StillEnrolled(name) => {
                format!("end its access first: `aditd device revoke {name}`")
            }
            DeviceError::NameTaken(name) => {
                format!(
                    "choose another name, or remove that device first: `aditd device revoke {name}`, then `aditd device forget {name}`"
                )
            }
            DeviceError::NameOfAnother { name, .. } => {
                format!(
                    "choose another name, or let any user have this name: `aditd device forget {name} --free-name`"
                )
            }
            DeviceError::NameOfKey(name) => {
                format!("choose another name, or end that key: `aditd key revoke {name}`")
            }
            DeviceError::NameInvited(name) => {
                format!("use its code, or withdraw it: `aditd device revoke {name}`")
            }
            DeviceError::OfAnotherPerson(_) => {
                "sign in as that person, or enroll as a new device: `adit enroll --sso --replace --device NAME`"
                    .to_owned()
            }
            DeviceError::TooManyInvitations => {
                "wait until some have expired or been used".to_owned()
            }
            DeviceError::CaEnded => "run it again".to_owned(),
            DeviceError::UserRevoked(_) | DeviceError::Register(_) => String::new(),
        };
        match error {
            DeviceError::Register(e) => e.into(),
            DeviceError::UserRevoked(e) => e.into(),
            other => Self::from_error(other).hint(hint),
        }
    }
}

pub(super) fn classify(path: &Path, source: rusqlite::Error) -> RegisterError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            RegisterError::Damaged { path, source }
        }
        None if matches!(
            source,
            rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..)
        ) =>
        {
            RegisterError::Damaged { path, source }
        }
        _ => RegisterError::Sql { path, source },
    }
}
