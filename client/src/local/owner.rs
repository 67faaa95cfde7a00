//! Finds which user of this computer owns the other end of a local connection, and judges whether
//! that user may use the tunnel.
//!
//! The kernel knows the owner of each TCP socket. Linux tells it to every process. Other systems
//! tell it only to root or not at all, so every user of the computer is let in there.

#[cfg(target_os = "linux")]
mod linux;
mod stranger;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::machine::{network::network_around, process, report::typed};
use ipnet::IpNet;
use proto::ollama::answer::ErrorAnswer;
use tracing::warn;

use self::stranger::Told;
pub(crate) use self::stranger::WrittenIn;

/// How long a look-up of a user's name may take: the user database may be on a server.
const NAME_WITHIN: Duration = Duration::from_secs(1);

/// What the kernel reports about a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Socket {
    /// Its owner.
    pub(crate) uid: u32,
    /// Whether a process still has it open. For a socket that no process has open, the kernel
    /// reports uid 0.
    pub(crate) is_open: bool,
}

/// The users who are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowed {
    /// The user who runs this program.
    uid: u32,
    /// The uid that stands for every user whom this user namespace does not map, if there are such
    /// users (user_namespaces(7)).
    overflow: Option<u32>,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnerRefusal {
    /// It belongs to another user.
    OtherUser {
        /// That user.
        uid: u32,
        /// The user who runs this program.
        allowed: u32,
    },
    /// It belongs to a user whom this user namespace does not map.
    UnknownUser,
    /// The application has closed it already, and nobody waits for an answer.
    Closed,
    /// It comes from a network that may not use the tunnel.
    OtherNetwork(IpAddr),
    /// The kernel did not report its owner.
    NotTold,
}

impl Allowed {
    fn judge(self, socket: io::Result<Option<Socket>>) -> Result<(), OwnerRefusal> {
        match socket {
            Ok(Some(Socket { is_open: false, .. }) | None) => Err(OwnerRefusal::Closed),
            Ok(Some(Socket { uid, .. })) if Some(uid) == self.overflow => {
                Err(OwnerRefusal::UnknownUser)
            }
            Ok(Some(Socket { uid, .. })) if uid == self.uid || uid == 0 => Ok(()),
            Ok(Some(Socket { uid, .. })) => Err(OwnerRefusal::OtherUser { uid, allowed: self.uid }),
            Err(_) => Err(OwnerRefusal::NotTold),
        }
    }
}

/// Lets in the user who runs this program and root, or every user; and the networks that were named.
#[derive(Debug)]
pub(crate) struct Owners {
    /// They may use addresses that are not loopback.
    networks: Vec<IpNet>,
    /// Where those are written.
    written_in: WrittenIn,
    /// When the log last told of other networks.
    told: Mutex<Told>,
    #[cfg(target_os = "linux")]
    checked: Option<(Allowed, linux::Sockets)>,
}

impl Owners {
    /// Lets in every user of this computer.
    pub(crate) fn any() -> Self {
        Self {
            networks: Vec::new(),
            written_in: WrittenIn::default(),
            told: Mutex::default(),
            #[cfg(target_os = "linux")]
            checked: None,
        }
    }

    /// Lets in the user who runs this program and root. `listening` is an address on which this
    /// program listens: the kernel is asked for its owner, so that a kernel that does not answer is
    /// noticed at start. On other systems than Linux every user is let in.
    ///
    /// # Errors
    /// On Linux, if the kernel does not answer.
    #[cfg(target_os = "linux")]
    pub(crate) fn own(listening: SocketAddr) -> io::Result<Self> {
        let allowed =
            Allowed { uid: rustix::process::geteuid().as_raw(), overflow: linux::overflow_uid() };
        Ok(Self {
            networks: Vec::new(),
            written_in: WrittenIn::default(),
            told: Mutex::default(),
            checked: Some((allowed, linux::Sockets::open(listening)?)),
        })
    }

