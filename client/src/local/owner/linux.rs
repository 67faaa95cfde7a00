//! Finds the owner of a TCP socket on Linux: with `sock_diag(7)`, or from `/proc/net/tcp` if
//! `sock_diag` is missing (in gVisor, or behind a system call filter).

use std::{
    fs::File,
    io::{self, BufReader},
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, Parseable};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket as Netlink, protocols::NETLINK_SOCK_DIAG};
use procfs_core::{ExplicitSystemInfo, FromBufReadSI, net::TcpNetEntries};

use super::Socket;

/// Matches a socket with any cookie (`INET_DIAG_NOCOOKIE`).
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// The longest answer, in bytes: one socket with its attributes.
const MOST_ANSWER: usize = 8192;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// An error, or an acknowledgement (netlink(7)).
const NLMSG_ERROR: u16 = 2;
/// The number of uids in the map of a user namespace that maps all of them.
const ALL_UIDS: &str = "4294967295";

/// All TCP sockets of this network namespace.
#[derive(Debug)]
pub(super) enum Sockets {
    Netlink(Netlink),
    Proc,
}

impl Sockets {
    /// Opens the first source that finds the socket that listens at `listening`.
    pub(super) fn open(listening: SocketAddr) -> io::Result<Self> {
        let unspecified = match listening {
            SocketAddr::V4(_) => IpAddr::from([0; 4]),
            SocketAddr::V6(_) => IpAddr::from([0; 16]),
        };
        let nobody = SocketAddr::new(unspecified, 0);
        let answers = |sockets: Self| match sockets.find_any(listening, nobody) {
            Ok(Some(_)) => Ok(sockets),
            Ok(None) => Err(io::Error::from(io::ErrorKind::NotFound)),
            Err(e) => Err(e),
        };
        netlink().and_then(|socket| answers(Self::Netlink(socket))).or_else(|_| answers(Self::Proc))
    }

    /// The socket at `local` that is connected to `remote`.
    pub(super) fn find(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
        self.find_any(canonical(local), canonical(remote))
    }

    fn find_any(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
        match self {
            Self::Netlink(socket) => {
                ask(socket, local, remote).or_else(|_| read_proc(local, remote))
            }
            Self::Proc => read_proc(local, remote),
        }
    }
}

