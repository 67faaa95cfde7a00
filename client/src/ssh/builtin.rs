//! The built-in client: connects as the user's configuration says, through its jump hosts, and runs
//! commands or opens ports there.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use proto::wire::ADITD_PORT;
use tokio::net::TcpStream;
use tracing::debug;

use super::{
    DOCTOR, Halves, Inspected, SshError, SshTarget,
    answer::{self, NotBegun},
    ask,
    bounds::{Patience, Tell},
    config::{self, HostConfig},
    hosts::KnownHost,
    keys::Keyring,
    login::Login,
    pace::Step,
    session::{LOOPBACK, Piped, Reading, SshSession},
};

/// The most hosts in a chain of jumps. A longer chain is taken for a circle.
const MOST_HOSTS: usize = 9;
/// The most addresses of a name that are tried, and the time for each.
const MOST_ADDRESSES: usize = 8;
const ADDRESS_WITHIN: Duration = Duration::from_secs(10);
/// A connection over a dead network ends after this time, even while a slow host has longer to
/// answer.
#[cfg(target_os = "linux")]
const DEAD_AFTER: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How many bytes may wait in the kernel before they are sent for the first time. A token waits
/// behind them.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 32 << 10;
/// How much earlier the command starts than a connection to the port of the server's relay.
const HEAD_START: Duration = Duration::from_secs(3);
/// How long the relay's first line may take after a connection to its port was requested.
const FORWARD_WITHIN: Duration = Duration::from_secs(10);
/// How long to read the remaining output of a command that has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Connects to a host through its jump hosts.
struct Connector<'a> {
    keyring: &'a Keyring,
    may_ask: bool,
    patience: Arc<Patience>,
    /// How long TCP took to connect to the host, if it is reached directly.
    round_trip: Mutex<Option<Duration>>,
}

/// Opens a stream to the relay. Asks a person only at the first login of this process, and only at
/// a terminal.
pub(super) async fn carry(target: &SshTarget) -> Result<Halves, SshError> {
    let first = target.keyring.may_ask();
    let may_ask = first && ask::somebody_is_there();
    let patience = patience(target, if first { Tell::Log } else { Tell::Nobody });
    let connecting = patience.bound(connect(target, may_ask, &patience)).await;
    let Connected { session, mut under, round_trip, .. } =
        match connecting.unwrap_or_else(|e| Err(SshError::Silent(e))) {
            Err(e @ (SshError::Denied(_) | SshError::HostKey(_))) => {
                // A person who has not answered is not asked again.
                target.keyring.ask_no_more();
                return Err(e);
            }
            other => other?,
        };
    target.keyring.ask_no_more();
    let piped = relay(target, &session, &patience).await?;
    target.pace.learn(patience.slowest());
    under.push(session);
    let Piped { read, write } = piped.over(under);
    Ok(Halves { read: Box::new(read), write, round_trip })
}

/// A login at the host that is meant.
pub(super) struct Connected {
    pub(super) session: SshSession,
    /// The sessions through which it goes.
    under: Vec<SshSession>,
    /// How the host accepted the login, for people.
    by: String,
    /// The round trip to the host, if it is reached directly.
    round_trip: Option<Duration>,
}

/// Logs in, asks aditd what is wrong there, and tries what else the login may do. Never asks a person.
pub(super) async fn inspect(target: &SshTarget) -> Result<Inspected, SshError> {
    let patience = patience(target, Tell::Nobody);
    let connecting = patience.bound(connect(target, false, &patience)).await;
    let Connected { session, under, by, .. } =
        connecting.unwrap_or_else(|e| Err(SshError::Silent(e)))?;
    let asked = async {
        let to = target.to_string();
        let mut piped = session.exec(&target.command(DOCTOR), &to).await?;
        piped.read.tells(&patience);
        match answer::report(&mut piped.read).await {
            Ok(report) => Ok(report),
            Err(why) => Err(ended(target, DOCTOR, &mut piped.read, why).await),
        }
    };
    let report = patience.bound(asked).await.unwrap_or_else(|e| Err(SshError::Silent(e)));
    let forwards = match target.relay_port {
        Some(port) => Some(forwarded(target, &session, port).await.map(drop)),
        None => None,
    };
    drop(under);
    Ok(Inspected { by, report, forwards })
}

