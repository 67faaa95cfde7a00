//! A Unix socket at which the members of one group enroll devices without access to the server's
//! state. The running server does it for them. The kernel decides who is a member, by the socket's
//! group and mode.

pub(crate) mod elsewhere;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{
    machine::{
        files::{self, FileError},
        report::{Exit, Failure},
    },
    transport::{accept::accept, frame},
};
use nix::unistd::Group;
use proto::{device_key::KeyStorage, identity::Name, wire::Enrolled};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tracing::info;

use crate::{
    running::Server,
    session::enrollment::{self, Claim, EnrollingKey},
    state::register::User,
};

/// How long the request may take, and then how long its answer may take to be read.
const WITHIN: Duration = Duration::from_secs(10);
/// How long a member waits for an answer: the register may be locked, and `authorize` may be slow.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How the directory is called in which a socket is made, before the number of the process.
const HALL: &str = ".adit-";
/// How many requests may be served at once.
const MOST: usize = 16;

/// The request of a member.
#[derive(Debug, Serialize, Deserialize)]
struct SocketRequest {
    name: Name,
    /// A PKCS #10 request (RFC 2986) in DER.
    csr: Vec<u8>,
    /// How the device keeps its key, as it says.
    #[serde(default)]
    key_storage: KeyStorage,
}

/// A socket for the members of a group.
pub(crate) struct GroupSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The socket's file: device and inode.
    file: Option<(u64, u64)>,
}

impl GroupSocket {
    /// Listens at `path` for the members of `group`.
    pub(crate) fn bind(path: &Path, group: &str) -> Result<Self, Failure> {
        let named = |e: FileError| e.named_by("`enroll_socket` in the configuration");
        let found = Group::from_name(group).ok().flatten().ok_or_else(|| {
            Failure::new(format!("there is no group `{group}` on this machine"))
                .hint(format!("make it with `sudo groupadd --system {group}`, or name another with --enroll-group"))
                .exit(Exit::Usage)
        })?;
        if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
            fs::DirBuilder::new()
                .mode(0o755)
                .create(dir)
                .map_err(FileError::io("create", dir))
                .map_err(|e| named(e).hint(in_a_unit(path, group)))?;
        }
        if let Some(dir) = path.parent() {
            files::refuse_shared_dir(dir).map_err(named)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(named(FileError::io("remove", path)(e)));
            }
            _ => {}
        }
        let hall = Hall::beside(path).map_err(named)?;
        // The kernel lists the socket by the path at which it was bound: `elsewhere` finds it by that.
        let made = hall.0.join(path.file_name().unwrap_or_default());
        let listener =
            UnixListener::bind(&made).map_err(FileError::io("listen on", path)).map_err(named)?;
        chown(&made, None, Some(found.gid.as_raw())).map_err(|e| {
            Failure::from_error(FileError::io("give to the group", path)(e))
                .hint(format!("only root, or a member of it, can give a socket to `{group}`"))
                .hint(in_a_unit(path, group))
        })?;
        fs::set_permissions(&made, fs::Permissions::from_mode(0o660))
            .map_err(FileError::io("set the mode of", path))
            .map_err(named)?;
        fs::rename(&made, path).map_err(FileError::io("make", path)).map_err(named)?;
        let socket = Self { listener, file: file_at(path), path: path.to_owned() };
        info!("members of the group {group} may enroll devices, at {}", path.display());
        Ok(socket)
    }

    /// Enrolls devices for members, for as long as it is polled.
    pub(crate) async fn serve(self, server: Arc<Server>) {
        let mut asked = JoinSet::new();
        loop {
            tokio::select! {
                (stream, _) = accept("the enroll group", || self.listener.accept()), if asked.len() < MOST => {
                    asked.spawn(answer(stream, server.clone()));
                }
                Some(_) = asked.join_next() => {}
            }
        }
    }
}

/// What the unit needs if the server is a service of systemd: a directory that it may write, and the
/// group.
fn in_a_unit(path: &Path, group: &str) -> String {
    let below_run = path.parent().and_then(|dir| dir.strip_prefix("/run").ok());
    let dir = below_run.filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.map(|dir| format!("RuntimeDirectory={}\\n", dir.display())).unwrap_or_default();
    format!(
        "if aditd is a service: `printf '[Service]\\n{dir}SupplementaryGroups={group}\\n' | sudo install -D -m 644 /dev/stdin \
         /etc/systemd/system/aditd.service.d/enroll.conf && sudo systemctl daemon-reload && sudo systemctl restart aditd`"
    )
}

/// A directory for this user only, in which a socket gets its group and mode before others can
/// reach it.
struct Hall(PathBuf);

