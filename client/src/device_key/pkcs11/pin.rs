//! The PIN in a file, and which files have a PIN that a token has refused: those are not tried again
//! until they change, not even by another process.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use common::machine::files::{self, FileError};
use proto::typed::quoted;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::error::KeyError;

/// The file of the state directory that remembers refused PINs, not the PINs themselves.
const REFUSED: &str = "refused-pins.json";
/// The file beside it that is locked while that one is read or changed: all files with PINs share it.
const LOCK: &str = "refused-pins.lock";

/// A file with a PIN as it was when its PIN was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tried {
    file: String,
    inode: u64,
    len: u64,
    /// When it was changed last, Unix time.
    modified: i64,
    nanoseconds: i64,
}

/// A PIN and the file that it is from.
pub(super) struct FilePin {
    pub(super) pin: Zeroizing<String>,
    tried: Tried,
    memory: Memory,
    /// Locked until the token has judged the PIN. Otherwise another process could take a PIN that is
    /// being tried for one that was refused.
    _turn: File,
}

/// Reads the PIN in `file`, which nobody else may read.
///
/// # Errors
/// The file cannot be used, or its PIN was refused already.
pub(super) fn read(file: &str, state_dir: &Path, token: &str) -> Result<FilePin, KeyError> {
    let path = Path::new(file);
    let wrong = |e: FileError| {
        let hint = match e.is_not_found() {
            true => format!(
                "write the PIN into it, as its only line: `install -m 600 /dev/null {}` makes it so that only you can read it",
                quoted(file)
            ),
            false => e.hint_for("pin-source"),
        };
        KeyError::lasting(
            format!(
                "cannot read the PIN of the token {token}: {}",
                proto::failure::in_one_line(&e)
            ),
            hint,
        )
    };
    let turn = files::open_read(path).map_err(wrong)?;
    turn.lock().map_err(|e| wrong(FileError::io("lock", path)(e)))?;
    let bytes = files::read(path).map_err(wrong)?;
    let metadata = fs::metadata(path).map_err(|e| wrong(FileError::io("read", path)(e)))?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let pin = text.trim_end_matches(['\r', '\n']);
    if pin.is_empty() || pin.contains(['\n', '\0']) {
        return Err(KeyError::lasting(
            format!("`{file}` contains no PIN"),
            format!("write the PIN of the token {token} into it, as its only line"),
        ));
    }
    let tried = Tried {
        file: file.to_owned(),
        inode: metadata.ino(),
        len: metadata.len(),
        modified: metadata.mtime(),
        nanoseconds: metadata.mtime_nsec(),
    };
    let memory = Memory { refused: state_dir.join(REFUSED), lock: state_dir.join(LOCK) };
    if memory.has(&tried)? {
        return Err(KeyError::lasting(
            format!("the token {token} has refused the PIN in `{file}`, and it is not tried again"),
            format!(
                "write the right PIN into `{file}`; if it is right there: `touch {}`",
                quoted(file)
            ),
        ));
    }
    Ok(FilePin { pin: Zeroizing::new(pin.to_owned()), tried, memory, _turn: turn })
}

impl FilePin {
    /// Remembers that it was tried, in place of what the same file had before.
    pub(super) fn note(&self) -> Result<(), KeyError> {
        self.memory.change(|all| {
            all.retain(|tried| tried.file != self.tried.file);
            all.push(self.tried.clone());
        })
    }

    /// Forgets it: the token has taken it, or has not looked at it.
    pub(super) fn forget(&self) -> Result<(), KeyError> {
        // A file that was put in its place since may have been tried by another process.
        self.memory.change(|all| all.retain(|tried| *tried != self.tried))
    }
}

/// What the state directory remembers. Nothing else is locked while its lock is held.
struct Memory {
    refused: PathBuf,
    lock: PathBuf,
}

