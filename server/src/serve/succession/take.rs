//! The side of the new process: takes what the running one gives.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as Link,
    },
    path::Path,
    time::Duration,
};

use common::{
    machine::{
        control::Control,
        descriptors,
        report::{Exit, Failure},
    },
    transport::carrier::HandOn,
};
use tokio::net::UnixStream;

use super::{Go, Offer, Word, hear, say};
use crate::{
    config::Config,
    ingress::admission::connection_ids::Generation,
    limits::Usage,
    running::replacement::{OlderProcess, OlderProcesses},
};

/// How long the running process may take to give what it has.
const GIVEN_WITHIN: Duration = Duration::from_secs(30);

/// What the running process has given.
pub(in crate::serve) struct Taken {
    offer: Offer,
    link: UnixStream,
    control: Option<[OwnedFd; 2]>,
    pub(in crate::serve) sockets: Vec<UdpSocket>,
    pub(in crate::serve) relays: Vec<(SocketAddr, OwnedFd)>,
    https: Vec<TcpListener>,
    metrics: Option<OwnedFd>,
    older: Vec<OlderProcess>,
    /// For each UDP socket the ways to the older processes.
    pub(in crate::serve) ways: Vec<Vec<(Generation, HandOn)>>,
}

impl Taken {
    /// Takes it from standard input, which is a socket of the running process.
    ///
    /// # Errors
    /// If it is not, or its offer is not understood.
    pub(in crate::serve) async fn receive() -> Result<Self, Failure> {
        let failed = |e: io::Error| {
            Failure::new("cannot take over from a running aditd")
                .source(e)
                .hint("only a running aditd starts a process so: `aditd replace` tells it to")
                .exit(Exit::Usage)
        };
        let link = own_link().map_err(failed)?;
        let taken = tokio::time::timeout(GIVEN_WITHIN, Self::from(link)).await;
        taken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)
    }

    async fn from(mut link: UnixStream) -> io::Result<Self> {
        let offer: Offer = hear(&mut link).await?;
        let mut files = Vec::new();
        while files.len() < offer.files {
            files.extend(descriptors::receive(&link).await?);
        }
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or(io::Error::from(io::ErrorKind::InvalidData));
        let control = [next()?, next()?];
        let sockets = (0..offer.sockets).map(|_| next().map(UdpSocket::from));
        let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
        let relays = offer.relays.iter().map(|to| Ok((*to, next()?)));
        let relays = relays.collect::<io::Result<Vec<_>>>()?;
        let https = (0..offer.https.1).map(|_| next().map(TcpListener::from));
        let https = https.collect::<io::Result<Vec<_>>>()?;
        let metrics = offer.metrics.as_ref().map(|_| next()).transpose()?;
        let mut ways: Vec<Vec<_>> = sockets.iter().map(|_| Vec::new()).collect();
        let mut older = Vec::new();
        for process in &offer.older {
            let link = Link::from(next()?);
            older.push(OlderProcess { generation: process.generation, pid: process.pid, link });
            for ways in &mut ways {
                ways.push((process.generation, HandOn::new(next()?)?));
            }
        }
        for ways in &mut ways {
            ways.push((offer.generation, HandOn::new(next()?)?));
        }
        let own = Link::from(link.as_fd().try_clone_to_owned()?);
        older.push(OlderProcess { generation: offer.generation, pid: offer.pid, link: own });
        Ok(Self {
            offer,
            link,
            control: Some(control),
            sockets,
            relays,
            https,
            metrics,
            older,
            ways,
        })
    }

    /// Checks that this process is to listen where the running one does.
    ///
    /// # Errors
    /// If the configuration names other addresses than the ones that process was started with.
    pub(in crate::serve) fn check(&self, config: &Config) -> Result<(), Failure> {
        if self.offer.listen == config.listen {
            return Ok(());
        }
        let shown =
            |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Failure::new(format!(
            "the configuration says to listen on {}, and the running aditd listens on {}",
            shown(&config.listen),
            shown(&self.offer.listen)
        ))
        .hint("other addresses need a restart, which ends running answers: `sudo systemctl restart aditd` if it is a service")
        .exit(Exit::Usage))
    }

    /// The right to serve the state.
    ///
    /// # Errors
    /// If it is the right to another state.
    pub(in crate::serve) fn control(&mut self, dir: &Path) -> Result<Control, Failure> {
        let missing = || Failure::new("the control socket was not given");
        Ok(Control::take_over(dir, self.control.take().ok_or_else(missing)?)?)
    }

    /// The HTTPS listeners, if they are for these addresses.
    pub(in crate::serve) fn https(&mut self, listen: &[SocketAddr]) -> Option<Vec<TcpListener>> {
        let given = std::mem::take(&mut self.https);
        (self.offer.https.0 == listen && !given.is_empty()).then_some(given)
    }

    /// The listener of the metrics, if it is for this address.
    pub(in crate::serve) fn metrics(&mut self, address: &str) -> Option<OwnedFd> {
        self.metrics.take_if(|_| self.offer.metrics.as_deref() == Some(address))
    }

    /// This process's generation.
    pub(in crate::serve) fn generation(&self) -> Generation {
        self.offer.generation.wrapping_add(1)
    }

    /// The process that gives, for people.
    pub(in crate::serve) fn giver(&self) -> String {
        format!("aditd {} (pid {})", self.offer.version, self.offer.pid)
    }

    /// The processes that have sessions of their own from now on.
    pub(in crate::serve) fn older(&mut self) -> OlderProcesses {
        OlderProcesses::new(std::mem::take(&mut self.older))
    }

    /// Says that everything that can fail is done, and waits until the sockets are this process's.
    ///
    /// # Errors
    /// If the running process does not give them, or has ended.
    pub(in crate::serve) async fn ready(mut self) -> Result<(Usage, Successor), Failure> {
        let talk = async {
            say(&mut self.link, &Word::Ready).await?;
            hear::<Go>(&mut self.link).await
        };
        match talk.await {
            Ok(Go { usage }) => Ok((usage, Successor(self.link))),
            Err(e) => Err(Failure::new("the running aditd has not given its sockets").source(e)),
        }
    }

    /// Somebody who can tell the running process why this one fails.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub(in crate::serve) fn teller(&self) -> io::Result<Teller> {
        let link = Link::from(self.link.as_fd().try_clone_to_owned()?);
        Ok(Teller(UnixStream::from_std(link)?))
    }
}

/// Tells the running process that this one fails.
pub(in crate::serve) struct Teller(UnixStream);

impl Teller {
    /// Tells why.
    pub(in crate::serve) async fn tell(mut self, why: &Failure) {
        // If it has ended, nobody has to know.
        let _ = say(&mut self.0, &Word::Failed(why.clone())).await;
    }
}

/// A process that has the sockets.
pub(in crate::serve) struct Successor(UnixStream);

impl Successor {
    /// Says that it serves.
    pub(in crate::serve) async fn serves(mut self) {
        // If the older one has just ended, its answers are over.
        let _ = say(&mut self.0, &Word::Serving).await;
    }
}

/// Standard input as a socket; nothing else is left there.
fn own_link() -> io::Result<UnixStream> {
    let link = Link::from(io::stdin().as_fd().try_clone_to_owned()?);
    // An error if it is no socket.
    link.peer_addr()?;
    link.set_nonblocking(true)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    UnixStream::from_std(link)
}
