//! The audit log: one line of JSON for each request and for each change of access. Prompts,
//! answers, queries and keys are never in it.
//!
//! [`entry`] defines the lines, [`log`] writes them into files, `writer` runs in a thread beside
//! the requests, [`crate::commands::audit`] is `aditd audit`.

pub(crate) mod entry;
mod events;
pub(crate) mod log;
pub(crate) mod read;
mod writer;

pub(crate) use entry::Event;
pub(crate) use events::Events;
pub(crate) use writer::{Audit, AuditStatus};

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use common::machine::{config_text::WithUnit, files::FileError, report::say};
use serde::{Deserialize, Serialize};

use self::log::Log;

/// The audit log's part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditSettings {
    /// The directory of the log's files.
    pub dir: PathBuf,
    /// Refuse requests while the log can't be written.
    pub required: bool,
    /// Bytes in a file before the next one is begun.
    pub size: u64,
    /// Age of a file's last line at which the file is deleted.
    pub keep: Duration,
    /// How many files are kept at the most; the oldest are deleted.
    pub files: usize,
}

impl AuditSettings {
    /// Default of [`AuditSettings::size`].
    pub const SIZE: u64 = 64 << 20;
    /// Default of [`AuditSettings::keep`].
    pub const KEEP: Duration = Duration::from_secs(30 * 86_400);
    /// Default of [`AuditSettings::files`]: one a day for [`AuditSettings::KEEP`], and as many
    /// again for busy days.
    pub const FILES: usize = 64;

    /// The defaults, with the log in `dir`.
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

/// A length of time as the configuration file writes it: `"30d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WithUnit<'d'>")]
pub(crate) struct Age(pub Duration);

impl TryFrom<WithUnit<'d'>> for Age {
    type Error = String;

    fn try_from(WithUnit(text): WithUnit<'d'>) -> Result<Self, String> {
        match humantime::parse_duration(&text) {
            Ok(age) if !age.is_zero() => Ok(Self(age)),
            _ => Err(format!("`{text}` is not a length of time: write it like \"30d\" or \"12h\"")),
        }
    }
}

/// Writes one event at once, for commands beside a running server. Blocks.
///
/// # Errors
/// When it can't be written.
pub(crate) fn note(settings: &AuditSettings, event: &Event) -> Result<(), FileError> {
    let now = SystemTime::now();
    Log::new(settings.clone()).append(&[entry::line(now, event)], now).outcome
}

/// Like [`note`], for an event that has already happened: if it can't be written, a note is
/// printed.
pub(crate) fn note_or_say(settings: &AuditSettings, event: &Event) {
    if let Err(e) = note(settings, event) {
        let why = std::error::Error::source(&e).map(|why| format!(": {why}")).unwrap_or_default();
        say(format!("Note: this could not be written to the audit log: {e}{why}"));
    }
}
