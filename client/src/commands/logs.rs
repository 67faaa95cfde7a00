//! `adit logs`: the log of the running `adit up`, or of the last one.

mod file;
mod journal;

use std::{fs, io, path::Path, time::SystemTime};

use clap::Args;
use common::machine::{
    control,
    files::{self, FileError},
    log_file, log_lines,
    process::{minute, unix_now},
    report::{Failure, data},
};
use proto::{identity::Name, log_line::LogLine};

use self::journal::JournalUnit;
use crate::profile::{self, ProfileDir};

/// The log, in the directory of a profile.
const LOG: &str = "up.log";
/// Which unit's journal has the log, if it is there.
const JOURNAL: &str = "up.journal";

/// Flags of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Show the log of the `adit up` that serves or served the server with this name [default: of the
    /// running or last one]
    name: Option<Name>,
    /// Show this many lines
    #[arg(short = 'n', long, value_name = "N", default_value = "100")]
    lines: usize,
    /// Go on with each new line until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Print JSON, one object for each line
    #[arg(long)]
    json: bool,
}

/// Keeps the log of this process for `adit logs`: in a file of the profile, unless the journal has
/// it.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn keep(profile_dir: &ProfileDir, what: &str) -> Result<(), FileError> {
    let (log, mark) = (profile_dir.dir.join(LOG), profile_dir.dir.join(JOURNAL));
    if let Some(unit) = JournalUnit::own() {
        let text = serde_json::to_vec(&unit).map_err(|e| FileError::damaged(&mark, e))?;
        return files::replace(&mark, &text);
    }
    match fs::remove_file(&mark) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(FileError::io("remove", mark)(e));
        }
        _ => {}
    }
    log_file::also_log_to(&log)?;
    let version = env!("CARGO_PKG_VERSION");
    let (now, pid) = (minute(unix_now()), std::process::id());
    log_file::note(&format!("{now} (UTC): `{what}` begins, adit {version}, pid {pid}"));
    Ok(())
}

/// Adds the log of this process, which goes on for an `adit up` that has ended, to that one's. Without
/// that file it is in standard error alone.
pub(super) fn keep_beside(profile_dir: &ProfileDir) {
    let log = profile_dir.dir.join(LOG);
    if log.exists() && !profile_dir.dir.join(JOURNAL).exists() {
        // The server is told even if the log cannot be written.
        let _ = log_file::also_log_to(&log);
    }
}

/// Shows the log.
///
/// # Errors
/// If there is none yet.
pub(crate) async fn run(state_dir: &Path, flags: &Logs) -> Result<(), Failure> {
    let profile_dir = match &flags.name {
        Some(name) => ProfileDir::new(state_dir, name.clone()),
        None => latest(state_dir)?,
    };
    if !profile_dir.is_enrolled()? {
        // The error says which servers there are.
        profile_dir.read()?;
    }
    let mark = profile_dir.dir.join(JOURNAL);
    match files::read(&mark) {
        Ok(text) => {
            let unit: JournalUnit =
                serde_json::from_slice(&text).map_err(|e| FileError::damaged(&mark, e))?;
            if flags.json {
                return unit.show_as_json(flags.lines, flags.follow);
            }
            return Err(unit.show(flags.lines, flags.follow));
        }
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
    }
    let log = profile_dir.dir.join(LOG);
    let shown = file::last_lines(&log, flags.lines)?.ok_or_else(|| {
        Failure::new("there is no log yet")
            .source(format!("`{}` does not exist", log.display()))
            .hint(format!("`adit up{}` writes it", profile_dir.argument()))
    })?;
    match flags.json {
        true => {
            // The end of the last line may still be to come.
            let shown = if flags.follow { shown.whole_lines() } else { &shown.text };
            log_lines::print(shown.lines().map(LogLine::of_text))?;
        }
        false if !shown.is_empty() => data(shown.text.trim_end())?,
        false => {}
    }
    match flags.follow {
        true => file::follow(&log, shown, flags.json).await,
        false => Ok(()),
    }
}

/// The server of the running `adit up`, or of the one that has logged last.
fn latest(state_dir: &Path) -> Result<ProfileDir, Failure> {
    let known = profile::known(state_dir)?;
    let places = known.into_iter().map(|name| ProfileDir::new(state_dir, name));
    let changed = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    let logged_at = |profile_dir: &ProfileDir| -> (bool, Option<SystemTime>) {
        let log = changed(&profile_dir.dir.join(LOG));
        let mark = changed(&profile_dir.dir.join(JOURNAL));
        (control::is_running(&profile_dir.dir), log.max(mark))
    };
    let latest = places.map(|place| (logged_at(&place), place)).max_by_key(|(at, _)| *at);
    match latest {
        Some((_, place)) => Ok(place),
        None => ProfileDir::choose(state_dir, None, "logs"),
    }
}
