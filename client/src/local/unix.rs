//! A Unix socket for applications: `--listen unix:/PATH`. The mode of its file decides who may use it:
//! the user who runs adit, a group, or with `--any-user` everybody.
//!
//! What connects there is joined to a TCP connection of this program to itself, which is then carried
//! like any other. One thing is lost on the way: a Unix socket cannot be reset, so an answer that is
//! cut looks ended to an application that knows its end by nothing but the end of the connection
//! (HTTP/1.0 without a length).

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use common::{
    machine::report::{Exit, Failure},
    transport::{accept, unix},
};
use nix::unistd::Group;
use proto::identity::Name;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug};

use super::{front::Front, listener::ListenAddr};

/// An open socket. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct UnixEntrance {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of its file.
    file: Option<(u64, u64)>,
}

/// Listens at each Unix socket among these addresses. Must be called within a runtime.
///
/// # Errors
/// If something else is at the path, another process listens there, or the file cannot be made.
pub(crate) fn bind_all(
    listen: &[ListenAddr],
    any_user: bool,
) -> Result<Vec<UnixEntrance>, Failure> {
    let sockets = listen.iter().filter_map(|listen| match listen {
        ListenAddr::Unix { path, group } => Some((path, group.as_ref())),
        _ => None,
    });
    sockets.map(|(path, group)| UnixEntrance::bind(path, group, any_user)).collect()
}

impl UnixEntrance {
    fn bind(path: &Path, group: Option<&Name>, any_user: bool) -> Result<Self, Failure> {
        let shown = path.display();
        let failed =
            |e: io::Error| Failure::new(format!("cannot listen on unix:{shown}")).source(e);
        refuse_taken(path)?;
        let group = group.map(|group| gid(path, group)).transpose()?;
        let mode = match (any_user, &group) {
            (true, _) => 0o666,
            (false, Some(_)) => 0o660,
            (false, None) => 0o600,
        };
        let hall = Hall::beside(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => failed(e).hint("make its directory first"),
            io::ErrorKind::PermissionDenied => {
                failed(e).hint("name a directory that you can write")
            }
            _ => failed(e),
        })?;
        let made = hall.0.join("s");
        let listener = UnixListener::bind(&made).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput => {
                failed(e).hint("name a shorter path: it may have some 90 bytes")
            }
            _ => failed(e),
        })?;
        if let Some((gid, name)) = group {
            chown(&made, None, Some(gid)).map_err(|e| {
                failed(e)
                    .hint(format!("only root, or a member of `{name}`, can give it to that group"))
            })?;
        }
        fs::set_permissions(&made, fs::Permissions::from_mode(mode)).map_err(failed)?;
        fs::rename(&made, path).map_err(failed)?;
        Ok(Self { listener, file: file_at(path), path: path.to_owned() })
    }

    /// How people write it.
    pub(crate) fn shown(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// Accepts connections until `front.stop` is cancelled. Each is a task in `connections`.
    pub(crate) async fn accept(self, front: Front, connections: TaskTracker) {
        loop {
            let (stream, _) = tokio::select! {
                taken = accept::accept("applications", || self.listener.accept()) => taken,
                () = front.stop.cancelled() => return,
            };
            let front = front.clone();
            connections.spawn(async move { carry(stream, &front).await }.in_current_span());
        }
    }
}

async fn carry(stream: UnixStream, front: &Front) {
    let (near, far) = match unix::pair().await {
        Ok(pair) => pair,
        Err(e) => return debug!("no connection of this program to itself: {e}"),
    };
    tokio::join!(front.carry(far), unix::join_to_application(stream, near));
}

/// Checks that a socket may be made there: nothing is there, or a socket that nobody listens on.
fn refuse_taken(path: &Path) -> Result<(), Failure> {
    let failure = Failure::new(format!("cannot listen on unix:{}", path.display()));
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failure.source(e)),
        Ok(file) if !file.file_type().is_socket() => Err(failure
            .source("there is something there that is no socket")
            .hint("name another path, or remove it yourself")
            .exit(Exit::Usage)),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(e) => Err(failure.source(e)),
            Ok(_) => Err(failure
                .source("another process listens there")
                .hint("name another path, or stop that process")),
        },
    }
}

fn gid(path: &Path, group: &Name) -> Result<(u32, Name), Failure> {
    match Group::from_name(group.as_str()).ok().flatten() {
        Some(found) => Ok((found.gid.as_raw(), group.clone())),
        None => Err(Failure::new(format!("there is no group `{group}` on this computer"))
            .hint(format!(
                "name one that there is (`getent group`), or none: `--listen unix:{}`",
                path.display()
            ))
            .exit(Exit::Usage)),
    }
}

impl Drop for UnixEntrance {
    fn drop(&mut self) {
        // Another process may have its own socket there by now.
        if file_at(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// A directory for this user only, in which a socket gets its group and mode before others can reach
/// it.
struct Hall(PathBuf);

impl Hall {
    fn beside(path: &Path) -> io::Result<Self> {
        let hall = Self(path.with_file_name(format!(".adit-{}", std::process::id())));
        // A process that was killed at this point has left its directory, and process ids are reused.
        let _ = fs::remove_dir_all(&hall.0);
        fs::DirBuilder::new().mode(0o700).create(&hall.0)?;
        Ok(hall)
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
