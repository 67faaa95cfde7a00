//! A user without root's rights.

use std::{
    fs,
    os::unix::fs::{chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{process::Ended, skip, state_files::chmod};

/// A user without root's rights: this user, or `nobody` if this user is root.
pub struct Ordinary {
    /// Whether this user is root.
    pub as_root: bool,
    dir: tempfile::TempDir,
}

impl Ordinary {
    /// The uid of `nobody`.
    pub const NOBODY: u32 = 65534;

    /// A user who can run the programs in the file `this`. Skips the test if there can't be one.
    ///
    /// # Panics
    /// If the programs can't be stored.
    pub fn new(this: &str) -> Option<Self> {
        let as_root = fs::read_to_string("/proc/self/status").ok()?.lines().any(|line| {
            line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
        });
        let dir = tempfile::tempdir().expect("a directory");
        chmod(dir.path(), 0o711);
        for name in ["adit", "aditd"] {
            symlink(this, dir.path().join(name)).expect("a link");
        }
        let ordinary = Self { as_root, dir };
        let runs = ordinary.run("aditd", &["--version"]);
        if runs.is_none_or(|ended| ended.code != Some(0)) {
            skip::skip_test("root can't give up its rights here with `setpriv`");
            return None;
        }
        Some(ordinary)
    }

    /// Their uid.
    pub fn uid(&self) -> u32 {
        if self.as_root { Self::NOBODY } else { nix::unistd::getuid().as_raw() }
    }

    /// The name of their group.
    ///
    /// # Panics
    /// If it has none.
    pub fn group(&self) -> String {
        let gid = if self.as_root { Self::NOBODY } else { nix::unistd::getgid().as_raw() };
        let group = nix::unistd::Group::from_gid(gid.into()).expect("looked up");
        group.expect("a group").name
    }

    /// A directory that belongs to them.
    pub fn home(&self, name: &str) -> PathBuf {
        let home = self.dir.path().join(name);
        fs::create_dir(&home).expect("a directory");
        chmod(&home, 0o700);
        self.give(&home);
        home
    }

    /// The state directory of a device that belongs to them, with a copy of this identity in it.
    ///
    /// # Panics
    /// If it can't be created.
    pub fn device(&self, identity: &Path) -> PathBuf {
        let home = self.home("device");
        let place = home.join("servers/default");
        fs::create_dir_all(&place).expect("a directory");
        fs::copy(identity, place.join("identity.json")).expect("copied");
        for path in [home.join("servers"), place.clone(), place.join("identity.json")] {
            chmod(&path, if path.is_dir() { 0o700 } else { 0o600 });
            self.give(&path);
        }
        home
    }

    /// Makes them the owner of a file or directory.
    pub fn give(&self, path: &Path) {
        if self.as_root {
            chown(path, Some(Self::NOBODY), Some(Self::NOBODY)).expect("chown");
        }
    }

    /// Runs a command to its end; `None` if it can't be run.
    pub fn run(&self, program: &str, args: &[&str]) -> Option<Ended> {
        self.command(program, args).stdin(Stdio::null()).output().ok().map(Ended::from)
    }

    /// A command of one of the programs.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let program = self.dir.path().join(program);
        let mut command =
            if self.as_root { as_user(Self::NOBODY, &program) } else { Command::new(&program) };
        command.args(args).env("NO_COLOR", "1").env_remove("JOURNAL_STREAM");
        command
    }
}

/// A program that root runs as another user.
pub fn as_user(uid: u32, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args(["--clear-groups", "--"])
        .arg(program);
    command
}
