//! A disk that a test fills and frees.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::skip;

/// A disk of a few pages. Needs root.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    const PAGE: u64 = 4096;

    /// A disk of this size, where disks can be mounted; elsewhere it says that a test is skipped.
    ///
    /// # Panics
    /// If there is no place for it.
    pub fn mount(size: &str) -> Option<Self> {
        let disk = Self { dir: tempfile::tempdir().expect("a directory") };
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"])
            .arg(disk.dir.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            skip::skip_test("mounting a small disk needs root");
            return None;
        }
        Some(disk)
    }

    /// A path on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Leaves room for so many pages.
    ///
    /// # Panics
    /// If it has no more than that.
    pub fn fill_but(&self, pages: u64) {
        self.free();
        let mut filler = fs::File::create(self.path("filler")).expect("created");
        let mut len = 0;
        while filler.write_all(&[0; Self::PAGE as usize]).is_ok() {
            len += Self::PAGE;
        }
        assert!(len >= pages * Self::PAGE, "the disk is too small for the test");
        filler.set_len(len - pages * Self::PAGE).expect("cut");
    }

    /// Frees all that was filled.
    ///
    /// # Panics
    /// If it can't.
    pub fn free(&self) {
        match fs::remove_file(self.path("filler")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{e}"),
            _ => {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
    }
}
