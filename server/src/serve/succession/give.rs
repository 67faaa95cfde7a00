//! The side of the running process: starts the new one, and gives it what it has.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use common::{
    machine::{
        control::Control,
        descriptors,
        report::{Exit, Failure},
    },
    transport::carrier::{Inbox, SystemSocket, handed_on},
};
use tokio::net::UnixStream;

use super::{Go, Offer, OlderOffer, TAKE_OVER, Word, hear, say};
use crate::{
    config::Config,
    ingress::{admission::connection_ids::Generation, older::Older},
    limits::Usage,
    outside::{self, Launched},
    running::replacement::OlderProcesses,
};

/// How long the new process may take to be ready, and then to serve.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How many older processes may still run answers when another one begins.
const MOST_OLDER: usize = 8;

/// What a process gives the one that replaces it.
pub(in crate::serve) struct Estate<'a> {
    pub(in crate::serve) generation: Generation,
    pub(in crate::serve) config: &'a Config,
    pub(in crate::serve) control: &'a Control,
    /// The UDP sockets, and the sessions of older processes on each.
    pub(in crate::serve) sockets: Vec<(Arc<SystemSocket>, Arc<Older>)>,
    pub(in crate::serve) relays: Vec<(SocketAddr, OwnedFd)>,
    /// The HTTPS listeners.
    pub(in crate::serve) https: Vec<OwnedFd>,
    pub(in crate::serve) metrics: Option<OwnedFd>,
    pub(in crate::serve) older: OlderProcesses,
}

/// The new process, ready to serve. Dropping this ends it.
pub(in crate::serve) struct Heir {
    link: UnixStream,
    process: Launched,
    /// Where this process gets the datagrams of its connections from, for each UDP socket.
    pub(in crate::serve) inboxes: Vec<Inbox>,
}

