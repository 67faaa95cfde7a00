//! The log of this program in files too: bounded, and for their owner alone.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::machine::files::{self, FileError};

/// How long a file may become, in bytes. Then it becomes the old one, and a new one begins.
const LONGEST: u64 = 1 << 20;

/// The files that get each line of the log.
static FILES: Mutex<Vec<LogFile>> = Mutex::new(Vec::new());

/// From now on `path` gets the log, too. The file is made with mode 0600 if it does not exist.
///
/// # Errors
/// If it cannot be opened, or is exposed.
pub fn also_log_to(path: &Path) -> Result<(), FileError> {
    let file = LogFile::open(path)?;
    FILES.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    Ok(())
}

/// Writes a text to these files only.
pub fn note(text: &str) {
    let _ = writeln!(ToFiles, "{text}");
}

/// Where the file before `path` is.
pub fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    name.into()
}

/// Writes to all files. An error (a full disk) is ignored: the log is on standard error, too.
pub(crate) struct ToFiles;

impl Write for ToFiles {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for file in FILES.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let _ = file.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct LogFile {
    path: PathBuf,
    /// `None` after an error: the next line opens it again.
    file: Option<File>,
    size: u64,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, FileError> {
        let file = files::open_append(path)?;
        let size = file.metadata().map_err(FileError::io("read", path))?.len();
        Ok(Self { path: path.to_owned(), file: Some(file), size })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > LONGEST {
            self.file = None;
            match fs::rename(&self.path, old(&self.path)) {
                // Somebody has deleted it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
            self.size = 0;
        }
        if self.file.is_none() {
            *self = Self::open(&self.path).map_err(io::Error::other)?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(line)?;
            self.size += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_is_full_becomes_the_old_one_and_both_are_bounded() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("up.log");
        let mut log = LogFile::open(&path).expect("opened");
        let line = [b'x'; 1000];
        for _ in 0..2500 {
            log.write(&line).expect("written");
        }
        let length = |path: &Path| fs::metadata(path).expect("a file").len();
        assert!((1..=LONGEST).contains(&length(&path)), "{}", length(&path));
        assert!(LONGEST - length(&old(&path)) < 1000, "{}", length(&old(&path)));
        assert_eq!(fs::read_dir(tmp.path()).expect("listed").count(), 2);
        // What is there already counts.
        let mut again = LogFile::open(&path).expect("opened");
        assert_eq!(again.size, length(&path));
        again.write(b"more\n").expect("written");
        assert!(fs::read(&path).expect("read").ends_with(b"xmore\n"));
        for path in [&path, &old(&path)] {
            let mode = fs::metadata(path).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_file_that_was_deleted_is_made_again_at_the_latest_when_it_would_be_full() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("up.log");
        let mut log = LogFile::open(&path).expect("opened");
        log.write(b"a\n").expect("written");
        fs::remove_file(&path).expect("removed");
        log.size = LONGEST;
        log.write(b"b\n").expect("written");
        assert_eq!(fs::read(&path).expect("a file"), b"b\n");
    }
}
