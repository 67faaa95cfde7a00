//! Files that nobody else may read, written whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

/// What went wrong with one of our own files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Others could read or change it.
    #[error("`{}` can be read by other users (mode {mode:03o})", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operating system refused.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `write` …
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It isn't what it should be.
    #[error("`{}` is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
}

impl FileError {
    /// An error of the operating system while `doing` something to `path`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// `path` is damaged, and how.
    pub fn damaged(path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self::Damaged { path: path.into(), why: why.to_string() }
    }

    /// Whether the file simply isn't there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The command or deed that cures it.
    pub fn hint(&self) -> String {
        match self {
            Self::Exposed { path, mode } => {
                let wanted = if path.is_dir() { "700" } else { "600" };
                let _ = mode;
                format!("if nobody has copied it: `chmod {wanted} '{}'`", path.display())
            }
            Self::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    format!(
                        "run this as the owner of `{}`, or name another place with --state-dir",
                        path.display()
                    )
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free some disk space and run it again: nothing was changed".to_owned()
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    "name a writable place with --state-dir".to_owned()
                }
                _ => format!("look at it with `ls -ld '{}'`", path.display()),
            },
            Self::Damaged { path, .. } => format!(
                "put `{}` back from a backup, or move it away and begin anew",
                path.display()
            ),
        }
    }
}

/// Makes `path` and its parents, `path` itself for the owner alone (0700); one that exists must be
/// that already.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    if !path.is_dir() {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::io("create", parent))?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(FileError::io("create", path))?,
        }
    }
    refuse_exposed(path)
}

/// Reads a file that must be for its owner alone.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    refuse_exposed(path)?;
    fs::read(path).map_err(FileError::io("read", path))
}

/// Like [`read`], for text.
pub fn read_to_string(path: &Path) -> Result<String, FileError> {
    String::from_utf8(read(path)?).map_err(|_| FileError::damaged(path, "it is not text"))
}

/// Replaces `path` by a file with these bytes (0600): afterwards it holds either all of the old or
/// all of the new, whatever happens.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_beside(path, bytes)?.persist(path).map_err(|e| FileError::io("write", path)(e.error))?;
    sync_dir(path)
}

/// Like [`replace`], but fails with `AlreadyExists` if there is such a file.
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_beside(path, bytes)?
        .persist_noclobber(path)
        .map_err(|e| FileError::io("create", path)(e.error))?;
    sync_dir(path)
}

/// Reads `path`, or makes it with what `make` returns. Of several processes that do so at once, all
/// get the same bytes.
pub fn read_or_create(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, FileError> {
    match read(path) {
        Err(e) if e.is_not_found() => {}
        other => return other,
    }
    match create(path, &make()) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    read(path)
}

/// Refuses a file or directory that group or others can read or change.
pub fn refuse_exposed(path: &Path) -> Result<(), FileError> {
    refuse_mode(path, fs::metadata(path))
}

/// Opens a file to append to, made for the owner alone if there is none; one that exists must be
/// that already. Root leaves it to the owner of its directory.
pub fn open_append(path: &Path) -> Result<File, FileError> {
    let file = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(FileError::io("create", path))?;
    // Not by its path: another process may have put another file there.
    let metadata = file.metadata().map_err(FileError::io("read", path))?;
    // What root makes for a service has to be the service's.
    if let Some(dir) = path.parent().and_then(|dir| fs::metadata(dir).ok())
        && dir.uid() != metadata.uid()
        && rustix::process::geteuid().is_root()
    {
        fchown(&file, Some(dir.uid()), Some(dir.gid()))
            .map_err(FileError::io("give to its service", path))?;
    }
    refuse_mode(path, Ok(metadata))?;
    Ok(file)
}

fn refuse_mode(path: &Path, metadata: io::Result<fs::Metadata>) -> Result<(), FileError> {
    let mode = metadata.map_err(FileError::io("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    // tempfile makes it 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(FileError::io("write", path))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(FileError::io("write", path))?;
    Ok(file)
}

/// A rename is on the disk only when its directory is.
fn sync_dir(path: &Path) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|d| d.sync_all()).map_err(FileError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn files_and_directories_are_for_their_owner_alone() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let dir = tmp.path().join("a/b");
        create_dir(&dir).expect("created");
        replace(&dir.join("key"), b"secret").expect("written");
        assert_eq!((mode(&dir), mode(&dir.join("key"))), (0o700, 0o600));
        assert_eq!(read(&dir.join("key")).expect("read"), b"secret");
    }

    #[test]
    fn what_others_can_read_is_refused_with_the_chmod_that_cures_it() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("key");
        replace(&path, b"secret").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = read(&path).expect_err("exposed");
        assert!(error.to_string().contains("mode 644"), "{error}");
        assert!(error.hint().contains("chmod 600"), "{}", error.hint());
    }

    #[test]
    fn what_root_makes_in_a_services_directory_is_the_services() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let owner = if rustix::process::geteuid().is_root() {
            65_534
        } else {
            rustix::process::geteuid().as_raw()
        };
        std::os::unix::fs::chown(tmp.path(), Some(owner), None).expect("chown");
        for _ in 0..2 {
            let file = open_append(&tmp.path().join("log")).expect("opened");
            assert_eq!(file.metadata().expect("there").uid(), owner);
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("key");
        create(&path, b"old").expect("written");
        assert!(create(&path, b"new").is_err());
        assert_eq!(read(&path).expect("read"), b"old");
        assert_eq!(fs::read_dir(tmp.path()).expect("dir").count(), 1);
    }

    #[test]
    fn of_many_that_create_at_once_all_read_the_same() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("key");
        let all: Vec<_> = std::thread::scope(|s| {
            let path = &path;
            let tasks: Vec<_> =
                (0..16u8).map(|i| s.spawn(move || read_or_create(path, || vec![i; 64]))).collect();
            tasks.into_iter().map(|t| t.join().expect("no panic").expect("read")).collect()
        });
        assert!(all.iter().all(|bytes| *bytes == all[0]));
    }
}