impl Estate<'_> {
    /// Starts `program` with this process's own arguments, and waits until it is ready to replace
    /// this process.
    ///
    /// # Errors
    /// Why it cannot. Nothing has changed then, and the new process has ended.
    pub(in crate::serve) async fn offer(&self, program: &Path) -> Result<Heir, Failure> {
        let broken = |e: io::Error| {
            Failure::new("the new aditd has ended before it was ready").source(e).hint(
                "its lines in the log of the running aditd say why; that one goes on as before",
            )
        };
        let refused = |why: Failure| {
            Failure::new("the new aditd cannot replace the running one, which goes on as before")
                .caused_by(why)
        };
        if self.older.pids().len() >= MOST_OLDER {
            let why = format!("answers still run in {MOST_OLDER} earlier processes");
            return Err(refused(
                Failure::new(why)
                    .hint("wait until some of them have ended: `aditd status` lists them"),
            ));
        }
        let mut heir = self.start(program).await?;
        let talk = async {
            let ways = self.ways(&mut heir)?;
            self.give(&mut heir.link, &ways).await?;
            hear(&mut heir.link).await
        };
        match tokio::time::timeout(READY_WITHIN, talk).await {
            Ok(Ok(Word::Ready)) => Ok(heir),
            Ok(Ok(Word::Failed(why))) => Err(refused(why)),
            Ok(Ok(Word::Serving)) => Err(broken(io::ErrorKind::InvalidData.into())),
            Ok(Err(e)) => Err(broken(e)),
            Err(_) => Err(broken(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn start(&self, program: &Path) -> Result<Heir, Failure> {
        let failed = |e: io::Error| {
            Failure::new(format!("cannot start `{}`", program.display()))
                .source(e)
                .hint("the running aditd goes on as before; it must be able to run that program")
                .exit(Exit::Failed)
        };
        let (near, far) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        near.set_nonblocking(true).map_err(failed)?;
        let process = outside::launch(program, TAKE_OVER, far.into()).await.map_err(failed)?;
        let link = UnixStream::from_std(near).map_err(failed)?;
        Ok(Heir { link, process, inboxes: Vec::new() })
    }

    /// The other ends of the new inboxes.
    fn ways(&self, heir: &mut Heir) -> io::Result<Vec<OwnedFd>> {
        self.sockets
            .iter()
            .map(|_| {
                let (way, inbox) = handed_on()?;
                heir.inboxes.push(inbox);
                Ok(way)
            })
            .collect()
    }

    async fn give(&self, link: &mut UnixStream, ways: &[OwnedFd]) -> io::Result<()> {
        let copy = |file: BorrowedFd<'_>| file.try_clone_to_owned();
        let mut files =
            self.control.handles().map(copy).into_iter().collect::<io::Result<Vec<_>>>()?;
        for (socket, _) in &self.sockets {
            files.push(copy(socket.as_fd())?);
        }
        for (_, listener) in &self.relays {
            files.push(copy(listener.as_fd())?);
        }
        for listener in &self.https {
            files.push(copy(listener.as_fd())?);
        }
        files.extend(self.metrics.as_ref().map(|listener| copy(listener.as_fd())).transpose()?);
        let links = self.older.with_links(|all| {
            let one = |(generation, pid, link): &(_, _, BorrowedFd<'_>)| {
                Ok((OlderOffer { generation: *generation, pid: *pid }, copy(*link)?))
            };
            all.iter().map(one).collect::<io::Result<Vec<_>>>()
        })?;
        let mut older = Vec::new();
        for (offer, link) in links {
            let ways = self.sockets.iter().map(|(_, older)| {
                older.with_ways(|ways| {
                    let way = ways.iter().find(|(generation, _)| *generation == offer.generation);
                    way.map(|(_, way)| copy(*way)).transpose()
                })
            });
            let ways = ways.collect::<io::Result<Vec<_>>>()?;
            // One that has just ended has no ways any more.
            if let Some(ways) = ways.into_iter().collect::<Option<Vec<_>>>() {
                files.push(link);
                files.extend(ways);
                older.push(offer);
            }
        }
        for way in ways {
            files.push(copy(way.as_fd())?);
        }
        let offer = Offer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            generation: self.generation,
            listen: self.config.listen.clone(),
            sockets: self.sockets.len(),
            relays: self.relays.iter().map(|(to, _)| *to).collect(),
            https: (
                self.config.https.as_ref().map(|https| https.listen.clone()).unwrap_or_default(),
                self.https.len(),
            ),
            metrics: self.config.accounting.metrics.as_ref().map(ToString::to_string),
            older,
            files: files.len(),
        };
        say(link, &offer).await?;
        for part in files.chunks(descriptors::MOST) {
            let part: Vec<_> = part.iter().map(AsFd::as_fd).collect();
            descriptors::send(link, &part).await?;
        }
        Ok(())
    }
}

impl Heir {
    /// The process id of the new process.
    pub(in crate::serve) fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Lets the new process serve; this one must not read the sockets any more. Returns the link,
    /// which ends with the new process.
    ///
    /// # Errors
    /// If it does not serve. Then nobody does.
    pub(in crate::serve) async fn go(
        mut self,
        usage: Usage,
    ) -> Result<std::os::unix::net::UnixStream, Failure> {
        let serving = async {
            say(&mut self.link, &Go { usage }).await?;
            hear::<Word>(&mut self.link).await
        };
        let lost =
            || Failure::new("the new aditd has not begun to serve").hint("the log above says why");
        match tokio::time::timeout(READY_WITHIN, serving).await {
            Ok(Ok(Word::Serving)) => {}
            Ok(Ok(said)) => return Err(lost().source(format!("{said:?}"))),
            Ok(Err(e)) => return Err(lost().source(e)),
            Err(_) => return Err(lost().source(io::Error::from(io::ErrorKind::TimedOut))),
        }
        // From now on it lives on without this process.
        self.process.keep();
        self.link.as_fd().try_clone_to_owned().map(Into::into).map_err(|e| lost().source(e))
    }
}
