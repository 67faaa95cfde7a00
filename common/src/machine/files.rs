//! Files that no other user can read, written completely or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// What is wrong with one of our own files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Other users can read or change it.
    #[error("`{}` can be read by other users (mode {mode:03o})", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user owns it.
    #[error("`{}` belongs to another user (uid {owner})", path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
    },
    /// Another user can replace it.
    #[error("another user (uid {owner}) can replace `{}`", path.display())]
    Replaceable {
        /// The directory that is used.
        path: PathBuf,
        /// The directory or link above it that the user can change.
        by: PathBuf,
        /// That user's uid.
        owner: u32,
    },
    /// It is a link, or something that is not a regular file.
    #[error("`{}` is {what}", path.display())]
    NotPlain {
        /// Where.
        path: PathBuf,
        /// What it is instead, with an article.
        what: &'static str,
    },
    /// The operating system returned an error.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `write` …
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        source: io::Error,
    },
    /// Its contents are not valid.
    #[error("`{}` is damaged: {why}", path.display())]
    Damaged {
        path: PathBuf,
        /// What is wrong with them.
        why: String,
    },
}

impl FileError {
    /// An error of the operating system while `doing` something to `path`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match foreign_in_own_dir(&path, &source) {
            Some(owner) => Self::Foreign { path, owner },
            None => Self::Io { doing, path, source },
        }
    }

    /// `path` is damaged, in the way that `why` says.
    pub fn damaged(path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self::Damaged { path: path.into(), why: why.to_string() }
    }

    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The cure, for a file in the state directory.
    pub fn hint(&self) -> String {
        self.hint_for("--state-dir")
    }

    /// The cure for a program that goes on and tries it again by itself.
    pub fn hint_to_go_on(&self, setting: &str) -> String {
        match self {
            Self::Io { source, .. } if is_full(source) => "free some disk space".to_owned(),
            _ => self.hint_for(setting),
        }
    }

    /// The cure. `setting` is the name of the setting that says where the file is.
    pub fn hint_for(&self, setting: &str) -> String {
        match self {
            Self::Exposed { path, mode } => {
                let wanted = if path.is_dir() { "700" } else { "600" };
                let _ = mode;
                format!("if nobody has copied it: `chmod {wanted} '{}'`", path.display())
            }
            Self::Foreign { path, owner } => {
                let own = rustix::process::geteuid().as_raw();
                let path = path.display();
                if own == *owner {
                    format!("look at it with `ls -ld '{path}'`")
                } else {
                    format!(
                        "if you know where it came from: `sudo chown --no-dereference {own} '{path}'`; otherwise remove it"
                    )
                }
            }
            Self::Replaceable { by, .. } => format!(
                "look at `ls -ld '{}'`; choose with {setting} a place where only root can change each directory above",
                by.display()
            ),
            Self::NotPlain { path, .. } => format!(
                "only a regular file with one name is used: look at `ls -l '{0}'`; if nobody needs it: `rm '{0}'`",
                path.display()
            ),
            Self::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    format!(
                        "run this as the owner of `{}`, or choose another place with {setting}",
                        path.display()
                    )
                }
                _ if is_full(source) => {
                    "free some disk space and run it again: nothing was changed".to_owned()
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    format!("choose a writable place with {setting}")
                }
                _ => format!("look at it with `ls -ld '{}'`", path.display()),
            },
            Self::Damaged { path, .. } => format!(
                "put `{}` back from a backup, or move it away and start again without it",
                path.display()
            ),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The owner of a file that this user may not use, if another user's file is in this user's own
/// directory: then it is the file that is wrong, and not the user who runs this.
fn foreign_in_own_dir(path: &Path, error: &io::Error) -> Option<u32> {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return None;
    }
    let owner = fs::symlink_metadata(path).ok()?.uid();
    let of_dir = fs::metadata(path.parent()?).ok()?.uid();
    let own = rustix::process::geteuid().as_raw();
    (of_dir == own && owner != own).then_some(owner)
}

