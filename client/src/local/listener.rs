//! Listens where Ollama would listen, and where containers find it. An address that is not loopback
//! needs the networks that may use it.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use common::machine::{
    network::own_network_or_example,
    report::{Exit, Failure},
};
use if_addrs::IfAddr;
use ipnet::IpNet;
use proto::{identity::Name, wire::OLLAMA_PORT};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpSocket};
use tracing::debug;

use crate::local::holder;

const BACKLOG: u32 = 1024;

/// The value of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum ListenAddr {
    /// `localhost:PORT`: this port of 127.0.0.1 and of ::1.
    Localhost(u16),
    /// One address.
    Address(SocketAddr),
    /// `docker`, `docker:PORT`: this port of the address that the bridge of Docker has here.
    Docker(u16),
    /// `unix:/PATH`, `unix:/PATH:GROUP`: a Unix socket.
    Unix {
        /// Its file.
        path: PathBuf,
        /// The group that may use it, besides the user who runs adit.
        group: Option<Name>,
    },
}

impl std::str::FromStr for ListenAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "write it as localhost:PORT, 127.0.0.1:PORT, [::1]:PORT, ADDRESS:PORT, docker, unix:/PATH or unix:/PATH:GROUP";
        if let Some(socket) = text.strip_prefix("unix:") {
            let (path, group) = match socket.split_once(':') {
                Some((path, group)) => (path, Some(group.parse().map_err(|_| WHY)?)),
                None => (socket, None),
            };
            let is_file = path.starts_with('/') && !path.ends_with('/');
            return is_file.then(|| Self::Unix { path: path.into(), group }).ok_or(WHY);
        }
        if text == "docker" {
            return Ok(Self::Docker(OLLAMA_PORT));
        }
        if let Some(port) = text.strip_prefix("docker:") {
            return Ok(Self::Docker(port.parse().map_err(|_| WHY)?));
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            return Ok(Self::Localhost(port.parse().map_err(|_| WHY)?));
        }
        let address: SocketAddr = match text.parse() {
            Ok(address) => address,
            Err(_) => SocketAddr::new(text.parse::<IpAddr>().map_err(|_| WHY)?, OLLAMA_PORT),
        };
        Ok(Self::Address(address))
    }
}

impl TryFrom<String> for ListenAddr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map_err(|why| format!("`{text}` is not an address to listen on: {why}"))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Address(address) => address.fmt(f),
            Self::Docker(OLLAMA_PORT) => f.write_str("docker"),
            Self::Docker(port) => write!(f, "docker:{port}"),
            Self::Unix { path, group: None } => write!(f, "unix:{}", path.display()),
            Self::Unix { path, group: Some(group) } => write!(f, "unix:{}:{group}", path.display()),
        }
    }
}

/// The bridge that Docker makes.
const BRIDGE: &str = "docker0";

/// Why it is impossible to listen.
#[derive(Debug)]
pub(crate) enum ListenError {
    /// Another program holds the address.
    Taken(TakenAddress),
    /// Another reason.
    Failed(Failure),
}

/// An address that another program holds.
#[derive(Debug)]
pub(crate) struct TakenAddress {
    pub(crate) address: SocketAddr,
    /// As the user named it.
    shown: String,
}

