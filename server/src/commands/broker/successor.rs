//! Which programs may replace a server: those that neither the server nor another user can have made
//! or changed.

use std::{
    fs::Metadata,
    io,
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use common::machine::owner;
use rustix::{
    fs::{Access, access},
    process::{getegid, geteuid},
};

use crate::outside::Allowed;

const ROOT: u32 = 0;
const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;

/// Whose programs are run.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    /// The user and the group of this process.
    uid: u32,
    gid: u32,
    /// The users who may own a program and what is on the way to it.
    owners: Vec<u32>,
}

/// A program, or what is on the way to it.
#[derive(Debug, Clone, Copy)]
struct Part {
    kind: Kind,
    uid: u32,
    gid: u32,
    mode: u32,
    /// Whether this process may write it.
    is_writable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dir,
    Link,
    File,
}

impl Trust {
    /// Root, this user, and whoever owns the program that runs here already.
    pub(super) fn of_this_process() -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let own = std::fs::metadata("/proc/self/exe").ok().map(|program| program.uid());
        let owners = [ROOT, uid].into_iter().chain(own).chain(owner::unmapped_owner());
        Self { uid, gid, owners: owners.collect() }
    }

    /// The path without links of a program that may replace the server: it is called as the server is,
    /// and neither the server nor another user can have made it or the way to it. Only what the server
    /// cannot write is on that way, so it leads to the same program a moment later.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn check(&self, program: &Path, allowed: &Allowed) -> io::Result<PathBuf> {
        let denied = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
        if program.file_name() != allowed.program.file_name() {
            return Err(denied("a program of another name does not replace aditd".to_owned()));
        }
        let inode = |dir: &Metadata| (dir.dev(), dir.ino());
        let writable: Vec<_> = allowed
            .writable
            .iter()
            .filter_map(|dir| Some(inode(&std::fs::metadata(dir).ok()?)))
            .collect();
        let way = owner::walk(&std::path::absolute(program)?, |at, file| {
            let why = if at.starts_with("/proc") {
                // Links there lead to what a process has open, for example to its directory.
                Some("`/proc` is no place of programs")
            } else if writable.contains(&inode(file)) {
                Some("aditd can write there")
            } else {
                self.doubt(Part::of(at, file), allowed.is_limited)
            };
            match why {
                Some(why) => ControlFlow::Break(format!("`{}`: {why}", at.display())),
                None => ControlFlow::Continue(()),
            }
        });
        match way? {
            ControlFlow::Break(why) => Err(denied(format!(
                "{why}; put the program elsewhere, for example in /usr/local/bin"
            ))),
            ControlFlow::Continue(real) => Ok(real),
        }
    }

    /// Why this is not trusted. `is_limited`: the server writes only where its settings say.
    fn doubt(&self, part: Part, is_limited: bool) -> Option<&'static str> {
        if !self.owners.contains(&part.uid) {
            return Some("it belongs to another user");
        }
        if part.kind == Kind::Link {
            // Whoever may write its directory may replace it.
            return None;
        }
        let is_dir = part.kind == Kind::Dir;
        let by_all = part.mode & ALL_WRITE != 0 && !(is_dir && part.mode & STICKY != 0);
        // Some systems let a group of root's choice write to `/usr/local/bin`.
        let is_known_group = [ROOT, self.gid].contains(&part.gid) || is_dir && part.uid == ROOT;
        if by_all || part.mode & GROUP_WRITES != 0 && !is_known_group {
            return Some("other users can write there");
        }
        // No path is safe from root without limits: to refuse all of them would protect nothing.
        if !is_limited && self.uid != ROOT && (part.uid == self.uid || part.is_writable) {
            return Some(
                "aditd can write there, as this kernel does not limit the files that it opens",
            );
        }
        None
    }
}

