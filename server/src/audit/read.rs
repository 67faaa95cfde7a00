//! Reads the audit log as one: file after file, and goes on with the next when the newest is put
//! aside.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use common::machine::files::{self, FileError};

use super::log::{FILE, is_same, put_aside};

/// Reads lines, oldest first.
pub(crate) struct Lines {
    dir: PathBuf,
    since: Option<SystemTime>,
    /// Files that are read before the newest one.
    older: VecDeque<BufReader<File>>,
    newest: Option<BufReader<File>>,
    /// The inode of the last file that was read to its end.
    done: Option<u64>,
    /// The beginning of a line that is not complete yet.
    begun: Vec<u8>,
}

impl Lines {
    /// All of the log in `dir`, without files that were last written before `since`.
    pub(crate) fn open(dir: &Path, since: Option<SystemTime>) -> Result<Self, FileError> {
        let mut lines = Self {
            dir: dir.to_owned(),
            since,
            older: VecDeque::new(),
            newest: None,
            done: None,
            begun: Vec::new(),
        };
        lines.look()?;
        Ok(lines)
    }

    /// Whether there is no file yet.
    pub(crate) fn is_without_files(&self) -> bool {
        self.newest.is_none() && self.older.is_empty()
    }

    /// The next line without its newline; `None` if there is none yet.
    pub(crate) fn read_line(&mut self) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.dir.join(FILE);
        let failed = |e| FileError::io("read", &path)(e);
        loop {
            while let Some(file) = self.older.front_mut() {
                if let Some(line) = read_line(file, &mut self.begun).map_err(failed)? {
                    return Ok(Some(line));
                }
                self.older.pop_front();
                // Torn: nobody writes to an older file.
                self.begun.clear();
            }
            if self.newest.is_none() {
                self.look()?;
            }
            let Some(file) = &mut self.newest else {
                if self.older.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            if !self.older.is_empty() {
                continue;
            }
            // Checked before the read: a file that has been put aside is complete.
            let is_newest = is_same(file.get_ref(), &path).map_err(failed)?;
            if let Some(line) = read_line(file, &mut self.begun).map_err(failed)? {
                return Ok(Some(line));
            }
            if is_newest {
                return Ok(None);
            }
            self.begun.clear();
            self.done = Some(file.get_ref().metadata().map_err(failed)?.ino());
            self.newest = None;
        }
    }

    /// Opens the newest file, and the older ones that have not been read.
    fn look(&mut self) -> Result<(), FileError> {
        let failed = |e| FileError::io("read", &self.dir)(e);
        // The newest first: if it is put aside after this, that is noticed at its end.
        let newest = open(&self.dir.join(FILE))?;
        for path in put_aside(&self.dir)?.into_iter().rev() {
            let Some(file) = open(&path)? else { continue };
            let metadata = file.metadata().map_err(failed)?;
            if Some(metadata.ino()) == self.done {
                break;
            }
            let is_old =
                self.since.is_some_and(|since| metadata.modified().is_ok_and(|at| at < since));
            let is_newest =
                newest.as_ref().is_some_and(|newest| is_same(newest, &path).unwrap_or(false));
            if !is_old && !is_newest {
                self.older.push_front(BufReader::new(file));
            }
        }
        self.newest = newest.map(BufReader::new);
        if let (None, Some(last)) = (&self.newest, self.older.back()) {
            self.done = Some(last.get_ref().metadata().map_err(failed)?.ino());
        }
        Ok(())
    }
}

/// A whole line, if there is one; the beginning of an incomplete one is kept in `begun`.
fn read_line(file: &mut BufReader<File>, begun: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    file.read_until(b'\n', begun)?;
    if begun.pop_if(|last| *last == b'\n').is_none() {
        return Ok(None);
    }
    Ok(Some(std::mem::take(begun)))
}

/// Opens a file, unless it was deleted in the meantime.
fn open(path: &Path) -> Result<Option<File>, FileError> {
    match files::open_read(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write, time::Duration};

    use super::*;
    use crate::audit::{AuditSettings, entry::timestamp, log::Log};

    fn line(text: &str) -> Vec<u8> {
        format!("{{\"time\":\"{}\",\"text\":\"{text}\"}}\n", timestamp(SystemTime::now()))
            .into_bytes()
    }

    fn drain(lines: &mut Lines) -> Vec<String> {
        let mut read = Vec::new();
        while let Some(line) = lines.read_line().expect("read") {
            let text = serde_json::from_slice::<serde_json::Value>(&line)
                .map(|line| line["text"].as_str().map(str::to_owned));
            read.push(text.ok().flatten().unwrap_or_else(|| "torn".to_owned()));
        }
        read
    }

    #[test]
    fn a_reader_follows_into_every_new_file() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let settings =
            AuditSettings { size: 150, ..AuditSettings::in_dir(&tmp.path().join("log")) };
        let mut log = Log::new(settings.clone());
        let mut append =
            |text: &str| log.append(&[line(text)], SystemTime::now()).outcome.expect("written");
        let mut early = Lines::open(&settings.dir, None).expect("there need not be a log yet");
        assert_eq!(drain(&mut early), [""; 0]);
        let mut expected = Vec::new();
        for round in 0..5 {
            for i in 0..10 {
                append(&format!("{round}-{i}"));
                expected.push(format!("{round}-{i}"));
            }
            let new = drain(&mut early);
            assert_eq!(new, expected[expected.len() - 10..], "round {round}");
        }
        assert_eq!(drain(&mut Lines::open(&settings.dir, None).expect("opened")), expected);
    }

    #[test]
    fn an_incomplete_line_is_not_returned_until_it_is_complete() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let settings = AuditSettings::in_dir(&tmp.path().join("log"));
        Log::new(settings.clone())
            .append(&[line("whole")], SystemTime::now())
            .outcome
            .expect("written");
        let mut file =
            OpenOptions::new().append(true).open(settings.dir.join(FILE)).expect("opened");
        let late = line("late");
        file.write_all(&late[..10]).expect("written");
        let mut lines = Lines::open(&settings.dir, None).expect("opened");
        assert_eq!(drain(&mut lines), ["whole"]);
        file.write_all(&late[10..]).expect("written");
        assert_eq!(drain(&mut lines), ["late"]);
    }

    #[test]
    fn files_from_before_since_are_not_read() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let settings = AuditSettings { size: 1, ..AuditSettings::in_dir(&tmp.path().join("log")) };
        let mut log = Log::new(settings.clone());
        for text in ["1", "2", "3"] {
            log.append(&[line(text)], SystemTime::now()).outcome.expect("written");
        }
        let later = Some(SystemTime::now() + Duration::from_secs(60));
        assert_eq!(drain(&mut Lines::open(&settings.dir, later).expect("opened")), ["3"]);
    }
}
