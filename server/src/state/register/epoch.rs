//! The register's epoch. It is also in a file beside the register: a register that is older than the
//! file says was put back by hand.

use std::path::PathBuf;

use common::machine::files;
use proto::epoch::{Epoch, Memory};
use rusqlite::{OptionalExtension, Transaction, params};
use tracing::warn;

use super::{Register, RegisterError, parsed};

/// The change to the format that knows devices to confirm.
pub(super) const CHANGE: &str = "ALTER TABLE device ADD COLUMN held INTEGER;";
/// The settings: the register's epoch, that of the backup that it was restored from, and how many
/// revocations are known to be lost.
pub(super) const EPOCH: &str = "epoch";
pub(super) const RESTORED_FROM: &str = "restored_from";
pub(super) const LOST: &str = "lost_revocations";

/// The register's place in its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History {
    pub epoch: Epoch,
    /// The epoch of the backup that it was restored from.
    pub restored_from: Option<Epoch>,
    /// How many revocations since then are lost at least, as far as devices have proved it.
    pub lost: u64,
}

impl History {
    /// What a device proves that remembers this epoch: how many revocations are lost, and whether
    /// the register was put back without `aditd restore`.
    pub(crate) fn hear(&self, remembered: Epoch) -> Option<Proof> {
        match self.epoch.compare(remembered) {
            Memory::Agrees => None,
            Memory::Lost(lost) => Some(Proof::PutBack { lost }),
            Memory::OtherLine => match self.restored_from?.compare(remembered) {
                Memory::Lost(lost) if lost > self.lost => Some(Proof::LostBefore { lost }),
                _ => None,
            },
        }
    }
}

/// What a device has proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// This register was newer once.
    PutBack { lost: u64 },
    /// The backup that was restored lacked revocations.
    LostBefore { lost: u64 },
}

impl Proof {
    /// How many revocations are lost at least.
    pub(crate) fn lost(self) -> u64 {
        let (Self::PutBack { lost } | Self::LostBefore { lost }) = self;
        lost
    }
}

impl Register {
    /// The name of the file that remembers the epoch, beside the register.
    pub(crate) const EPOCH_FILE: &str = "epoch";

    /// The register's place in its history.
    pub(crate) fn history(&self) -> Result<History, RegisterError> {
        self.read(read)
    }

    /// Writes the epoch to the file. If that fails, a register that is put back may go unnoticed
    /// until a device proves it.
    pub(super) fn remember(&self) {
        let Ok(History { epoch, .. }) = self.history() else { return };
        let (file, text) = (self.memory(), format!("{epoch}\n"));
        if files::read_to_string(&file).is_ok_and(|before| *before == text) {
            return;
        }
        if let Err(e) = files::replace(&file, text.as_bytes()) {
            warn!("cannot remember the register's epoch: {e}");
        }
    }

    pub(super) fn memory(&self) -> PathBuf {
        self.path.with_file_name(Self::EPOCH_FILE)
    }
}

/// One more revocation.
pub(super) fn advance(t: &Transaction<'_>) -> rusqlite::Result<()> {
    let next = read(t)?.epoch.next();
    set(t, EPOCH, &next.to_string())
}

/// Begins the history of a register that has none.
pub(super) fn begin(t: &Transaction<'_>) -> rusqlite::Result<()> {
    t.execute(
        "INSERT OR IGNORE INTO setting VALUES (?1, ?2)",
        params![EPOCH, Epoch::begin().to_string()],
    )
    .map(drop)
}

pub(super) fn read(t: &Transaction<'_>) -> rusqlite::Result<History> {
    let get = |name| {
        t.query_row("SELECT value FROM setting WHERE name = ?1", params![name], |row| {
            row.get::<_, String>(0)
        })
        .optional()
    };
    Ok(History {
        epoch: get(EPOCH)?.map(parsed).transpose()?.unwrap_or_default(),
        restored_from: get(RESTORED_FROM)?.map(parsed).transpose()?,
        lost: get(LOST)?.map(parsed).transpose()?.unwrap_or(0),
    })
}

pub(super) fn set(t: &Transaction<'_>, name: &str, value: &str) -> rusqlite::Result<()> {
    t.execute("INSERT OR REPLACE INTO setting VALUES (?1, ?2)", params![name, value]).map(drop)
}
