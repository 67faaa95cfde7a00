//! The built-in client: goes where the user's configuration says, through its jump hosts, and opens
//! there what is needed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use common::{
    frame,
    identity::Name,
    wire::{ADITD_PORT, EnrollDevice, Enrolled},
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tracing::debug;

use super::{
    Halves, SshError, SshWay, ask,
    bounds::{HOST_WITHIN, Patience},
    certificate,
    config::{self, HostConfig},
    hosts::KnownHost,
    keys::Keyring,
    login::Login,
    past_marker,
    session::{Piped, Reading, Session},
};

/// More on the way are a circle.
const MOST_HOSTS: usize = 9;
/// Addresses of one name, and the time that each has.
const MOST_ADDRESSES: usize = 8;
const ADDRESS_WITHIN: Duration = Duration::from_secs(10);
/// A command that is to be the relay is it by then; a forced command may be anything.
const RELAY_WITHIN: Duration = Duration::from_secs(10);
/// What a command that has ended may still have to say.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The way in, and all hosts on it: the last one is the one that is meant.
struct Way<'a> {
    keyring: &'a Keyring,
    may_ask: bool,
    patience: Arc<Patience>,
}

/// Enrolls: asks whatever has to be asked.
pub(super) async fn enroll(way: &SshWay, name: &Name, csr: String) -> Result<Enrolled, SshError> {
    let to = way.to_string();
    let (session, under) = connect(way, ask::somebody_is_there()).await?;
    let exchange = async {
        let run = format!("enroll-device {name}");
        let piped = session.exec(&way.command(&run), &to).await?;
        let mut piped = piped.over(under);
        let talk = async {
            frame::write(&mut piped.write, &EnrollDevice { csr }).await?;
            piped.write.flush().await?;
            certificate(&mut piped.read).await
        };
        match talk.await {
            Ok(enrolled) => enrolled.ok_or_else(|| SshError::OnlyRelays(to.clone())),
            Err(e) => Err(ended(way, &run, &mut piped.read, &e.to_string()).await),
        }
    };
    let answer = tokio::time::timeout(super::LOGIN_WITHIN, exchange).await;
    answer.unwrap_or_else(|_| Err(SshError::Silent(to.clone())))
}

/// Opens a stream to the relay. Asks only at the first login of this process, and only if there is
/// somebody.
pub(super) async fn carry(way: &SshWay) -> Result<Halves, SshError> {
    let may_ask = way.keyring.may_ask() && ask::somebody_is_there();
    let (session, mut under) = match connect(way, may_ask).await {
        Err(e @ (SshError::Denied(_) | SshError::HostKey(_))) => {
            // Whoever has not answered once is not asked again and again.
            way.keyring.ask_no_more();
            return Err(e);
        }
        other => other?,
    };
    way.keyring.ask_no_more();
    let piped = relay(way, &session).await?;
    under.push(session);
    let Piped { read, write } = piped.over(under);
    Ok((Box::new(read), write))
}

/// The command first: it finds the server wherever it listens, it is what a key's forced command
/// is, and it needs no right to forward. Where it can't be run, the server's port on its loopback
/// does the same, and it says so with the same first line.
async fn relay(way: &SshWay, session: &Session) -> Result<Piped, SshError> {
    let to = way.to_string();
    let by_command = async {
        let mut piped = session.exec(&way.command("relay"), &to).await?;
        match tokio::time::timeout(RELAY_WITHIN, past_marker(&mut piped.read)).await {
            Ok(Ok(_)) => Ok(piped),
            Ok(Err(e)) => Err(ended(way, "relay", &mut piped.read, &e.to_string()).await),
            Err(_) => Err(SshError::Silent(to.clone())),
        }
    };
    let by_command = match tokio::time::timeout(RELAY_WITHIN + LAST_WORDS, by_command).await {
        Ok(Ok(piped)) => return Ok(piped),
        Ok(Err(e)) => e,
        Err(_) => SshError::Silent(to.clone()),
    };
    let port = way.relay_port.unwrap_or(ADITD_PORT);
    debug!("no relay by command ({by_command}): trying port {port} of the server's loopback");
    let forwarded = async {
        let mut piped = session.direct("127.0.0.1", port, &to).await?;
        past_marker(&mut piped.read)
            .await
            .map_err(|e| SshError::Broken { to: to.clone(), why: e.to_string() })?;
        Ok::<_, SshError>(piped)
    };
    match tokio::time::timeout(RELAY_WITHIN, forwarded).await {
        Ok(Ok(piped)) => Ok(piped),
        Ok(Err(e)) => {
            debug!("no relay by forwarding: {e}");
            Err(by_command)
        }
        Err(_) => Err(by_command),
    }
}