impl Memory {
    fn has(&self, tried: &Tried) -> Result<bool, KeyError> {
        let _lock = self.lock()?;
        Ok(self.all()?.contains(tried))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Tried>)) -> Result<(), KeyError> {
        let _lock = self.lock()?;
        let mut all = self.all()?;
        change(&mut all);
        if !all.is_empty() {
            let bytes = serde_json::to_vec_pretty(&all).map_err(|e| KeyError::unusable(&e))?;
            return files::replace(&self.refused, &bytes).map_err(|e| failed(&e));
        }
        match fs::remove_file(&self.refused) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(failed(&FileError::io("remove", &self.refused)(e)))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<File, KeyError> {
        let lock = files::open_append(&self.lock).map_err(|e| failed(&e))?;
        lock.lock().map_err(|e| failed(&FileError::io("lock", &self.lock)(e)))?;
        Ok(lock)
    }

    fn all(&self) -> Result<Vec<Tried>, KeyError> {
        let path = &self.refused;
        match files::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| failed(&FileError::damaged(path, e)))
            }
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            Err(e) => Err(failed(&e)),
        }
    }
}

/// Without this memory a wrong PIN could be tried again and again.
fn failed(error: &FileError) -> KeyError {
    KeyError::lasting(
        format!("cannot remember which PINs were refused: {}", proto::failure::in_one_line(error)),
        match error {
            FileError::Damaged { path, .. } => {
                format!("delete it: `rm {}`", quoted(&path.display().to_string()))
            }
            error => error.hint(),
        },
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_refused_pin_is_not_read_again_until_its_file_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
        let put = |file: &str, text: &str| {
            fs::write(file, text).expect("written");
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("changed");
        };
        let (a, b) = (file("a"), file("b"));
        put(&a, "1234\n");
        put(&b, "1234");
        let read = |file: &str| read(file, dir.path(), "`t`");
        for path in [&a, &b] {
            let kept = read(path).expect("a PIN");
            assert_eq!(kept.pin.as_str(), "1234");
            kept.note().expect("noted");
            drop(kept);
            assert!(read(path).is_err(), "it was tried");
        }
        put(&a, "12345\n");
        let kept = read(&a).expect("another PIN");
        kept.note().expect("noted");
        kept.forget().expect("forgotten");
        drop(kept);
        assert!(read(&a).is_ok() && read(&b).is_err());
        put(&b, "54321");
        let kept = read(&b).expect("another PIN");
        kept.note().expect("noted");
        kept.forget().expect("forgotten");
        assert!(!dir.path().join(REFUSED).exists());
        let remembered = fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(remembered, 3, "nothing else is left: both files and the lock");
    }

    #[test]
    fn two_files_at_once_do_not_lose_what_the_other_has_noted() {
        let dir = tempfile::tempdir().expect("a directory");
        let both = std::sync::Barrier::new(2);
        let turn = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "1234").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
            let kept = read(path.to_str().expect("a path"), dir.path(), "`t`").expect("a PIN");
            let mut all_kept = true;
            for _ in 0..100 {
                both.wait();
                kept.note().expect("noted");
                both.wait();
                let noted = kept.memory.has(&kept.tried).expect("read");
                both.wait();
                kept.forget().expect("forgotten");
                both.wait();
                let forgotten = !kept.memory.has(&kept.tried).expect("read");
                // It goes on, because the other thread would wait for it.
                all_kept &= noted && forgotten;
            }
            all_kept
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| turn("a"));
            assert!(turn("b") && other.join().expect("it ends"), "all were remembered");
        });
    }

    #[test]
    fn a_file_that_others_can_read_or_without_a_pin_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("it's a pin");
        let file = path.to_str().expect("a path");
        let read = || read(file, dir.path(), "`t`").map(|kept| kept.pin.as_str().to_owned());
        let cure = format!("`install -m 600 /dev/null {}`", quoted(file));
        assert!(cure.contains(r"it'\''s a pin'"), "the shell reads one word: {cure}");
        assert!(read().is_err_and(|why| why.hint().contains(&cure)));
        for (text, mode, good) in [
            ("1234\n", 0o600, true),
            ("1234\r\n", 0o600, true),
            ("1234\n", 0o640, false),
            ("", 0o600, false),
            ("\n", 0o600, false),
            ("1\n2\n", 0o600, false),
        ] {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            assert_eq!(read().ok().as_deref(), good.then_some("1234"), "{text:?} {mode:o}");
        }
    }
}