/// Makes the directory `path` (mode 0700) and its parents. If it exists, it must have that owner
/// and that mode already.
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
    refuse_exposed_dir(path)
}

/// Reads a file that must belong to this user and that no other user can read.
///
/// # Errors
/// Also when it is a link or not a regular file.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let (mut file, metadata) = open(path, OpenOptions::new().read(true), "read")?;
    refuse_exposed(path, &metadata)?;
    // Allocated with its final size: a buffer that grows leaves copies in memory.
    let len = usize::try_from(metadata.len()).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(len + 1));
    file.read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    Ok(bytes)
}

/// Opens a file of this user for reading. Other users may be able to read it too.
///
/// # Errors
/// Also when it is a link or not a regular file.
pub fn open_read(path: &Path) -> Result<File, FileError> {
    open(path, OpenOptions::new().read(true), "read").map(|(file, _)| file)
}

/// Like [`read`], for text.
pub fn read_to_string(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let mut bytes = read(path)?;
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(e) => {
            drop(Zeroizing::new(e.into_bytes()));
            Err(FileError::damaged(path, "it is not text"))
        }
    }
}

/// Replaces `path` with a file of these bytes (mode 0600). Even after a crash it has either all of
/// the old contents or all of the new.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_beside(path, bytes)?.persist(path).map_err(|e| FileError::io("write", path)(e.error))?;
    sync_dir(path)
}

/// Like [`replace`], but fails with `AlreadyExists` if the file exists.
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_beside(path, bytes)?
        .persist_noclobber(path)
        .map_err(|e| FileError::io("create", path)(e.error))?;
    sync_dir(path)
}

/// Reads `path`, or creates it with what `make` returns. If several processes do this at the same
/// time, all get the same bytes.
pub fn read_or_create<B: AsRef<[u8]>>(
    path: &Path,
    make: impl FnOnce() -> B,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    match read(path) {
        Err(e) if e.is_not_found() => {}
        other => return other,
    }
    match create(path, make().as_ref()) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    read(path)
}

/// Refuses a directory that another user owns, or that the group or others can read or change.
pub(crate) fn refuse_exposed_dir(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(FileError::io("read", path))?;
    refuse_foreign(path, &metadata)?;
    refuse_exposed(path, &metadata)
}

/// Looks at a file or directory of this user's that nobody else may read, without opening it. A file
/// that does not exist is no error.
///
/// # Errors
/// What is wrong with its owner, its mode or its kind.
pub fn inspect(path: &Path) -> Result<(), FileError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(FileError::io("read", path))?,
    };
    if metadata.is_symlink() {
        return Err(FileError::NotPlain { path: path.to_owned(), what: "a symbolic link" });
    }
    refuse_foreign(path, &metadata)?;
    refuse_exposed(path, &metadata)
}

/// Bytes that may still be written to the file system of `path`.
///
/// # Errors
/// If the system does not say.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Refuses a directory in which another user could replace a file that this process makes. The
/// directory must belong to this user or to root, and if others can write to it, it must be sticky.
pub fn refuse_shared_dir(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(FileError::io("read", path))?;
    if metadata.uid() != 0 {
        refuse_foreign(path, &metadata)?;
    }
    if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0 {
        let (path, owner) = (path.to_owned(), metadata.uid());
        return Err(FileError::Replaceable { by: path.clone(), path, owner });
    }
    Ok(())
}

/// Opens a file for appending, and creates it (mode 0600) if it does not exist. A file that exists
/// must have that owner and that mode already, and only one name.
pub fn open_append(path: &Path) -> Result<File, FileError> {
    let options = &mut OpenOptions::new();
    let options = options.create(true).read(true).append(true).mode(0o600);
    let (file, metadata) = open(path, options, "create")?;
    if metadata.nlink() > 1 {
        return Err(FileError::NotPlain { path: path.to_owned(), what: "a hard link" });
    }
    refuse_exposed(path, &metadata)?;
    Ok(file)
}