impl From<Failure> for ListenError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Binds every address that has a port; if there is no address at all, Ollama's own port of both
/// families. `networks` may use those
/// that are not loopback. `name` is the server's name as an argument of a command.
///
/// # Errors
/// If an address is not loopback and there are no `networks`: without a certificate others could use
/// the tunnel. If a port is taken.
pub(crate) fn bind(
    listen: &[ListenAddr],
    networks: &[IpNet],
    name: &str,
) -> Result<Vec<TcpListener>, ListenError> {
    let default = [ListenAddr::Localhost(OLLAMA_PORT)];
    let wanted = if listen.is_empty() { &default[..] } else { listen };
    refuse_open(wanted, networks, name)?;
    let mut listeners = Vec::new();
    for listen in wanted {
        match *listen {
            ListenAddr::Unix { .. } => {}
            ListenAddr::Address(address) => bind_once(&mut listeners, address)
                .map_err(|e| cannot_listen(address, &address.to_string(), e))?,
            ListenAddr::Docker(port) => {
                let address = SocketAddr::new(bridge()?.addr(), port);
                bind_once(&mut listeners, address)
                    .map_err(|e| cannot_listen(address, &listen.to_string(), e))?;
            }
            ListenAddr::Localhost(port) => bind_localhost(&mut listeners, port)
                .map_err(|(at, e)| cannot_listen(at, &format!("localhost:{port}"), e))?,
        }
    }
    Ok(listeners)
}

/// Binds a port of both families, if it is free.
pub(crate) fn bind_free(port: u16) -> Option<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    bind_localhost(&mut listeners, port).is_ok().then_some(listeners)
}

/// Checks that each address is loopback, or that the networks are named which may use the others. `name`
/// is the server's name as an argument of a command.
///
/// # Errors
/// Exit code 2 if not.
fn refuse_open(listen: &[ListenAddr], networks: &[IpNet], name: &str) -> Result<(), Failure> {
    let is_open = |listen: &&ListenAddr| match listen {
        ListenAddr::Localhost(_) | ListenAddr::Unix { .. } => false,
        ListenAddr::Address(address) => !address.ip().to_canonical().is_loopback(),
        ListenAddr::Docker(_) => true,
    };
    let Some(open) = listen.iter().find(is_open).filter(|_| networks.is_empty()) else {
        return Ok(());
    };
    let network = match open {
        ListenAddr::Docker(_) => bridge()?.trunc().to_string(),
        _ => own_network_or_example(),
    };
    Err(open_to_all(open, &network, name))
}

fn open_to_all(listen: &ListenAddr, network: &str, name: &str) -> Failure {
    Failure::new(format!("refusing to listen on {listen}"))
        .source("it is not loopback, and no --allow-from is set: others could use the tunnel without a certificate")
        .hint(format!(
            "name the networks, for example `adit up{name} --listen {listen} --allow-from {network}`"
        ))
        .exit(Exit::Usage)
}

/// The address of Docker's bridge, with its network.
fn bridge() -> Result<IpNet, Failure> {
    let failed = |why: String| {
        Failure::new("cannot listen where containers find it")
            .source(why)
            .hint("start Docker: `sudo systemctl start docker`")
            .hint("for another bridge, name its address: `ip -4 address` shows it")
    };
    let all = if_addrs::get_if_addrs().map_err(|e| failed(e.to_string()))?;
    let of_bridge = all.into_iter().filter(|interface| interface.name == BRIDGE);
    let mut v4 = of_bridge.filter_map(|interface| match interface.addr {
        IfAddr::V4(v4) => IpNet::with_netmask(v4.ip.into(), v4.netmask.into()).ok(),
        IfAddr::V6(_) => None,
    });
    v4.next()
        .ok_or_else(|| failed(format!("there is no interface `{BRIDGE}` with an IPv4 address")))
}

/// Binds a port of both families, or only of IPv4 if there is no IPv6. With port 0 both families
/// get the same port.
fn bind_localhost(
    listeners: &mut Vec<TcpListener>,
    port: u16,
) -> Result<(), (SocketAddr, io::Error)> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    bind_once(listeners, v4).map_err(|e| (v4, e))?;
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
        bound => bound.map_err(|e| (v6, e)),
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

fn cannot_listen(address: SocketAddr, shown: &str, error: io::Error) -> ListenError {
    let failure = Failure::new(format!("cannot listen on {shown}"));
    let failure = match error.kind() {
        io::ErrorKind::AddrInUse => {
            return ListenError::Taken(TakenAddress { address, shown: shown.to_owned() });
        }
        io::ErrorKind::PermissionDenied => failure
            .source(error)
            .hint("ports below 1024 need root: choose another with --listen")
            .exit(Exit::Failed),
        io::ErrorKind::AddrNotAvailable => {
            failure.source(error).hint("this machine has no such address")
        }
        _ => failure.source(error),
    };
    ListenError::Failed(failure)
}