impl Hall {
    fn beside(path: &Path) -> Result<Self, FileError> {
        let hall = Self(path.with_file_name(format!("{HALL}{}", std::process::id())));
        // A process that was killed at this point has left its directory, and process ids are
        // reused.
        let _ = fs::remove_dir_all(&hall.0);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&hall.0)
            .map_err(FileError::io("create", &hall.0))?;
        Ok(hall)
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for GroupSocket {
    fn drop(&mut self) {
        // A process that has replaced this one has its own socket there.
        if file_at(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

async fn answer(mut stream: UnixStream, server: Arc<Server>) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    let SocketRequest { name, csr, key_storage } =
        tokio::time::timeout(WITHIN, frame::read(&mut stream)).await??;
    info!("user {user} asks to enroll {name}");
    // Not cancelled: a change of the register must be noted in the audit log.
    let user = User { uid: user, is_owner: false };
    let key = EnrollingKey { csr: &csr, storage: key_storage };
    let answer = enrollment::enroll(&server, Claim::User { user, name }, key).await;
    let answer = answer.map_err(Failure::from);
    tokio::time::timeout(WITHIN, frame::write(&mut stream, &answer)).await?
}

/// The group for which the socket at `path` is, if this user is not in it.
pub(crate) async fn not_a_member(path: &Path) -> Option<String> {
    let denied = UnixStream::connect(path).await.err()?.kind() == io::ErrorKind::PermissionDenied;
    let gid = fs::metadata(path).ok().filter(|_| denied)?.gid();
    Some(Group::from_gid(gid.into()).ok().flatten().map_or_else(|| gid.to_string(), |g| g.name))
}

/// Asks the server of this machine to enroll a device: one of the user `of`, if that is given. `None`
/// if there is no such server that accepts this user.
pub(crate) async fn ask(
    path: &Path,
    of: Option<u32>,
    name: &Name,
    csr: &[u8],
    key_storage: KeyStorage,
) -> Option<Result<Enrolled, Failure>> {
    let mut stream = UnixStream::connect(path).await.ok()?;
    // Of this connection: another one to the same path may reach another user's socket.
    let is_of = |of| stream.peer_cred().is_ok_and(|peer| peer.uid() == of);
    if !of.is_none_or(is_of) {
        return None;
    }
    let exchange = async {
        let request = SocketRequest { name: name.clone(), csr: csr.to_owned(), key_storage };
        frame::write(&mut stream, &request).await?;
        frame::read::<Result<Enrolled, Failure>>(&mut stream).await
    };
    let failed = |e: io::Error| Failure::new("the server did not enroll the device").source(e);
    Some(match tokio::time::timeout(ANSWER_WITHIN, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => Err(failed(e)),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_group() -> String {
        let group = Group::from_gid(nix::unistd::getegid()).expect("looked up").expect("a group");
        group.name
    }

    #[tokio::test]
    async fn the_socket_is_for_the_group_and_is_removed_with_its_owner() {
        use std::os::unix::fs::MetadataExt;
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("adit/enroll.sock");
        let socket =
            GroupSocket::bind(&path, &own_group()).map_err(|e| e.to_string()).expect("bound");
        let there = fs::metadata(&path).expect("there");
        assert_eq!((there.mode() & 0o777, there.gid()), (0o660, nix::unistd::getegid().as_raw()));
        drop(socket);
        let name = "laptop".parse().expect("a name");
        assert!(!path.exists() && ask(&path, None, &name, b"", KeyStorage::File).await.is_none());
    }

    #[tokio::test]
    async fn a_server_of_another_user_than_the_expected_one_gets_no_request() {
        use tokio::io::AsyncReadExt;
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("enroll.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        let name: Name = "laptop".parse().expect("a name");
        let own = nix::unistd::geteuid().as_raw();
        for (of, is_asked) in [(Some(own), true), (Some(own + 1), false), (None, true)] {
            let server = async {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                stream.read(&mut [0]).await.expect("read") > 0
            };
            let (answer, was_asked) =
                tokio::join!(ask(&path, of, &name, b"", KeyStorage::File), server);
            // This server ends the connection without an answer.
            assert_eq!((answer.is_some(), was_asked), (is_asked, is_asked), "{of:?}");
        }
    }

    #[tokio::test]
    async fn the_error_for_a_missing_group_has_the_command_that_makes_it() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let refused = GroupSocket::bind(&tmp.path().join("s"), "no-such-group")
            .err()
            .expect("refused")
            .to_string();
        assert!(refused.contains("groupadd --system no-such-group"), "{refused}");
    }

    #[test]
    fn what_a_unit_needs_is_one_command() {
        for (path, needs) in [
            (
                "/run/adit/enroll.sock",
                "'[Service]\\nRuntimeDirectory=adit\\nSupplementaryGroups=gpu\\n'",
            ),
            ("/run/enroll.sock", "'[Service]\\nSupplementaryGroups=gpu\\n'"),
            ("/srv/enroll.sock", "'[Service]\\nSupplementaryGroups=gpu\\n'"),
        ] {
            let cure = in_a_unit(Path::new(path), "gpu");
            assert!(cure.contains(needs), "{cure}");
        }
    }
}
