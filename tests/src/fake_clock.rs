//! A wall clock that a test sets, for a real process: libfaketime gives it another one than the
//! machine's. The monotonic clock stays the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::skip;

/// The clock of the processes that were started with it.
pub struct FakeClock {
    /// How many seconds it is ahead, as the library reads it.
    file: PathBuf,
    library: String,
}

impl FakeClock {
    /// A clock that is right, with its file in `dir`; `None` if the test must be skipped, and says
    /// why.
    pub fn new(dir: &Path) -> Option<Self> {
        let Some(library) = library() else {
            skip::skip_test("there is no `faketime`");
            return None;
        };
        let clock = Self { file: dir.join("clock"), library };
        clock.set_ahead(0);
        Some(clock)
    }

    /// Sets it this many seconds ahead of the machine's clock, or behind it.
    ///
    /// # Panics
    /// If its file cannot be written.
    pub fn set_ahead(&self, seconds: i64) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}s\n")).expect("written");
        // The processes read it all the time.
        fs::rename(new, &self.file).expect("renamed");
    }

    /// Gives a process this clock.
    pub fn give(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            // Versions before 0.9.8 have this name for it.
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

/// Where the library is; `None` if it is not installed.
///
/// # Panics
/// If the program that knows it fails again and again.
fn library() -> Option<String> {
    for _ in 0..20 {
        let shown = std::process::Command::new("faketime")
            .args(["-m", "-f", "+0s", "sh", "-c", "printf %s \"$LD_PRELOAD\""])
            .output()
            .ok()?;
        // Processes that were killed leave files in /dev/shm with their process ids in their names. One
        // with the same id fails at them; the next one has another id.
        match String::from_utf8(shown.stdout) {
            Ok(library) if shown.status.success() && !library.is_empty() => return Some(library),
            _ => {}
        }
    }
    panic!("`faketime` does not say where its library is");
}
