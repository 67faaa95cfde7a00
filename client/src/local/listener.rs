//! Listens where Ollama would listen, and carries every connection through the tunnel.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use common::{
    machine::report::{Exit, Failure},
    transport::{
        self, accept,
        splice::{self, Facing, Outcome, SpliceEnd, StillOpen, splice},
    },
};
use proto::{
    identity::Name,
    ollama::answer::ErrorAnswer,
    wire::{Code, OLLAMA_PORT, ServiceKind},
};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    dial::DialError,
    local::{
        answer, holder,
        owner::{OwnerRefusal, Owners},
    },
    tunnel::{Opened, Tunnel},
};

const BACKLOG: u32 = 1024;
/// A connection that cannot be carried is answered when its request arrives. This is how long that
/// may take.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// The value of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenAddr {
    /// `localhost:PORT`: this port of 127.0.0.1 and of ::1.
    Localhost(u16),
    /// One address.
    Address(SocketAddr),
}

impl std::str::FromStr for ListenAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "write it as localhost:PORT, 127.0.0.1:PORT or [::1]:PORT";
        if let Some(port) = text.strip_prefix("localhost:") {
            return Ok(Self::Localhost(port.parse().map_err(|_| WHY)?));
        }
        let address: SocketAddr = match text.parse() {
            Ok(address) => address,
            Err(_) => SocketAddr::new(text.parse::<IpAddr>().map_err(|_| WHY)?, OLLAMA_PORT),
        };
        if !address.ip().to_canonical().is_loopback() {
            return Err(
                "adit listens on loopback only: on another address, others could use the tunnel without a certificate",
            );
        }
        Ok(Self::Address(address))
    }
}

/// Binds every address; if there is none, Ollama's own port of both families. `name` is the
/// server's name as an argument of a command.
///
/// # Errors
/// If a port is taken; the failure names the process that holds it, if that can be known.
pub(crate) fn bind(listen: &[ListenAddr], name: &str) -> Result<Vec<TcpListener>, Failure> {
    let default = [ListenAddr::Localhost(OLLAMA_PORT)];
    let wanted = if listen.is_empty() { &default[..] } else { listen };
    let mut listeners = Vec::new();
    for listen in wanted {
        match *listen {
            ListenAddr::Address(address) => bind_once(&mut listeners, address)
                .map_err(|e| cannot_listen(address, &address.to_string(), name, e))?,
            ListenAddr::Localhost(port) => bind_localhost(&mut listeners, port, name)?,
        }
    }
    Ok(listeners)
}

/// Binds a port of both families, or only of IPv4 if there is no IPv6. With port 0 both families
/// get the same port.
fn bind_localhost(listeners: &mut Vec<TcpListener>, port: u16, name: &str) -> Result<(), Failure> {
    let shown = format!("localhost:{port}");
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    bind_once(listeners, v4).map_err(|e| cannot_listen(v4, &shown, name, e))?;
    let given = listeners.last().and_then(|last| last.local_addr().ok());
    let port = if port == 0 { given.map_or(0, |given| given.port()) } else { port };
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    match bind_once(listeners, v6) {
        Err(e)
            if matches!(e.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported) =>
        {
            debug!("no IPv6 here: {e}");
            Ok(())
        }
        bound => bound.map_err(|e| cannot_listen(v6, &shown, name, e)),
    }
}

