//! The routes to a server, and their carriers.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use clap::ValueEnum;
use common::transport::{
    self, LOCAL_DATAGRAM, LONGEST_DATAGRAM, USUAL_DATAGRAM,
    carrier::{InteractiveData, Marks, Protection, Repeated, StreamCarrier, UdpCarrier},
};
use quinn::AsyncUdpSocket;
use serde::Deserialize;

use crate::{
    dial::unmarked,
    ssh::{SshCarrier, SshTarget},
};

/// Which carriers may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CarrierChoice {
    /// UDP if it reaches the server, else SSH
    #[default]
    Auto,
    /// only UDP
    Udp,
    /// only SSH
    Ssh,
}

/// How datagrams reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// UDP to an address.
    Udp(SocketAddr),
    /// Over SSH, in frames.
    Ssh(SshTarget),
}

impl Route {
    /// The carrier's name, for people and programs.
    pub(crate) fn carrier(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Ssh(_) => "ssh",
        }
    }

    /// Opens a carrier on this route. A carrier over SSH still has to log in: see
    /// [`Carrier::ready`].
    pub(crate) fn open(&self) -> io::Result<Carrier> {
        match self {
            Self::Udp(remote) => {
                let socket = transport::any_socket(*remote)?;
                let buffers = transport::buffer_sizes(&socket).ok();
                let marks = if self.source().is_some_and(unmarked::drops_marks) {
                    Marks::Without
                } else {
                    Marks::NEW
                };
                Ok(Carrier::Udp(UdpCarrier::new(socket, *remote, marks)?, buffers))
            }
            Self::Ssh(route) => {
                let (stream, ssh) = route.open().map_err(io::Error::other)?;
                Ok(Carrier::Ssh(stream, ssh))
            }
        }
    }

    /// The longest datagram to try on this route, in bytes of UDP payload. It is more than usual on
    /// this machine, where no network in between has a smaller limit, and most over SSH, where there
    /// is none. A session that moves from there to UDP notices that its long datagrams are lost.
    pub fn longest_datagram(&self) -> u16 {
        match self {
            Self::Udp(remote) if remote.ip().is_loopback() => LOCAL_DATAGRAM,
            Self::Udp(_) => USUAL_DATAGRAM,
            Self::Ssh(_) => LONGEST_DATAGRAM,
        }
    }

    /// The local address that the kernel would send from. Nothing is sent.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        let remote = match self {
            Self::Udp(remote) => *remote,
            // Only ssh knows its destination. An address of RFC 5737 gives the local address of the
            // default route.
            Self::Ssh(_) => SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)),
        };
        let socket = UdpSocket::bind(transport::any_address(remote)).ok()?;
        socket.connect(remote).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(remote) => remote.fmt(f),
            Self::Ssh(route) => write!(f, "{route} (SSH)"),
        }
    }
}

/// Carries a session's datagrams. Dropping it ends it.
#[derive(Debug)]
pub enum Carrier {
    /// A UDP socket, and the sizes of its receive and send buffers, in bytes.
    Udp(Arc<UdpCarrier>, Option<(usize, usize)>),
    /// A byte stream, and the SSH connection below it.
    Ssh(Arc<StreamCarrier>, SshCarrier),
}

impl Carrier {
    /// The socket for quinn.
    pub(crate) fn socket(&self) -> Arc<dyn AsyncUdpSocket> {
        match self {
            Self::Udp(socket, _) => socket.clone(),
            Self::Ssh(stream, _) => stream.clone(),
        }
    }

    /// Waits until it can carry datagrams.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) async fn ready(&self) -> Result<(), crate::ssh::SshError> {
        match self {
            Self::Udp(..) => Ok(()),
            Self::Ssh(_, ssh) => ssh.ready().await,
        }
    }

    /// Whether a datagram of the server has arrived over it.
    pub(crate) fn has_heard(&self) -> bool {
        match self {
            Self::Udp(socket, _) => socket.has_heard(),
            Self::Ssh(stream, _) => stream.has_heard(),
        }
    }

    /// Whether it sends no ECN marks because packets with them were not answered: they may have been
    /// lost for another reason.
    pub(crate) fn is_unmarked(&self) -> bool {
        matches!(self, Self::Udp(socket, _) if socket.is_unmarked())
    }

    /// Whether its packets carry ECN marks.
    pub(crate) fn has_marks(&self) -> bool {
        matches!(self, Self::Udp(socket, _) if socket.has_marks())
    }

    /// For a session that has no long datagrams yet: see [`StreamCarrier::keep_short`].
    pub(crate) fn keep_short(&self) {
        if let Self::Ssh(stream, _) = self {
            stream.keep_short();
        }
    }

    /// Whether it drops long datagrams.
    pub(crate) fn drops_long(&self) -> bool {
        matches!(self, Self::Ssh(stream, _) if stream.drops_long())
    }

    /// Whether small datagrams are sent twice from now on. Over SSH this does nothing, because TCP
    /// sends lost data again.
    pub(crate) fn protect(
        &self,
        protection: Option<Protection>,
        interactive: &Arc<InteractiveData>,
    ) {
        match self {
            Self::Udp(socket, _) => socket.protect(protection, interactive),
            Self::Ssh(..) => interactive.unprotect(),
        }
    }

    /// How many datagrams it has sent twice since it is protected, so that QUIC does not notice the
    /// loss of one copy.
    pub(crate) fn hidden(&self) -> u64 {
        match self {
            Self::Udp(socket, _) => socket.hidden(),
            Self::Ssh(..) => 0,
        }
    }

    /// What it has sent twice so far.
    pub(crate) fn repeated(&self) -> Repeated {
        match self {
            Self::Udp(socket, _) => socket.repeated(),
            Self::Ssh(..) => Repeated::default(),
        }
    }

    /// Why the system cannot send at the moment, if so.
    pub(crate) fn send_error(&self) -> Option<io::Error> {
        match self {
            Self::Udp(socket, _) => socket.send_error(),
            Self::Ssh(..) => None,
        }
    }

    /// The sizes of its socket's receive and send buffers, in bytes.
    pub(crate) fn buffers(&self) -> Option<(usize, usize)> {
        match self {
            Self::Udp(_, buffers) => *buffers,
            Self::Ssh(..) => None,
        }
    }

    /// How many batches of datagrams (GSO) the system refused.
    pub(crate) fn batches_refused(&self) -> u64 {
        match self {
            Self::Udp(socket, _) => socket.batches_refused(),
            Self::Ssh(..) => 0,
        }
    }

    /// Whether it has ended by itself.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self, Self::Ssh(_, ssh) if ssh.is_dead())
    }
}
