//! Where the running servers of this machine let a group enroll devices, if it is not where this
//! user's configuration says. Linux tells everybody where Unix sockets were bound.

use std::path::{Path, PathBuf};

use common::machine::process;
use tokio::net::UnixStream;

use super::HALL;

/// Where Linux lists the Unix sockets of this machine: see proc_net(5).
const LIST: &str = "/proc/net/unix";
/// The flag of a socket that listens (`__SO_ACCEPTCON`).
const LISTENS: u32 = 0x1_0000;
pub(crate) const ROOT: u32 = 0;
/// At most so many are looked at.
const MOST: usize = 16;

/// A socket to which this user may connect.
pub(crate) struct Elsewhere {
    pub(crate) path: PathBuf,
    /// The user who listened there when it was looked at, as the kernel says. Another one may since.
    pub(crate) uid: u32,
}

/// The sockets other than `known` to which this user may connect. None for root, who may connect to
/// all of them, and for whom the state decides.
pub(crate) async fn find(known: &Path) -> Vec<Elsewhere> {
    if process::uid() == ROOT {
        return Vec::new();
    }
    // A path may have any bytes.
    let list = tokio::fs::read(LIST).await.unwrap_or_default();
    let mut found = Vec::new();
    for path in bound(&String::from_utf8_lossy(&list)).filter(|path| path != known).take(MOST) {
        let Ok(stream) = UnixStream::connect(&path).await else { continue };
        if let Ok(peer) = stream.peer_cred() {
            found.push(Elsewhere { path, uid: peer.uid() });
        }
    }
    found
}

/// The sockets in this list that a server has made for a group.
fn bound(list: &str) -> impl Iterator<Item = PathBuf> {
    list.lines().skip(1).filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut rest = line;
        let mut fields = [""; 7];
        for field in &mut fields {
            (*field, rest) = rest.trim_start().split_once(' ')?;
        }
        let listens = u32::from_str_radix(fields[3], 16).is_ok_and(|flags| flags & LISTENS != 0);
        listens.then(|| moved_to(Path::new(rest))).flatten()
    })
}

/// Where a socket is that was bound in a [`super::Hall`]: beside it.
fn moved_to(bound: &Path) -> Option<PathBuf> {
    let hall = bound.parent()?;
    let number = hall.file_name()?.to_str()?.strip_prefix(HALL)?;
    let is_hall = bound.is_absolute() && number.parse::<u32>().is_ok();
    is_hall.then(|| Some(hall.with_file_name(bound.file_name()?))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_listen_and_were_made_in_a_hall_are_those_of_a_group() {
        let list = "\
Num       RefCount Protocol Flags    Type St Inode Path
00000000: 00000002 00000000 00010000 0001 01  3411 /run/adit/.adit-77/enroll.sock
0000000000000000: 00000002 00000000 00010000 0001 01 123456 /srv/my box/.adit-8/of the team
00000000: 00000003 00000000 00000000 0001 03  3412 /run/connected/.adit-77/enroll.sock
00000000: 00000002 00000000 00010000 0001 01  3413 /run/other/.adit-x/enroll.sock
00000000: 00000002 00000000 00010000 0001 01  3414 .adit-77/relative.sock
00000000: 00000002 00000000 00010000 0001 01  3415 @/run/abstract/.adit-77/enroll.sock
00000000: 00000002 00000000 00010000 0001 01  3416 /run/systemd/private
00000000: 00000002 00000000 00000000 0002 01  3417
00000000: nonsense
";
        let found: Vec<_> = bound(list).collect();
        let expected = ["/run/adit/enroll.sock", "/srv/my box/of the team"].map(PathBuf::from);
        assert_eq!(found, expected);
    }
}
