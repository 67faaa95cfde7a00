//! Whether a server runs on this machine, and where it listens, as a command over SSH can find out.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use common::machine::{control, report::Failure};
use tokio::net::UdpSocket;

use crate::{
    config::Config,
    running::{Answer, Request},
    serve::started,
};

/// How long to wait for the kernel's error. It reports at once that nobody listens on a port of
/// loopback; a server does not answer.
const VERDICT_WITHIN: Duration = Duration::from_millis(100);

/// The loopback address of the running server. A key that may only relay needs no access to the
/// server's state: then the port is the one that the device knows (`known`), or that of the
/// configuration.
pub(super) async fn server(config: &Config, known: Option<u16>) -> Result<SocketAddr, Failure> {
    if let Ok(Some(Answer::Status(status))) =
        control::ask(&config.state_dir, &Request::Status).await
    {
        let listening: Vec<_> = status.listening.iter().filter_map(|a| a.parse().ok()).collect();
        if let Some(to) = best(&listening) {
            return Ok(to);
        }
    }
    let candidates = candidates(config, known);
    first_listening(&candidates).await.ok_or_else(|| {
        let ports = candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        not_running(&config.state_dir, &format!("nothing listens on UDP {ports}"))
    })
}

/// The error when no server runs, with how to start it.
pub(super) fn not_running(state_dir: &Path, why: &str) -> Failure {
    Failure::new(format!("aditd is not running on {}", host())).source(why).hint(
        match started::command(state_dir) {
            command if command == "aditd serve" => {
                "start it there: `aditd serve`, or `sudo systemctl start aditd` if it is a service"
                    .to_owned()
            }
            command => format!("start it there: `{command}`"),
        },
    )
}

/// The host name of this machine.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Where the server may listen, the likeliest address first.
pub(in crate::commands) fn candidates(config: &Config, known: Option<u16>) -> Vec<SocketAddr> {
    let mut candidates = Vec::new();
    let both =
        |port| [(IpAddr::from(Ipv4Addr::LOCALHOST), port), (Ipv6Addr::LOCALHOST.into(), port)];
    let known = known.into_iter().flat_map(both).map(SocketAddr::from);
    let configured =
        best(&config.listen).into_iter().chain(config.listen.iter().copied().map(here));
    for candidate in known.chain(configured) {
        if !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    candidates
}

/// The first of these addresses at which somebody listens.
pub(in crate::commands) async fn first_listening(candidates: &[SocketAddr]) -> Option<SocketAddr> {
    for candidate in candidates {
        if is_listened_on(*candidate).await.unwrap_or(false) {
            return Some(*candidate);
        }
    }
    None
}

/// Sends one byte, which a server drops, and waits for the kernel's error.
async fn is_listened_on(to: SocketAddr) -> io::Result<bool> {
    let own: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(to).await?;
    socket.send(&[0]).await?;
    match tokio::time::timeout(VERDICT_WITHIN, socket.recv(&mut [0])).await {
        Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Ok(Err(e)) => Err(e),
        Ok(Ok(_)) | Err(_) => Ok(true),
    }
}

/// The listening address that can be reached over loopback, if there is one.
fn best(listening: &[SocketAddr]) -> Option<SocketAddr> {
    let first = listening.iter().find(|address| address.ip().is_loopback()).or(listening.first());
    first.copied().map(here)
}

/// How to reach an address from this machine.
fn here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_says_whether_somebody_listens() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let there = silent.local_addr().expect("an address");
        let closed = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let gone = closed.local_addr().expect("an address");
        drop(closed);
        assert_eq!(first_listening(&[gone, there]).await, Some(there));
        assert_eq!(first_listening(&[gone]).await, None);
    }

    #[test]
    fn loopback_is_preferred_and_a_wildcard_address_is_reached_there() {
        let listening =
            |all: &[&str]| all.iter().map(|a| a.parse().expect("an address")).collect::<Vec<_>>();
        for (all, found) in [
            (&["192.0.2.1:7", "[::1]:8"][..], "[::1]:8"),
            (&["0.0.0.0:7"], "127.0.0.1:7"),
            (&["[::]:7"], "[::1]:7"),
            (&["192.0.2.1:7"], "192.0.2.1:7"),
        ] {
            assert_eq!(best(&listening(all)), Some(found.parse().expect("an address")), "{all:?}");
        }
        assert_eq!(best(&[]), None);
    }
}