/// Binds an address, unless it is bound already.
fn bind_once(listeners: &mut Vec<TcpListener>, address: SocketAddr) -> io::Result<()> {
    let is_bound = |listener: &TcpListener| listener.local_addr().is_ok_and(|a| a == address);
    if !listeners.iter().any(is_bound) {
        listeners.push(bind_one(address)?);
    }
    Ok(())
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for old connections in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn cannot_listen(address: SocketAddr, shown: &str, name: &str, error: io::Error) -> Failure {
    let failure = Failure::new(format!("cannot listen on {shown}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let other = if address.port() == 11500 { 11501 } else { 11500 };
            let run = format!("`adit up{name} --listen localhost:{other}`");
            let holder = holder::of(address);
            let failure = failure
                .source(format!("address already in use by {holder}"))
                .hint(format!("choose another port: {run}"))
                .hint(format!("tools then need OLLAMA_HOST=localhost:{other}"));
            if holder.contains("(pid ") {
                return failure;
            }
            failure.hint(format!(
                "to see which program it is: `sudo ss -ltnp 'sport = :{}'`",
                address.port()
            ))
        }
        io::ErrorKind::PermissionDenied => failure
            .source(error)
            .hint("ports below 1024 need root: choose another with --listen")
            .exit(Exit::Failed),
        io::ErrorKind::AddrNotAvailable => {
            failure.source(error).hint("this machine has no such address")
        }
        _ => failure.source(error),
    }
}

/// Accepts connections until `front.stop` is cancelled. Each connection is a task in `connections`.
pub(crate) async fn accept(listener: TcpListener, front: Front, connections: TaskTracker) {
    loop {
        let (tcp, _) = tokio::select! {
            taken = accept::accept("applications", || listener.accept()) => taken,
            () = front.stop.cancelled() => return,
        };
        let front = front.clone();
        connections.spawn(async move { front.carry(tcp).await });
    }
}

/// What is needed to carry a local connection.
#[derive(Clone)]
pub(crate) struct Front {
    /// Whose connections are accepted.
    pub(crate) owners: Arc<Owners>,
    pub(crate) tunnel: Tunnel,
    /// The service of this listener.
    pub(crate) service: Name,
    /// How long a connection waits for a tunnel.
    pub(crate) hold: Duration,
    /// Cancelled when no more connections are accepted, and those without an answer under way have
    /// to end.
    pub(crate) stop: CancellationToken,
}

impl Front {
    /// Carries one connection to its end.
    async fn carry(&self, tcp: TcpStream) {
        if transport::prepare_local(&tcp).is_err() {
            return;
        }
        if let Err(refused) = self.judge(&tcp) {
            return self.turn_away(tcp, refused).await;
        }
        let mut still_open = Some(tcp);
        while let Some(tcp) = still_open.take() {
            // With HTTP the application sends first; with another service the server may.
            if self.tunnel.kind(&self.service) == ServiceKind::Http && !self.is_asked(&tcp).await {
                return;
            }
            still_open = self.join(tcp).await;
        }
    }

    /// Waits for a request. False if there will be none.
    async fn is_asked(&self, tcp: &TcpStream) -> bool {
        let mut first = [0];
        tokio::select! {
            biased;
            peeked = tcp.peek(&mut first) => peeked.is_ok_and(|count| count > 0),
            () = self.stop.cancelled() => false,
        }
    }

    /// Joins a connection and a stream until one of them ends. Returns the connection if it is
    /// still open and no request is under way: its next request gets another stream.
    async fn join(&self, tcp: TcpStream) -> Option<TcpStream> {
        let opened = tokio::select! {
            biased;
            opened = self.tunnel.open(&self.service, self.hold) => opened,
            // The application has aborted while it waited.
            _ = tcp.ready(Interest::ERROR) => {
                splice::abort(tcp);
                return None;
            }
            () = self.stop.cancelled() => Err(answer::stopping()),
        };
        let Opened { send, recv, kind, since } = match opened {
            Ok(opened) => opened,
            Err(answer) => {
                self.answer_when_asked(tcp, Vec::new(), &answer).await;
                return None;
            }
        };
        let (facing, give_up) = (Facing::Application(kind), self.tunnel.unheard(since, self.hold));
        let counters = &self.tunnel.counters;
        let Outcome { end, still_open } =
            splice(tcp, send, recv, facing, counters, &self.stop, give_up).await;
        debug!("a stream ended: {end:?}");
        match still_open {
            StillOpen::Nothing => None,
            StillOpen::Idle(tcp) => Some(tcp),
            StillOpen::Unanswered(tcp, line) => {
                if let Some(answer) = self.answer_for(end) {
                    self.answer_when_asked(tcp, line, &answer).await;
                }
                None
            }
        }
    }

    /// The answer to a request whose stream ended before its answer began.
    fn answer_for(&self, end: SpliceEnd) -> Option<ErrorAnswer> {
        Some(match end {
            SpliceEnd::Reset(code) => answer::for_code(Code::from_number(code.into_inner())),
            SpliceEnd::Lost(e) => match DialError::from_connection(&e, "the server") {
                DialError::Refused(code) => answer::for_code(Some(code)),
                _ => answer::for_code(Some(Code::Cut)),
            },
            SpliceEnd::GivenUp => self.tunnel.gave_up(),
            SpliceEnd::Done | SpliceEnd::Drained | SpliceEnd::Aborted => return None,
        })
    }

    fn judge(&self, tcp: &TcpStream) -> Result<(), OwnerRefusal> {
        judged(tcp, |peer, local| self.owners.judge(peer, local))
    }

    async fn turn_away(&self, tcp: TcpStream, refused: OwnerRefusal) {
        debug!("refused a local connection: {refused:?}");
        match refused.answer().await {
            Some(answer) => self.answer_when_asked(tcp, Vec::new(), &answer).await,
            None => splice::abort(tcp),
        }
    }

    /// Answers a request. `head` is what has been read of it so far; the rest of its first line is
    /// waited for, for at most [`ASK_WITHIN`].
    async fn answer_when_asked(&self, mut tcp: TcpStream, mut head: Vec<u8>, answer: &ErrorAnswer) {
        if self.tunnel.kind(&self.service) == ServiceKind::Tcp {
            return splice::abort(tcp);
        }
        let line = async {
            while !head.contains(&b'\n')
                && head.len() < 8192
                && tcp.read_buf(&mut head).await.is_ok_and(|n| n > 0)
            {}
        };
        let asked = tokio::select! {
            asked = tokio::time::timeout(ASK_WITHIN, line) => asked.is_ok(),
            // Stopping does not wait for a request that may never come.
            () = self.stop.cancelled() => false,
        };
        debug!(asked, "answered {}", answer.status);
        answer::send(answer, tcp, &head).await;
    }
}

/// Judges a connection by its two addresses.
fn judged(
    tcp: &TcpStream,
    judge: impl FnOnce(SocketAddr, SocketAddr) -> Result<(), OwnerRefusal>,
) -> Result<(), OwnerRefusal> {
    // An error means that the connection was aborted already.
    let gone = |_| OwnerRefusal::Closed;
    let (peer, local) = (tcp.peer_addr().map_err(gone)?, tcp.local_addr().map_err(gone)?);
    judge(peer, local)?;
    // If the connection was aborted meanwhile, another one may have taken its addresses and been
    // judged instead. If it is still connected, it was the one that was judged.
    tcp.peer_addr().map_err(gone)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_can_be_listened_on() {
        for bad in
            ["0.0.0.0:11434", "[::]:1", "192.168.1.7:1", "gpu.lan:1", "nonsense", "localhost"]
        {
            assert!(bad.parse::<ListenAddr>().is_err(), "{bad}");
        }
        assert_eq!("localhost:7".parse(), Ok(ListenAddr::Localhost(7)));
        assert_eq!("[::1]:7".parse(), Ok(ListenAddr::Address("[::1]:7".parse().expect("address"))));
        assert_eq!(
            "127.0.0.2".parse(),
            Ok(ListenAddr::Address("127.0.0.2:11434".parse().expect("address")))
        );
    }

    #[tokio::test]
    async fn a_taken_port_is_refused_with_a_way_out() {
        let first = bind(&[ListenAddr::Localhost(0)], "").expect("bound");
        let port = first[0].local_addr().expect("address").port();
        let error = bind(&[ListenAddr::Localhost(port)], " lab").expect_err("taken").to_string();
        assert!(error.contains("in use by"), "{error}");
        let own = format!("pid {}", std::process::id());
        assert!(!error.contains(&own), "this process itself is no news: {error}");
        assert!(error.contains("`adit up lab --listen localhost:11500`"), "{error}");
    }

    #[tokio::test]
    async fn who_is_gone_when_the_judgement_comes_is_not_let_in_for_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let pair = async || {
            let app = TcpStream::connect(address).await.expect("connected");
            (app, listener.accept().await.expect("accepted").0)
        };
        let (app, tcp) = pair().await;
        assert_eq!(judged(&tcp, |_, _| Ok(())), Ok(()));
        // It has sent its whole request, and waits for the answer.
        socket2::SockRef::from(&app).shutdown(std::net::Shutdown::Write).expect("ended");
        assert_eq!(judged(&tcp, |_, _| Ok(())), Ok(()));

        let (app, tcp) = pair().await;
        let aborted = judged(&tcp, |_, _| {
            splice::abort(app);
            Ok(())
        });
        assert_eq!(aborted, Err(OwnerRefusal::Closed));
        assert_eq!(judged(&tcp, |_, _| panic!("it has no peer")), Err(OwnerRefusal::Closed));
    }
}
