//! Which networks drop packets with ECN marks: found out once, and kept across restarts.

mod networks;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use common::machine::{
    files::{self, FileError},
    process::unix_now,
};

use self::networks::Networks;

/// The file in a profile's directory.
const FILE: &str = "unmarked.json";

/// What is known. All connections of this program share it.
static KNOWN: Mutex<Known> = Mutex::new(Known { networks: Networks::NONE, file: None });

struct Known {
    networks: Networks,
    /// Where it is kept.
    file: Option<PathBuf>,
}

/// Reads what was found out earlier, and keeps there what is found out from now on. `dir` is the
/// directory of a profile. A file that cannot be used is left as it is.
pub(crate) fn keep_in(dir: &Path) {
    let path = dir.join(FILE);
    match read(&path) {
        Ok(networks) => *lock() = Known { networks, file: Some(path) },
        Err(e) => tracing::warn!(
            "{e}: which networks drop packets with ECN marks is forgotten when adit ends"
        ),
    }
}

/// Whether it is certain that packets with ECN marks are dropped on the network where this device has
/// the address `source`.
pub(crate) fn drops_marks(source: IpAddr) -> bool {
    lock().networks.contains(source, unix_now())
}

/// A dial from the address `source` had no answer to packets with ECN marks, and an answer to one
/// without. Returns whether it is certain now that this network drops them, and was not before: one lost
/// packet looks the same, so it takes several dials.
pub(crate) fn suspect(source: IpAddr) -> bool {
    let (mut known, now) = (lock(), unix_now());
    if known.networks.contains(source, now) {
        return false;
    }
    known.networks.suspect(source, now);
    known.keep();
    known.networks.contains(source, now)
}

/// A packet with an ECN mark was answered on the network where this device has the address `source`.
pub(crate) fn clear(source: IpAddr) {
    let mut known = lock();
    if known.networks.clear(source) {
        known.keep();
    }
}

impl Known {
    /// Writes it, if there is a place for it.
    fn keep(&self) {
        if let Some(path) = &self.file
            && let Err(e) = write(path, &self.networks)
        {
            tracing::debug!("{e}");
        }
    }
}

fn lock() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(path: &Path) -> Result<Networks, FileError> {
    match files::read(path) {
        Err(e) if e.is_not_found() => Ok(Networks::NONE),
        Err(e) => Err(e),
        Ok(text) => serde_json::from_slice(&text).map_err(|e| FileError::damaged(path, e)),
    }
}

fn write(path: &Path, networks: &Networks) -> Result<(), FileError> {
    let text = serde_json::to_vec(networks).map_err(|e| FileError::damaged(path, e))?;
    files::replace(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_a_damaged_file_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        let (here, there) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        assert!(!read(&path).expect("none").contains(here, 10));
        let mut networks = Networks::NONE;
        for _ in 0..3 {
            networks.suspect(here, 10);
        }
        write(&path, &networks).expect("written");
        let again = read(&path).expect("read");
        assert!(again.contains(here, 10) && !again.contains(there, 10));
        std::fs::write(&path, "{").expect("damaged");
        assert!(read(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("as it was"), b"{");
    }
}