async fn ended(way: &SshWay, arguments: &str, read: &mut Reading, why: &str) -> SshError {
    match tokio::time::timeout(LAST_WORDS, read.end()).await {
        Ok((code, said)) => SshError::of_command(way, arguments, code, &said),
        Err(_) => SshError::Ended { to: way.to_string(), said: why.to_owned() },
    }
}

/// Logs in at the host that is meant; with it come the connections under its own.
async fn connect(way: &SshWay, may_ask: bool) -> Result<(Session, Vec<Session>), SshError> {
    let going =
        Way { keyring: &way.keyring, may_ask, patience: Arc::new(Patience::new(HOST_WITHIN)) };
    let patience = going.patience.clone();
    let going = going.to(&way.destination, way.port);
    patience.bound(going).await.unwrap_or_else(|| Err(SshError::Silent(way.to_string())))
}

impl Way<'_> {
    async fn to(
        &self,
        destination: &str,
        port: Option<u16>,
    ) -> Result<(Session, Vec<Session>), SshError> {
        let mut hosts = VecDeque::from([config::of(destination, port).await?]);
        // Before the host go its jumps, before the first of those its own, and so on to one that is
        // reached directly.
        while let Some(jumps) = hosts
            .front_mut()
            .map(|first| std::mem::take(&mut first.jumps))
            .filter(|jumps| !jumps.is_empty())
        {
            if hosts.len() + jumps.len() > MOST_HOSTS {
                return Err(SshError::Beyond {
                    what: format!("more than {MOST_HOSTS} hosts are on the way to {destination}"),
                });
            }
            for (at, jump) in jumps.iter().enumerate().rev() {
                self.patience.again();
                let (destination, port) = config::split_jump(jump);
                let mut host = config::of(&destination, port).await?;
                if at > 0 {
                    host.jumps.clear();
                }
                hosts.push_front(host);
            }
        }
        if let Some(what) = hosts.front().and_then(|first| first.beyond) {
            return Err(SshError::Beyond { what: format!("{what} is set for {destination}") });
        }
        let mut sessions: Vec<Session> = Vec::new();
        for host in &hosts {
            let session = self.hop(sessions.last(), host).await?;
            sessions.push(session);
        }
        let last = sessions.pop().ok_or_else(|| SshError::Silent(destination.to_owned()))?;
        Ok((last, sessions))
    }

    async fn hop(&self, from: Option<&Session>, host: &HostConfig) -> Result<Session, SshError> {
        self.patience.again();
        let may_ask = self.may_ask && !host.batch;
        let known = KnownHost::read(host, may_ask);
        let HostConfig { host_name, port, .. } = host;
        let to = format!("{host_name} port {port}");
        let mut session = match from {
            Some(jump) => {
                let Piped { read, write } = jump.direct(host_name, *port, &to).await?;
                Session::open(tokio::io::join(read, write), &to, known, &self.patience).await?
            }
            None => {
                let tcp = self
                    .reach(host_name, *port)
                    .await
                    .map_err(|why| SshError::Broken { to: to.clone(), why })?;
                Session::open(tcp, &to, known, &self.patience).await?
            }
        };
        let login = Login {
            session: &mut session,
            config: host,
            keyring: self.keyring,
            may_ask,
            patience: &self.patience,
        };
        login.run().await.map_err(|e| match e {
            // A login does not know where it is.
            SshError::Broken { why, .. } => SshError::Broken { to, why },
            other => other,
        })?;
        Ok(session)
    }

    /// The first address that answers: one that is silent must not take the time of the others.
    async fn reach(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses = tokio::net::lookup_host((host, port)).await.map_err(|e| e.to_string())?;
        let mut why = "it has no address".to_owned();
        for address in addresses.take(MOST_ADDRESSES) {
            self.patience.again();
            match tokio::time::timeout(ADDRESS_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    let _ = tcp.set_nodelay(true);
                    return Ok(tcp);
                }
                Ok(Err(e)) => why = e.to_string(),
                Err(_) => why = format!("{address} does not answer"),
            }
        }
        Err(why)
    }
}