pub(super) fn patience(target: &SshTarget, tell: Tell) -> Arc<Patience> {
    Arc::new(Patience::new(&target.to_string(), target.pace.bounds(), tell))
}

/// Runs the command first: it finds the server on any port, it works with a forced command, and it
/// does not need the right to forward. If it cannot be run or is slow, the relay's port on the
/// server's loopback is tried; it sends the same first line.
async fn relay(
    target: &SshTarget,
    session: &SshSession,
    patience: &Arc<Patience>,
) -> Result<Piped, SshError> {
    let by_command = by_command(target, session, patience);
    let beside = async {
        // Without `relay_port`, the default port may belong to another server.
        let Some(port) = target.relay_port else { return std::future::pending().await };
        tokio::time::sleep(HEAD_START).await;
        match forwarded(target, session, port).await {
            Ok(piped) => piped,
            Err(e) => {
                debug!("no relay by forwarding yet: {e}");
                std::future::pending().await
            }
        }
    };
    let failed = tokio::select! {
        relay = by_command => match relay {
            Ok(piped) => return Ok(piped),
            Err(e) => e,
        },
        piped = beside => return Ok(piped),
    };
    let port = target.relay_port.unwrap_or(ADITD_PORT);
    debug!("no relay by command ({failed}): trying port {port} of the server's loopback");
    forwarded(target, session, port).await.map_err(|e| {
        debug!("no relay by forwarding: {e}");
        match (&failed, &e) {
            // The key may only forward, and the port is the server's: this error says more.
            (SshError::NoAnswer { .. }, SshError::NotRunning { .. })
                if target.relay_port.is_some() =>
            {
                e
            }
            _ => failed,
        }
    })
}

async fn by_command(
    target: &SshTarget,
    session: &SshSession,
    patience: &Arc<Patience>,
) -> Result<Piped, SshError> {
    let to = target.to_string();
    patience.step(Step::Command, &to, None);
    let started = async {
        let mut piped = session.exec(&target.command("relay"), &to).await?;
        piped.read.tells(patience);
        match answer::relay(&mut piped.read).await {
            Ok(()) => Ok(piped),
            Err(why) => Err(ended(target, "relay", &mut piped.read, why).await),
        }
    };
    let mut piped = patience.bound(started).await.unwrap_or_else(|e| Err(SshError::Silent(e)))?;
    piped.read.tells_nobody();
    Ok(piped)
}

async fn forwarded(target: &SshTarget, session: &SshSession, port: u16) -> Result<Piped, SshError> {
    let to = target.to_string();
    let broken = |why: String| SshError::Broken { to: to.clone(), why };
    let opened = async {
        let mut piped = session.direct(LOOPBACK, port, &to).await?;
        match answer::relay(&mut piped.read).await {
            Ok(()) => Ok(piped),
            Err(why) => Err(why.told(target).unwrap_or_else(|e| broken(e.to_string()))),
        }
    };
    let opened = tokio::time::timeout(FORWARD_WITHIN, opened).await;
    opened.unwrap_or_else(|_| Err(broken("its relay does not answer".to_owned())))
}

pub(super) async fn ended(
    target: &SshTarget,
    arguments: &str,
    read: &mut Reading,
    why: NotBegun,
) -> SshError {
    let why = match why.told(target) {
        Ok(told) => return told,
        Err(why) => why.to_string(),
    };
    match tokio::time::timeout(LAST_WORDS, read.end()).await {
        Ok((code, said)) => SshError::of_command(target, arguments, code, &said),
        Err(_) => SshError::Ended { to: target.to_string(), said: why },
    }
}

