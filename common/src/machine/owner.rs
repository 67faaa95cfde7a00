//! Gives up root's rights for those of a directory's owner before a file there is touched.
//!
//! The owner of a directory can replace any file in it with a link. A process with root's rights
//! would follow that link to any file of the machine. A process with the owner's rights can reach
//! only what the owner can reach anyway.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use nix::unistd::{Gid, Uid, User, initgroups, setgroups, setresgid, setresuid};

use crate::machine::{files::FileError, process};

const ROOT: u32 = 0;
const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o022;
/// The number that Linux follows.
const MOST_LINKS: usize = 40;

/// If this process has root's rights and `dir` belongs to another user, takes that user's rights
/// instead; this cannot be undone. If `dir` does not exist, the nearest existing directory above it
/// counts. Without root's rights this does nothing.
///
/// Call it before anything in `dir` is opened, made or removed.
///
/// # Errors
/// When `dir` cannot be looked at, when the rights cannot be given up, or when root keeps its
/// rights and another user could replace `dir` or a directory above it.
pub fn become_owner_of(dir: &Path) -> Result<(), FileError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // Remembers the invoking user for the audit log.
    process::uid();
    let dir = std::path::absolute(dir).map_err(FileError::io("read", dir))?;
    let (there, opened) = nearest(&dir)?;
    // The metadata of the opened directory, not of its path: another process may have replaced it.
    let metadata = opened.metadata().map_err(FileError::io("read", &there))?;
    if metadata.uid() == ROOT {
        return match replaceable(&there).map_err(FileError::io("read", &there))? {
            None => Ok(()),
            Some((by, owner)) => Err(FileError::Replaceable { path: dir, by, owner }),
        };
    }
    take_rights(metadata.uid(), metadata.gid())
        .map_err(FileError::io("act as the owner of", &there))
}

/// `dir`, or the nearest directory above it that is there.
fn nearest(dir: &Path) -> Result<(PathBuf, File), FileError> {
    for at in dir.ancestors() {
        match File::open(at) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return Ok((at.to_owned(), opened.map_err(FileError::io("read", at))?)),
        }
    }
    Err(FileError::io("read", dir)(io::ErrorKind::NotFound.into()))
}

fn take_rights(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The groups first: after the user has changed, they cannot be changed any more.
    set_groups(uid, gid)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    process::protect_memory();
    Ok(())
}

#[cfg(not(target_os = "macos"))]
fn set_groups(uid: Uid, gid: Gid) -> io::Result<()> {
    let name = User::from_uid(uid).ok().flatten();
    match name.and_then(|user| std::ffi::CString::new(user.name).ok()) {
        Some(name) => initgroups(&name, gid)?,
        None => setgroups(&[gid])?,
    }
    Ok(())
}

/// macOS looks up the groups of the user at each check.
#[cfg(target_os = "macos")]
fn set_groups(_: Uid, _: Gid) -> io::Result<()> {
    Ok(())
}

/// The first directory or link in `path` that a user other than root can replace, and its owner.
fn replaceable(path: &Path) -> io::Result<Option<(PathBuf, u32)>> {
    let unmapped = unmapped_owner();
    let is_safe = |file: &fs::Metadata| {
        let only_root_writes = file.mode() & OTHERS_WRITE == 0 || file.mode() & STICKY != 0;
        (file.uid() == ROOT || Some(file.uid()) == unmapped)
            && (file.is_symlink() || only_root_writes)
    };
    let found = walk(path, |at, file| match is_safe(file) {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break((at.to_owned(), file.uid())),
    });
    Ok(found?.break_value())
}

/// Looks at each directory and link on the way to `path`, which is absolute, and at what is there, in
/// that order. The text of a link counts: so a link in `/proc` is followed to the path that it shows.
/// Returns the path without links, or what `look` has broken off with.
///
/// # Errors
/// If a part is not there or cannot be looked at, or after 40 links.
pub fn walk<T>(
    path: &Path,
    mut look: impl FnMut(&Path, &fs::Metadata) -> ControlFlow<T>,
) -> io::Result<ControlFlow<T, PathBuf>> {
    let mut at = PathBuf::from("/");
    let mut ahead = parts_reversed(path);
    let mut links = 0;
    let mut metadata = fs::symlink_metadata(&at)?;
    loop {
        if let ControlFlow::Break(found) = look(&at, &metadata) {
            return Ok(ControlFlow::Break(found));
        }
        if metadata.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::other("too many symbolic links"));
            }
            let target = fs::read_link(&at)?;
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            ahead.extend(parts_reversed(&target));
        }
        let Some(next) = ahead.pop() else { return Ok(ControlFlow::Continue(at)) };
        if next == ".." {
            at.pop()
        } else {
            at.push(next);
            true
        };
        metadata = fs::symlink_metadata(&at)?;
    }
}

fn parts_reversed(path: &Path) -> Vec<OsString> {
    let part = |part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    let mut parts: Vec<_> = path.components().filter_map(part).collect();
    parts.reverse();
    parts
}

/// The uid that a user namespace shows for files whose owner is not mapped into it, if this process
/// is in one. In a rootless container `/` is such a file, and nobody in the container can change
/// it.
pub fn unmapped_owner() -> Option<u32> {
    const OVERFLOW: u32 = 65_534;
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    (!whole).then_some(OVERFLOW)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn what_another_user_could_replace_on_the_way_is_found() {
        if !rustix::process::geteuid().is_root() || unmapped_owner().is_some() {
            return;
        }
        let tmp = tempfile::tempdir().expect("tempdir");
        let dir = |name: &str, owner: u32, mode: u32| {
            let path = tmp.path().join(name);
            fs::create_dir_all(&path).expect("made");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            chown(&path, Some(owner), Some(owner)).expect("chown");
            path
        };
        let (safe, theirs, open, sticky) = (
            dir("safe", 0, 0o755),
            dir("theirs", 1234, 0o755),
            dir("open", 0, 0o777),
            dir("sticky", 0, 0o1777),
        );
        for parent in [&safe, &theirs, &open, &sticky] {
            fs::create_dir(parent.join("state")).expect("made");
        }
        let link = |path: PathBuf, to: &Path, owner: u32| {
            symlink(to, &path).expect("linked");
            std::os::unix::fs::lchown(&path, Some(owner), None).expect("chown");
            path
        };
        let good_link = link(sticky.join("good"), &safe, 0);
        let their_link = link(sticky.join("bad"), &safe, 1234);
        let into_theirs = link(safe.join("into"), &theirs, 0);
        let relative = link(safe.join("relative"), Path::new("../sticky/bad"), 0);
        let circle = link(safe.join("circle"), Path::new("circle"), 0);
        for (path, wanted) in [
            (safe.join("state"), None),
            (sticky.join("state"), None),
            (good_link.join("state"), None),
            (theirs.join("state"), Some(&theirs)),
            (open.join("state"), Some(&open)),
            (their_link.join("state"), Some(&their_link)),
            (into_theirs.join("state"), Some(&theirs)),
            (relative.join("state"), Some(&their_link)),
        ] {
            let found = replaceable(&path).expect("looked at").map(|(by, _)| by);
            assert_eq!(found.as_ref(), wanted, "{}", path.display());
        }
        assert!(replaceable(&circle).is_err());
    }
}
