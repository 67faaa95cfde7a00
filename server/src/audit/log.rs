//! The files of the audit log: `audit.jsonl`, and older ones, named after the time at which they
//! were put aside.
//!
//! Several processes write. Each locks the file, checks that it is still the newest, and writes
//! each line with one call. So any of them can put a file aside, and the next writer sees a line
//! that a crash has torn.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use common::machine::files::{self, FileError};

use super::{AuditSettings, entry::timestamp};

/// The newest file.
pub(crate) const FILE: &str = "audit.jsonl";
/// The older files begin like this, followed by a time: they sort by name.
const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";
/// How long a writer waits for the lock. No writer holds it for longer, unless its process was
/// stopped.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
/// How often the file may be put aside by others while a writer waits for it.
const TRIES: usize = 16;
/// The text before the day in a line.
const BEFORE_DAY: &str = r#"{"time":""#;

/// The log, for writing.
pub(crate) struct Log {
    settings: AuditSettings,
    file: Option<File>,
}

/// The outcome of [`Log::append`].
#[derive(Debug)]
pub(crate) struct Appended {
    /// How many lines were written, counted from the first.
    pub lines: usize,
    /// Why the others were not written.
    pub outcome: Result<(), FileError>,
}

impl Log {
    /// Creates the log with these settings. Opens nothing yet.
    pub(crate) fn new(settings: AuditSettings) -> Self {
        Self { settings, file: None }
    }

    /// Appends lines, each of which must end with a newline. Blocks.
    pub(crate) fn append(&mut self, lines: &[impl AsRef<[u8]>], now: SystemTime) -> Appended {
        let mut done = 0;
        let outcome = self.newest(now).and_then(|locked| {
            locked.write(lines, &mut done).map_err(FileError::io("write", self.path()))?;
            // Only a server that refuses requests without a log needs each line on the disk.
            if self.settings.required {
                locked.0.sync_data().map_err(FileError::io("write", self.path()))
            } else {
                Ok(())
            }
        });
        if outcome.is_err() {
            // The next attempt opens the file again.
            self.file = None;
        }
        Appended { lines: done, outcome }
    }

    /// Puts a file of another day aside, and deletes files that are too old or too many.
    ///
    /// # Errors
    /// When the files can't be read.
    pub(crate) fn tend(&mut self, now: SystemTime) -> Result<(), FileError> {
        if self.path().exists() {
            self.newest(now).map(drop)?;
        }
        self.prune(now)
    }

    /// The newest file, locked, and with room in it.
    fn newest(&mut self, now: SystemTime) -> Result<Locked, FileError> {
        let path = self.path();
        let failed = |e| FileError::io("write", &path)(e);
        for _ in 0..TRIES {
            let file = match self.file.take() {
                Some(file) => file,
                None => {
                    files::create_dir(&self.settings.dir)?;
                    files::open_append(&path)?
                }
            };
            let file = Locked::take(file).map_err(failed)?;
            // Another process may have put the file aside since it was opened.
            if !is_same(&file.0, &path).map_err(failed)? {
                continue;
            }
            if self.is_full(&file.0, now).map_err(failed)? {
                self.put_aside(now)?;
                continue;
            }
            self.file = Some(file.0.try_clone().map_err(failed)?);
            return Ok(file);
        }
        Err(failed(io::Error::other("it is put aside again and again")))
    }

    fn is_full(&self, file: &File, now: SystemTime) -> io::Result<bool> {
        let len = file.metadata()?.len();
        if len == 0 || len >= self.settings.size {
            return Ok(len > 0);
        }
        // A file has the lines of one day, so that retention can be counted in days.
        let mut first = [0; BEFORE_DAY.len() + 10];
        let n = file.read_at(&mut first, 0)?;
        let day = first[..n].strip_prefix(BEFORE_DAY.as_bytes());
        Ok(day.is_some_and(|day| day.len() == 10 && !timestamp(now).as_bytes().starts_with(day)))
    }

    /// Must be called with the lock. Nobody writes to the file afterwards.
    fn put_aside(&self, now: SystemTime) -> Result<(), FileError> {
        let mut at = now;
        let mut aside = self.aside(at);
        while aside.exists() {
            at += Duration::from_millis(1);
            aside = self.aside(at);
        }
        fs::rename(self.path(), &aside).map_err(FileError::io("rename", self.path()))?;
        self.prune(now)
    }

    fn prune(&self, now: SystemTime) -> Result<(), FileError> {
        let aside = put_aside(&self.settings.dir)?;
        let too_many = aside.len().saturating_sub(self.settings.files.saturating_sub(1));
        for (i, path) in aside.iter().enumerate() {
            let written = fs::metadata(path).and_then(|file| file.modified()).unwrap_or(now);
            let too_old = now.duration_since(written).is_ok_and(|age| age > self.settings.keep);
            if i < too_many || too_old {
                match fs::remove_file(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(FileError::io("delete", path)(e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.settings.dir.join(FILE)
    }

    fn aside(&self, at: SystemTime) -> PathBuf {
        self.settings.dir.join(format!("{PREFIX}{}{SUFFIX}", timestamp(at).replace(':', "")))
    }
}

/// The files that were put aside, oldest first. None if the directory does not exist.
pub(super) fn put_aside(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |e| FileError::io("read", dir)(e);
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether `path` still names this open file.
pub(super) fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// A file that this process has locked.
struct Locked(File);

impl Locked {
    fn take(file: File) -> io::Result<Self> {
        let until = Instant::now() + LOCK_WITHIN;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1))
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::other("another process holds its lock"));
                }
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    /// Writes lines and counts those that were written whole.
    fn write(&self, lines: &[impl AsRef<[u8]>], done: &mut usize) -> io::Result<()> {
        let mut torn = !ends_with_newline(&self.0)?;
        for line in lines.iter().map(AsRef::as_ref) {
            if torn {
                write_once(&self.0, &[b"\n", line].concat())
            } else {
                write_once(&self.0, line)
            }?;
            torn = false;
            *done += 1;
        }
        Ok(())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // A copy of the descriptor stays open and would keep the lock.
        let _ = self.0.unlock();
    }
}

fn ends_with_newline(file: &File) -> io::Result<bool> {
    let len = file.metadata()?.len();
    let mut last = [b'\n'];
    if len > 0 {
        file.read_exact_at(&mut last, len - 1)?;
    }
    Ok(last == [b'\n'])
}

/// One call, so that a line is whole or visibly torn, even if the process is killed.
fn write_once(mut file: &File, line: &[u8]) -> io::Result<()> {
    match file.write(line) {
        Ok(n) if n == line.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::StorageFull.into()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