    /// Lets in every user of this computer: this system does not tell who owns a connection.
    ///
    /// # Errors
    /// Never, on this system.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn own(_listening: SocketAddr) -> io::Result<Self> {
        Ok(Self::any())
    }

    /// Lets in these networks, too, at addresses that are not loopback.
    pub(crate) fn and_networks(self, networks: &[IpNet], written_in: WrittenIn) -> Self {
        Self { networks: networks.to_vec(), written_in, ..self }
    }

    /// Tells the log of a refusal of which the application is not told: seldom, because anyone can
    /// cause it.
    pub(crate) fn log(&self, refused: OwnerRefusal) {
        let OwnerRefusal::OtherNetwork(from) = refused else { return };
        let around = network_around(from);
        let network = around.as_ref().map(|(_, network)| *network);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_due(network, Instant::now()) {
            warn!("{}", stranger::line(from, around.as_ref(), &self.networks, &self.written_in));
        }
    }

    /// Judges a connection between `peer` and `local`, an address of this program.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) fn judge(&self, peer: SocketAddr, local: SocketAddr) -> Result<(), OwnerRefusal> {
        let [from, to] = [peer, local].map(|address| address.ip().to_canonical());
        if !to.is_loopback() && !is_here(from) {
            return of_network(from, &self.networks);
        }
        #[cfg(target_os = "linux")]
        if let Some((allowed, sockets)) = &self.checked {
            return allowed.judge(sockets.find(peer, local));
        }
        let _ = (peer, local);
        Ok(())
    }
}

/// Whether this is an address of this computer: then the connection has an owner here, whatever it
/// connects to.
fn is_here(address: IpAddr) -> bool {
    // If the kernel does not tell, nobody comes in as a network.
    address.is_loopback()
        || if_addrs::get_if_addrs()
            .map_or(true, |all| all.iter().any(|interface| interface.ip() == address))
}

/// Judges a connection of another computer, or of a container with a network of its own.
fn of_network(from: IpAddr, networks: &[IpNet]) -> Result<(), OwnerRefusal> {
    match networks.iter().any(|network| network.contains(&from)) {
        true => Ok(()),
        false => Err(OwnerRefusal::OtherNetwork(from)),
    }
}

impl OwnerRefusal {
    /// The answer to the application, unless it has closed the connection. `name` is the server's,
    /// behind a command.
    pub(crate) async fn answer(self, name: &str) -> Option<ErrorAnswer> {
        let who = match self {
            // A stranger learns nothing.
            Self::Closed | Self::OtherNetwork(_) => return None,
            Self::OtherUser { uid, allowed } => {
                let (user, allowed) = (NamedUser::find(uid).await, NamedUser::find(allowed).await);
                format!("the user {user} may not use the adit of {allowed}")
            }
            Self::UnknownUser => {
                "a user whom adit's container does not know may not use it".to_owned()
            }
            Self::NotTold => {
                "the kernel does not tell adit which user made this connection".to_owned()
            }
        };
        let cure = typed(format!(
            "to let every user of this computer in, start it with `adit up{name} --any-user`"
        ));
        Some(ErrorAnswer::new(403, format!("adit: {who} ({cure})")))
    }
}

/// A user, for people.
struct NamedUser {
    uid: u32,
    name: Option<String>,
}

impl NamedUser {
    async fn find(uid: u32) -> Self {
        let found = tokio::task::spawn_blocking(move || process::login(uid));
        let found = tokio::time::timeout(NAME_WITHIN, found).await;
        Self { uid, name: found.ok().and_then(Result::ok).flatten() }
    }
}

