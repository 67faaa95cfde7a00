//! A small disk that a test can fill and free.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::skip;

/// A tmpfs of a few pages. Needs root.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    const PAGE: u64 = 4096;

    /// Mounts a disk of this size. Skips the test if this machine can't mount.
    ///
    /// # Panics
    /// If it can't be mounted.
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fills the disk but for this many pages.
    ///
    /// # Panics
    /// If fewer are free.
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

    /// Frees the filled pages.
    ///
    /// # Panics
    /// If that fails.
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
