//! The ways to a server, and the carriers that go them.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use common::transport::{
    self,
    carrier::{Marks, StreamCarrier, UdpCarrier},
};
use quinn::AsyncUdpSocket;

use crate::ssh::{SshCarrier, SshWay};

/// Which carriers may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CarrierChoice {
    /// UDP if it reaches the server, else SSH
    #[default]
    Auto,
    /// only UDP
    Udp,
    /// only SSH
    Ssh,
}

/// How datagrams get to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// UDP to an address.
    Udp(SocketAddr),
    /// Framed over SSH.
    Ssh(SshWay),
}

impl Route {
    /// The carrier's name, for people and programs.
    pub fn carrier(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Ssh(_) => "ssh",
        }
    }

    /// Opens a carrier on this way; one over SSH still has to log in.
    pub fn open(&self) -> io::Result<Carrier> {
        match self {
            Self::Udp(remote) => {
                let socket = transport::any_socket(*remote)?;
                let buffers = transport::buffer_sizes(&socket).ok();
                let marks = if self.source().is_some_and(drops_marks) {
                    Marks::Without
                } else {
                    Marks::NEW
                };
                Ok(Carrier::Udp(UdpCarrier::new(socket, *remote, marks)?, buffers))
            }
            Self::Ssh(way) => {
                let (stream, ssh) = way.open().map_err(io::Error::other)?;
                Ok(Carrier::Ssh(stream, ssh))
            }
        }
    }

    /// The address that the kernel would send from. Nothing is sent.
    pub fn source(&self) -> Option<IpAddr> {
        let remote = match self {
            Self::Udp(remote) => *remote,
            // Where ssh goes is its own affair: whatever leads to the rest of the world (an address
            // of RFC 5737) will do.
            Self::Ssh(_) => SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)),
        };
        let socket = UdpSocket::bind(transport::any_address(remote)).ok()?;
        socket.connect(remote).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }
}

/// A network that dropped packets with ECN marks is not tried with them for this long.
const WITHOUT_MARKS: Duration = Duration::from_secs(3600);
/// Networks that are remembered at the most.
const NETWORKS: usize = 16;

/// Networks that dropped packets with ECN marks, by the address that is sent from there, and when
/// that was found out. All connections of this program share it.
static DROPPING: Mutex<Vec<(IpAddr, Instant)>> = Mutex::new(Vec::new());

fn drops_marks(source: IpAddr) -> bool {
    let known = DROPPING.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().any(|(other, at)| *other == source && at.elapsed() < WITHOUT_MARKS)
}

/// Remembers that packets with ECN marks are dropped where `source` is sent from.
pub(crate) fn remember_dropping(source: IpAddr) {
    let mut known = DROPPING.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|(other, _)| *other != source);
    known.push((source, Instant::now()));
    let forgotten = known.len().saturating_sub(NETWORKS);
    known.drain(..forgotten);
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(remote) => remote.fmt(f),
            Self::Ssh(way) => write!(f, "{way} (SSH)"),
        }
    }
}

/// What carries a session's datagrams. Dropping it ends it.
#[derive(Debug)]
pub enum Carrier {
    /// A UDP socket, and its buffers for receiving and sending, in bytes.
    Udp(Arc<UdpCarrier>, Option<(usize, usize)>),
    /// A stream, and what keeps it open.
    Ssh(Arc<StreamCarrier>, SshCarrier),
}

impl Carrier {
    /// What quinn sends and receives by.
    pub fn socket(&self) -> Arc<dyn AsyncUdpSocket> {
        match self {
            Self::Udp(socket, _) => socket.clone(),
            Self::Ssh(stream, _) => stream.clone(),
        }
    }

    /// Waits until it can carry.
    ///
    /// # Errors
    /// Why it can't.
    pub async fn ready(&self) -> Result<(), crate::ssh::SshError> {
        match self {
            Self::Udp(..) => Ok(()),
            Self::Ssh(_, ssh) => ssh.ready().await,
        }
    }

    /// Whether the server has been heard by it.
    pub fn has_heard(&self) -> bool {
        match self {
            Self::Udp(socket, _) => socket.has_heard(),
            Self::Ssh(stream, _) => stream.has_heard(),
        }
    }

    /// Whether it goes without ECN marks, because it was answered only so.
    pub fn is_unmarked(&self) -> bool {
        matches!(self, Self::Udp(socket, _) if socket.is_unmarked())
    }

    /// Whether what is sent by it carries ECN marks.
    pub fn has_marks(&self) -> bool {
        matches!(self, Self::Udp(socket, _) if socket.has_marks())
    }

    /// Why the system sends nothing by it at present, if so.
    pub fn send_error(&self) -> Option<io::Error> {
        match self {
            Self::Udp(socket, _) => socket.send_error(),
            Self::Ssh(..) => None,
        }
    }

    /// What the system granted its socket, in bytes for receiving and for sending.
    pub fn buffers(&self) -> Option<(usize, usize)> {
        match self {
            Self::Udp(_, buffers) => *buffers,
            Self::Ssh(..) => None,
        }
    }

    /// Whether it has ended by itself.
    pub fn is_dead(&self) -> bool {
        matches!(self, Self::Ssh(_, ssh) if ssh.is_dead())
    }
}