impl Part {
    fn of(at: &Path, file: &Metadata) -> Self {
        let kind = match (file.is_dir(), file.is_symlink()) {
            (true, _) => Kind::Dir,
            (_, true) => Kind::Link,
            _ => Kind::File,
        };
        let is_writable = access(at, Access::WRITE_OK).is_ok();
        Self { kind, uid: file.uid(), gid: file.gid(), mode: file.mode(), is_writable }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, chown, symlink},
    };

    use super::*;

    #[test]
    fn only_a_program_that_the_server_cannot_have_made_replaces_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "new", "state", "open", "theirs"] {
            fs::create_dir(at(name)).expect("made");
            fs::write(at(name).join("aditd"), "").expect("written");
        }
        fs::write(at("bin/sh"), "").expect("written");
        symlink(at("state/aditd"), at("new/link")).expect("linked");
        fs::create_dir(at("to-state")).expect("made");
        symlink(at("state/aditd"), at("to-state/aditd")).expect("linked");
        symlink(at("state"), at("way")).expect("linked");
        symlink(at("bin/aditd"), at("state/link")).expect("linked");
        fs::create_dir(at("state/below")).expect("made");
        symlink(at("bin/sh"), at("state/below/aditd")).expect("linked");
        // The server can switch this link at any moment.
        symlink(at("bin"), at("state/switched")).expect("linked");
        fs::create_dir(at("links")).expect("made");
        symlink("../bin/aditd", at("links/aditd")).expect("linked");
        fs::set_permissions(at("open"), Permissions::from_mode(0o777)).expect("set");
        let has_other_users = geteuid().is_root() && owner::unmapped_owner().is_none();
        if has_other_users {
            chown(at("theirs/aditd"), Some(1234), Some(1234)).expect("changed");
        }
        let allowed = Allowed {
            program: at("bin/aditd"),
            args: Vec::new(),
            writable: vec![at("state")],
            is_limited: true,
            sockets: Vec::new(),
        };
        let by_proc =
            format!("/proc/{}/root{}/bin/aditd", std::process::id(), dir.path().display());
        let (bin, new) = (Some("bin/aditd"), Some("new/aditd"));
        for (program, real) in [
            ("bin/aditd", bin),
            ("new/aditd", new),
            ("links/aditd", bin),
            ("bin/sh", None),
            ("state/aditd", None),
            ("state/below/aditd", None),
            ("state/switched/aditd", None),
            ("to-state/aditd", None),
            ("way/aditd", None),
            ("bin/../state/aditd", None),
            ("nowhere/aditd", None),
            ("open/aditd", None),
            ("theirs/aditd", if has_other_users { None } else { Some("theirs/aditd") }),
            (&by_proc, None),
        ] {
            let found = Trust::of_this_process().check(&at(program), &allowed).ok();
            let real = real.map(|real| fs::canonicalize(at(real)).expect("it is there"));
            assert_eq!(found, real, "{program}");
        }
    }

    #[test]
    fn what_others_can_write_is_not_trusted_nor_what_an_unlimited_server_can() {
        let trust = Trust { uid: 1000, gid: 1000, owners: vec![ROOT, 1000, 1001] };
        let root = Trust { uid: ROOT, gid: ROOT, owners: vec![ROOT] };
        let part = |kind, uid, gid, mode| Part { kind, uid, gid, mode, is_writable: uid == 1000 };
        let dir = |uid, gid, mode| part(Kind::Dir, uid, gid, mode);
        let file = |uid, gid, mode| part(Kind::File, uid, gid, mode);
        for (who, part, limited, unlimited) in [
            (&trust, file(ROOT, ROOT, 0o755), true, true),
            (&trust, dir(ROOT, ROOT, 0o755), true, true),
            // As `/tmp`, and as `/usr/local/bin` of Debian.
            (&trust, dir(ROOT, ROOT, 0o1777), true, true),
            (&trust, dir(ROOT, 50, 0o2775), true, true),
            (&trust, file(ROOT, 50, 0o775), false, false),
            (&trust, dir(ROOT, ROOT, 0o777), false, false),
            (&trust, file(ROOT, ROOT, 0o1757), false, false),
            (&trust, file(1000, 1000, 0o775), true, false),
            (&trust, dir(1000, 1000, 0o775), true, false),
            (&trust, dir(1000, 100, 0o775), false, false),
            (&trust, Part { is_writable: true, ..dir(ROOT, ROOT, 0o755) }, true, false),
            // The owner of the program that runs.
            (&trust, file(1001, 1001, 0o755), true, true),
            (&trust, file(1002, 1002, 0o755), false, false),
            (&trust, part(Kind::Link, 1002, 1002, 0o777), false, false),
            (&trust, part(Kind::Link, ROOT, ROOT, 0o777), true, true),
            (&root, Part { is_writable: true, ..file(ROOT, ROOT, 0o755) }, true, true),
        ] {
            let trusted = [true, false].map(|is_limited| who.doubt(part, is_limited).is_none());
            assert_eq!(trusted, [limited, unlimited], "{part:?}");
        }
    }
}