impl fmt::Display for NamedUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "`{name}` (uid {})", self.uid),
            None => write!(f, "with uid {}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Socket = Socket { uid: 1000, is_open: true };

    #[test]
    fn the_user_who_runs_it_and_root_are_let_in_and_nobody_else() {
        let own = Allowed { uid: 1000, overflow: None };
        assert_eq!(own.judge(Ok(Some(OPEN))), Ok(()));
        assert_eq!(own.judge(Ok(Some(Socket { uid: 0, ..OPEN }))), Ok(()));
        for uid in [1, 999, 1001, 65534, u32::MAX] {
            let refused = OwnerRefusal::OtherUser { uid, allowed: 1000 };
            assert_eq!(own.judge(Ok(Some(Socket { uid, ..OPEN }))), Err(refused));
        }
        let root = Allowed { uid: 0, overflow: None };
        assert_eq!(
            root.judge(Ok(Some(OPEN))),
            Err(OwnerRefusal::OtherUser { uid: 1000, allowed: 0 })
        );
        assert_eq!(
            own.judge(Err(io::ErrorKind::PermissionDenied.into())),
            Err(OwnerRefusal::NotTold)
        );
    }

    #[test]
    fn a_socket_that_no_process_has_is_nobodys_though_the_kernel_says_root() {
        let own = Allowed { uid: 1000, overflow: None };
        assert_eq!(
            own.judge(Ok(Some(Socket { uid: 0, is_open: false }))),
            Err(OwnerRefusal::Closed)
        );
        assert_eq!(own.judge(Ok(None)), Err(OwnerRefusal::Closed));
    }

    #[test]
    fn in_a_container_the_uid_that_stands_for_all_unknown_users_is_nobodys() {
        for uid in [0, 65534] {
            let own = Allowed { uid, overflow: Some(65534) };
            let socket = Socket { uid: 65534, ..OPEN };
            assert_eq!(own.judge(Ok(Some(socket))), Err(OwnerRefusal::UnknownUser));
        }
        let own = Allowed { uid: 65534, overflow: None };
        assert_eq!(own.judge(Ok(Some(Socket { uid: 65534, ..OPEN }))), Ok(()), "it is `nobody`");
    }

    #[test]
    fn a_network_that_was_named_is_let_in_and_no_other() {
        let networks: Vec<IpNet> =
            ["172.17.0.0/16", "fd00::/64"].map(|text| text.parse().expect("a network")).into();
        for (from, is_in) in [
            ("172.17.0.2", true),
            ("172.18.0.2", false),
            ("10.0.0.1", false),
            ("fd00::7", true),
            ("fe80::1", false),
        ] {
            let from: IpAddr = from.parse().expect("an address");
            assert_eq!(of_network(from, &networks).is_ok(), is_in, "{from}");
            assert_eq!(of_network(from, &[]), Err(OwnerRefusal::OtherNetwork(from)));
        }
    }

    #[test]
    fn at_any_address_a_connection_of_this_computer_is_judged_by_its_owner() {
        // With the network of loopback named, the address of the other end would let it in.
        let everything = ["0.0.0.0/0".parse().expect("a network")];
        let local = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let local = local.local_addr().expect("an address");
        let bridge = SocketAddr::new([172, 17, 0, 1].into(), 11434);
        let owners = Owners::own(local)
            .expect("the kernel tells")
            .and_networks(&everything, WrittenIn::Flag);
        let here = SocketAddr::new([127, 0, 0, 1].into(), 1);
        let elsewhere = SocketAddr::new([192, 0, 2, 1].into(), 1);
        assert_eq!(owners.judge(elsewhere, bridge), Ok(()));
        // No process has this socket.
        #[cfg(target_os = "linux")]
        assert_eq!(owners.judge(here, bridge), Err(OwnerRefusal::Closed));
        // Nobody from elsewhere connects to loopback.
        #[cfg(target_os = "linux")]
        assert_eq!(owners.judge(elsewhere, local), Err(OwnerRefusal::Closed));
    }

    #[tokio::test]
    async fn a_refusal_names_the_user_and_the_cure() {
        let refused = OwnerRefusal::OtherUser { uid: 3_999_999_999, allowed: 0 };
        let answer = refused.answer(" lab").await.expect("an answer");
        assert_eq!(answer.status, 403);
        assert!(
            answer.sentence.starts_with(
                "adit: the user with uid 3999999999 may not use the adit of `root` (uid 0)"
            ),
            "{}",
            answer.sentence
        );
        assert!(answer.sentence.contains("`adit up lab --any-user`"), "{}", answer.sentence);
        assert_eq!(OwnerRefusal::Closed.answer("").await, None);
    }
}
