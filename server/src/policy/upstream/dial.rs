//! Connects to a service. Every connection is TCP for the rest of the program: one to a Unix socket is
//! joined to a TCP connection of this process to itself, by a task that ends with either.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use common::transport::{self, accept::is_shortage, unix};
use proto::wire::Code;
use tokio::{net::TcpStream, task::JoinSet};
use tracing::warn;

use super::{AllowedName, LoopbackAddr, Place, Upstream};
use crate::{outside, policy::Permit};

/// How long a connection may take: longer than a busy machine needs to accept, shorter than a
/// person waits.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The tasks that join connections to Unix sockets. They end when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct UnixJoins(Mutex<JoinSet<()>>);

impl UnixJoins {
    async fn connect(&self, path: &Path) -> io::Result<TcpStream> {
        let service = outside::connect(path).await?;
        let (near, far) = unix::pair().await?;
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(unix::join_to_service(far, service));
        Ok(near)
    }
}

/// Connects to the service of the permit.
///
/// # Errors
/// The code that the client gets.
///
/// # Cancel safety
/// Cancel safe: nothing is left behind.
pub(crate) async fn dial(permit: &Permit) -> Result<TcpStream, Code> {
    let tcp = match connect(permit.upstream(), permit.joins()).await {
        Ok(tcp) => tcp,
        Err(e) if is_refusal(&e) => return Err(Code::UpstreamRefused),
        Err(e) if is_shortage(&e) => return Err(Code::Busy),
        Err(_) => return Err(Code::UpstreamSilent),
    };
    transport::prepare_local(&tcp).map_err(|_| Code::Busy)?;
    Ok(tcp)
}

/// Nobody listens there, or there is no such socket, or this user may not use it.
fn is_refusal(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    matches!(e.kind(), ConnectionRefused | NotFound | PermissionDenied)
}

/// Connects to a service.
///
/// # Errors
/// Also if a name has an address that is not allowed.
pub(crate) async fn connect(upstream: &Upstream, joins: &UnixJoins) -> io::Result<TcpStream> {
    let connected = async {
        match &upstream.place {
            Place::Loopback(address) => TcpStream::connect(address.get()).await,
            Place::Allowed(address) => TcpStream::connect(address.0).await,
            Place::Unix(path) => joins.connect(path).await,
            Place::Name(name) => {
                let all = outside::addresses(&name.host, name.port).await?;
                TcpStream::connect(&*name.admit(all)?).await
            }
        }
    };
    let silent = || io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
    tokio::time::timeout(CONNECT_WITHIN, connected).await.unwrap_or_else(|_| Err(silent()))
}

impl AllowedName {
    /// These addresses, if each of them is allowed.
    pub(super) fn admit(&self, all: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        let is_good = |address: &SocketAddr| {
            LoopbackAddr::try_from(*address).is_ok() || self.allow.has(*address)
        };
        match all.iter().find(|address| !is_good(address)) {
            None => Ok(all),
            Some(other) => {
                warn!(
                    "`{}` has the address {other} now, which is not in `upstream_allow`: it is not dialled",
                    self.host
                );
                Err(io::Error::other(format!("{other} is not in `upstream_allow`")))
            }
        }
    }
}