/// An IPv4 connection of an IPv6 socket counts as an IPv4 connection.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn netlink() -> io::Result<Netlink> {
    let mut socket = Netlink::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    // The kernel answers before `send` returns: there is nothing to wait for.
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Asks for one socket. This takes some microseconds, however many sockets there are.
fn ask(socket: &Netlink, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
    // Discards what an earlier question that failed may have left.
    while socket.recv(&mut &mut [0; MOST_ANSWER][..], 0).is_ok() {}
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            cookie: NO_COOKIE,
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answer = [0; MOST_ANSWER];
    let n = socket.recv(&mut &mut answer[..], 0)?;
    let answer = NetlinkBuffer::new_checked(&answer[..n]).map_err(io::Error::other)?;
    match answer.message_type() {
        SOCK_DIAG_BY_FAMILY => {
            let found = InetResponseHeader::parse(answer.payload()).map_err(io::Error::other)?;
            Ok(is_meant(&found, local, remote)
                .then_some(Socket { uid: found.uid, is_open: found.inode != 0 }))
        }
        NLMSG_ERROR => {
            let code = answer.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            let error = io::Error::from_raw_os_error(-code);
            // The socket was closed since `accept`.
            if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// If no connection matches, the kernel returns a socket that listens at the address, which may
/// belong to another user.
fn is_meant(found: &InetResponseHeader, local: SocketAddr, remote: SocketAddr) -> bool {
    let id = &found.socket_id;
    let same =
        |ip: IpAddr, port, address| canonical(SocketAddr::new(ip, port)) == canonical(address);
    same(id.source_address, id.source_port, local)
        && same(id.destination_address, id.destination_port, remote)
}

/// Searches all sockets. An IPv4 connection may be in the table of IPv6.
fn read_proc(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
    let files = if local.is_ipv4() {
        &["/proc/net/tcp", "/proc/net/tcp6"][..]
    } else {
        &["/proc/net/tcp6"]
    };
    for (i, file) in files.iter().enumerate() {
        let table = match File::open(file) {
            Ok(table) => table,
            // A kernel without IPv6.
            Err(_) if i > 0 => continue,
            Err(e) => return Err(e),
        };
        if let Some(socket) = find_in(BufReader::new(table), local, remote)? {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}

fn find_in(
    table: impl io::BufRead,
    local: SocketAddr,
    remote: SocketAddr,
) -> io::Result<Option<Socket>> {
    let TcpNetEntries(entries) =
        TcpNetEntries::from_buf_read(table, &THIS).map_err(|e| io::Error::other(e.to_string()))?;
    let same = |entry: SocketAddr, address| canonical(entry) == canonical(address);
    let found = entries
        .into_iter()
        .find(|entry| same(entry.local_address, local) && same(entry.remote_address, remote));
    Ok(found.map(|entry| Socket { uid: entry.uid, is_open: entry.inode != 0 }))
}

/// The parser only needs the byte order of this computer.
const THIS: ExplicitSystemInfo = ExplicitSystemInfo {
    boot_time_secs: 0,
    ticks_per_second: 0,
    page_size: 0,
    is_little_endian: cfg!(target_endian = "little"),
};

/// The uid that the kernel reports for users that this user namespace does not map, if there are
/// such users.
pub(super) fn overflow_uid() -> Option<u32> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    let overflow = overflow.and_then(|uid| uid.trim().parse().ok()).unwrap_or(65534);
    (!knows_all(&map)).then_some(overflow)
}

fn knows_all(map: &str) -> bool {
    map.split_whitespace().nth(2) == Some(ALL_UIDS)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection, and the address of the listener.
    fn pair(to: &str) -> Option<(TcpStream, TcpStream, SocketAddr)> {
        let listener = TcpListener::bind(to).ok()?;
        let address = listener.local_addr().ok()?;
        let app = TcpStream::connect(address).expect("connected");
        Some((app, listener.accept().expect("accepted").0, address))
    }

    #[test]
    fn both_ways_find_the_owner_of_the_other_end_and_nobody_when_it_is_closed() {
        let uid = rustix::process::geteuid().as_raw();
        for to in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let Some((app, ours, _)) = pair(to) else { continue };
            let (peer, local) =
                (ours.peer_addr().expect("a peer"), ours.local_addr().expect("an address"));
            for sockets in [Sockets::Netlink(netlink().expect("netlink")), Sockets::Proc] {
                let found = sockets.find(peer, local).expect("told");
                assert_eq!(found, Some(Socket { uid, is_open: true }), "{to} {sockets:?}");
            }
            drop(app);
            for sockets in [Sockets::Netlink(netlink().expect("netlink")), Sockets::Proc] {
                let found = sockets.find(peer, local).expect("told");
                assert!(found.is_none_or(|socket| !socket.is_open), "{to} {found:?}");
            }
        }
    }

    #[test]
    fn a_socket_that_listens_where_the_application_was_is_not_taken_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        for sockets in [Sockets::open(address).expect("opened"), Sockets::Proc] {
            let found = sockets.find(address, "127.0.0.1:9".parse().expect("an address"));
            assert_eq!(found.expect("told"), None);
        }
    }

    #[test]
    fn an_ipv4_connection_of_an_ipv6_socket_is_found_in_its_table() {
        const TABLE: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:D5B0 0000000000000000FFFF00000100007F:2CAA 01 00000000:00000000 00:00000000 00000000  1000        0 167 1 0000000000000000 20 0 0 10 -1
";
        if cfg!(target_endian = "little") {
            let found = find_in(
                TABLE.as_bytes(),
                "127.0.0.1:54704".parse().expect("an address"),
                "127.0.0.1:11434".parse().expect("an address"),
            );
            assert_eq!(found.expect("read"), Some(Socket { uid: 1000, is_open: true }));
        }
    }

    #[test]
    fn only_a_namespace_that_knows_every_uid_has_no_unknown_users() {
        assert!(knows_all("         0          0 4294967295\n"));
        assert!(!knows_all("         0       1000          1\n"));
        assert!(!knows_all("         0       1000          1\n         1     100000      65536\n"));
        assert!(!knows_all(""));
    }
}
