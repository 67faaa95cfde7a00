//! The audit log: one line of JSON for each request and for each change of who may do what.
//! Prompts, answers, queries and keys never.
//!
//! [`entry`] says what a line is, [`log`] puts lines into files, `writer` does so beside the
//! requests, [`crate::commands::audit`] is `aditd audit`.

pub mod entry;
pub mod log;
pub mod read;
mod writer;

pub use entry::Event;
pub use writer::{Audit, AuditStatus};

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use common::machine::{files::FileError, report::say};
use serde::{Deserialize, Serialize};

use self::log::Log;

/// What the configuration says of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditSettings {
    /// Where its files are.
    pub dir: PathBuf,
    /// Refuse requests while it can't be written.
    pub required: bool,
    /// A file that has so many bytes is followed by another.
    pub size: u64,
    /// Files are deleted when their last line is so old.
    pub keep: Duration,
    /// The oldest files are deleted when there are more than this.
    pub files: usize,
}

impl AuditSettings {
    /// How large a file becomes if nobody says otherwise.
    pub const SIZE: u64 = 64 << 20;
    /// How long files are kept if nobody says otherwise.
    pub const KEEP: Duration = Duration::from_secs(30 * 86_400);
    /// How many are kept: one a day for [`AuditSettings::KEEP`], and as many again for busy days.
    pub const FILES: usize = 64;

    /// What holds if nobody says otherwise, in this directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            required: false,
            size: Self::SIZE,
            keep: Self::KEEP,
            files: Self::FILES,
        }
    }
}

/// A length of time as a file writes it: `"30d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Age(pub Duration);

impl TryFrom<String> for Age {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match humantime::parse_duration(&text) {
            Ok(age) if !age.is_zero() => Ok(Self(age)),
            _ => Err(format!("`{text}` is no length of time: write it like \"30d\" or \"12h\"")),
        }
    }
}

/// Writes one event at once, for the commands beside a running server. Blocks.
///
/// # Errors
/// When it can't be written.
pub fn note(settings: &AuditSettings, event: &Event) -> Result<(), FileError> {
    let now = SystemTime::now();
    Log::new(settings.clone()).append(&[entry::line(now, event)], now).outcome
}

/// Like [`note`], for what has been done already and stays done: a failure is said.
pub fn note_or_say(settings: &AuditSettings, event: &Event) {
    if let Err(e) = note(settings, event) {
        let why = std::error::Error::source(&e).map(|why| format!(": {why}")).unwrap_or_default();
        say(format!("Note: the audit log does not have this: {e}{why}"));
    }
}