/// Logs in at the destination. Returns its session, the sessions of the jump hosts below it, and the
/// round-trip time to it, if it is reached directly.
pub(super) async fn connect(
    target: &SshTarget,
    may_ask: bool,
    patience: &Arc<Patience>,
) -> Result<Connected, SshError> {
    let going = Connector {
        keyring: &target.keyring,
        may_ask,
        patience: patience.clone(),
        round_trip: Mutex::default(),
    };
    let (session, under, by) = going.to(&target.destination, target.port).await?;
    patience.step(Step::Command, &target.to_string(), None);
    let round_trip = *going.round_trip.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Connected { session, under, by, round_trip })
}

impl Connector<'_> {
    async fn to(
        &self,
        destination: &str,
        port: Option<u16>,
    ) -> Result<(SshSession, Vec<SshSession>, String), SshError> {
        let mut hosts = VecDeque::from([config::of(destination, port).await?]);
        // Puts the jump hosts before the host, then the first jump host's own jumps before it,
        // until the first host is reached directly.
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
        let (mut sessions, mut by) = (Vec::new(), String::new());
        for host in &hosts {
            let (session, shown) = self.hop(sessions.last(), host).await?;
            by = shown;
            sessions.push(session);
        }
        let nobody = || SshError::Broken {
            to: destination.to_owned(),
            why: "there is no host on the way".to_owned(),
        };
        let last = sessions.pop().ok_or_else(nobody)?;
        Ok((last, sessions, by))
    }

    /// Logs in at one host. Returns the session and how the host accepted the login.
    async fn hop(
        &self,
        from: Option<&SshSession>,
        host: &HostConfig,
    ) -> Result<(SshSession, String), SshError> {
        let may_ask = self.may_ask && !host.batch;
        let known = KnownHost::read(host, may_ask);
        let HostConfig { host_name, port, connect_timeout, .. } = host;
        let to = format!("{host_name} port {port}");
        self.patience.step(Step::Greeting, &to, *connect_timeout);
        let mut session = match from {
            Some(jump) => {
                let Piped { read, write } = jump.direct(host_name, *port, &to).await?;
                self.note_round_trip(None);
                self.patience.again();
                SshSession::open(tokio::io::join(read, write), &to, known, &self.patience).await?
            }
            None => {
                let tcp = self
                    .reach(host_name, *port, connect_timeout.unwrap_or(ADDRESS_WITHIN))
                    .await
                    .map_err(|why| SshError::Broken { to: to.clone(), why })?;
                SshSession::open(tcp, &to, known, &self.patience).await?
            }
        };
        self.patience.step(Step::Login, &to, None);
        let login = Login {
            session: &mut session,
            config: host,
            keyring: self.keyring,
            may_ask,
            patience: &self.patience,
            shown: String::new(),
        };
        let by = login.run().await.map_err(|e| match e {
            // `Login` does not know the host's name.
            SshError::Broken { why, .. } => SshError::Broken { to, why },
            other => other,
        })?;
        Ok((session, by))
    }

    fn note_round_trip(&self, time: Option<Duration>) {
        *self.round_trip.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }

    /// Connects to the first address that answers. Each address has its own time, so that a silent
    /// one does not use up that of the others.
    async fn reach(&self, host: &str, port: u16, within: Duration) -> Result<TcpStream, String> {
        let addresses = tokio::net::lookup_host((host, port)).await.map_err(|e| e.to_string())?;
        let mut why = "it has no address".to_owned();
        for address in addresses.take(MOST_ADDRESSES) {
            self.patience.again();
            let began = Instant::now();
            match tokio::time::timeout(within, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    self.note_round_trip(Some(began.elapsed()));
                    prepare(&tcp);
                    self.patience.again();
                    return Ok(tcp);
                }
                Ok(Err(e)) => why = e.to_string(),
                Err(_) => why = format!("{address} does not answer"),
            }
        }
        Err(why)
    }
}

/// Sends each token at once, behind few other bytes, and lets the kernel find out whether the
/// network is dead, because a host may take minutes to answer a login.
fn prepare(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    let socket = socket2::SockRef::from(tcp);
    let probes = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    let _ = socket.set_tcp_keepalive(&probes);
    #[cfg(target_os = "linux")]
    let _ = socket
        .set_tcp_user_timeout(Some(DEAD_AFTER))
        .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT));
}