/// Opens a regular file of this user, and never follows a link.
fn open(
    path: &Path,
    options: &mut OpenOptions,
    doing: &'static str,
) -> Result<(File, fs::Metadata), FileError> {
    // Without NONBLOCK, opening a pipe would wait for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let not_plain = |what| FileError::NotPlain { path: path.to_owned(), what };
    let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Err(_) if fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink()) => {
            return Err(not_plain("a symbolic link"));
        }
        opened => opened.map_err(FileError::io(doing, path))?,
    };
    // The metadata of the opened file, not of its path: another process may have replaced the file
    // there.
    let metadata = file.metadata().map_err(FileError::io("read", path))?;
    if !metadata.is_file() {
        let is_pipe = metadata.file_type().is_fifo();
        return Err(not_plain(if is_pipe { "a pipe" } else { "not a regular file" }));
    }
    refuse_foreign(path, &metadata)?;
    Ok((file, metadata))
}

fn refuse_foreign(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(FileError::Foreign { path: path.to_owned(), owner: metadata.uid() })
}

fn refuse_exposed(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    let mode = metadata.mode() & 0o777;
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

/// A rename is on the disk only after its directory is.
fn sync_dir(path: &Path) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|d| d.sync_all()).map_err(FileError::io("write", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn a_cure_names_the_setting_that_says_where_the_file_is() {
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
            let error = FileError::io("write", "/var/log/adit")(kind.into());
            assert!(error.hint().contains("--state-dir"), "{}", error.hint());
            let hint = error.hint_for("`audit_dir` in the configuration");
            assert!(hint.contains("with `audit_dir`") && !hint.contains("--state-dir"), "{hint}");
        }
    }

    #[test]
    fn files_and_directories_are_for_their_owner_alone() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let dir = tmp.path().join("a/b");
        create_dir(&dir).expect("created");
        replace(&dir.join("key"), b"secret").expect("written");
        assert_eq!((mode(&dir), mode(&dir.join("key"))), (0o700, 0o600));
        assert_eq!(*read(&dir.join("key")).expect("read"), b"secret");
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
        assert_eq!(inspect(&path).expect_err("exposed").to_string(), error.to_string());
    }

    #[test]
    fn what_is_not_an_own_regular_file_with_one_name_is_refused_and_left_as_it_is() {
        use std::os::unix::fs::symlink;
        let tmp = tempfile::tempdir().expect("tempdir");
        let canary = tmp.path().join("canary");
        replace(&canary, b"canary").expect("written");
        let path = |name: &str| tmp.path().join(name);
        symlink(&canary, path("link")).expect("linked");
        symlink(path("nowhere"), path("dangling")).expect("linked");
        fs::create_dir(path("directory")).expect("made");
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), rustix::fs::Mode::RWXU).expect("made");
        for name in ["link", "dangling", "directory", "pipe"] {
            assert!(read(&path(name)).is_err() && open_append(&path(name)).is_err(), "{name}");
        }
        assert!(!path("nowhere").exists());
        fs::hard_link(&canary, path("second name")).expect("linked");
        assert!(matches!(
            open_append(&path("second name")),
            Err(FileError::NotPlain { what: "a hard link", .. })
        ));
        assert_eq!(fs::read(&canary).expect("read"), b"canary");
        assert!(inspect(&path("link")).is_err() && inspect(&path("nowhere")).is_ok());
        if rustix::process::geteuid().is_root() {
            replace(&path("theirs"), b"x").expect("written");
            std::os::unix::fs::chown(path("theirs"), Some(1234), None).expect("chown");
            let owners = [read(&path("theirs")).map(drop), open_append(&path("theirs")).map(drop)]
                .map(|refused| match refused {
                    Err(FileError::Foreign { owner, .. }) => owner,
                    other => panic!("{other:?}"),
                });
            assert_eq!(owners, [1234; 2]);
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("key");
        create(&path, b"old").expect("written");
        assert!(create(&path, b"new").is_err());
        assert_eq!(*read(&path).expect("read"), b"old");
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