impl TakenAddress {
    /// The failure for a service besides Ollama. `name` is the server's name as an argument of a
    /// command. Blocks, for at most some seconds.
    pub(crate) fn service_failure(&self, name: &str, service: &Name) -> Failure {
        let other = self.address.port().checked_add(1).unwrap_or(8000);
        Failure::new(format!("cannot listen on {} for the service `{service}`", self.shown))
            .source(format!("address already in use by {}", holder::of(self.address)))
            .hint(format!(
                "choose another port: `adit up{name} --service {service}=localhost:{other}`"
            ))
    }

    /// The failure, with the program that holds the address: `known`, or what can be found out.
    /// `name` is the server's name as an argument of a command. Blocks, for at most some seconds.
    pub(crate) fn failure(&self, name: &str, known: Option<String>) -> Failure {
        let other = if self.address.port() == 11500 { 11501 } else { 11500 };
        let run = format!("`adit up{name} --listen localhost:{other}`");
        let holder = known.unwrap_or_else(|| holder::of(self.address));
        let failure = Failure::new(format!("cannot listen on {}", self.shown))
            .source(format!("address already in use by {holder}"))
            .hint(format!("choose another port: {run}"))
            .hint(format!("tools then need OLLAMA_HOST=http://localhost:{other}"));
        if holder.contains("(pid ") {
            return failure;
        }
        failure.hint(format!(
            "to see which program it is: `sudo ss -ltnp 'sport = :{}'`",
            self.address.port()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_can_be_listened_on_unless_the_networks_are_named() {
        for bad in [
            "gpu.lan:1",
            "nonsense",
            "localhost",
            "docker:",
            "docker:x",
            "docker0",
            "unix:",
            "unix:x",
            "unix:/x/",
            "unix:/x:",
            "unix:/x:a b",
            "",
        ] {
            assert!(bad.parse::<ListenAddr>().is_err(), "{bad}");
        }
        for open in ["0.0.0.0:11434", "[::]:1", "192.168.1.7:1", "[::ffff:192.168.1.7]:1"] {
            let listen = open.parse::<ListenAddr>().expect("an address");
            let error = bind(&[listen], &[], " lab").expect_err("refused");
            let ListenError::Failed(error) = error else { panic!("{error:?}") };
            assert_eq!(error.exit_code(), Exit::Usage, "{open}");
            let network = own_network_or_example();
            let cure = format!("`adit up lab --listen {open} --allow-from {network}`");
            assert!(error.to_string().contains(&cure), "{error}");
        }
        assert_eq!("docker".parse(), Ok(ListenAddr::Docker(OLLAMA_PORT)));
        assert_eq!("docker:7".parse(), Ok(ListenAddr::Docker(7)));
        for socket in ["unix:/run/adit.sock", "unix:/run/adit.sock:docker"] {
            let listen = socket.parse::<ListenAddr>().expect("a socket");
            assert_eq!(listen.to_string(), socket);
            assert!(bind(&[listen], &[], "").expect("no port").is_empty());
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
        let first = bind(&[ListenAddr::Localhost(0)], &[], "").expect("bound");
        let port = first[0].local_addr().expect("address").port();
        let error = bind(&[ListenAddr::Localhost(port)], &[], " lab").expect_err("taken");
        let ListenError::Taken(taken) = error else { panic!("{error:?}") };
        let error = taken.failure(" lab", None).to_string();
        assert!(error.contains("in use by"), "{error}");
        let own = format!("pid {}", std::process::id());
        assert!(!error.contains(&own), "this process itself is no news: {error}");
        assert!(error.contains("`adit up lab --listen localhost:11500`"), "{error}");
    }
}
