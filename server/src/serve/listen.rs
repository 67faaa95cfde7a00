//! The UDP sockets of the server. They are bound before anything else is created, so that a start
//! that fails leaves nothing behind.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use common::{
    machine::{
        process::{Protocol, port_holder},
        report::Failure,
    },
    transport,
};
use proto::wire::ADITD_PORT;
use tracing::debug;

use crate::config::Config;

/// Binds a socket for each address.
///
/// # Errors
/// When one can't be bound; the others are closed then.
pub(crate) fn bind(config: &Config) -> Result<Vec<UdpSocket>, Failure> {
    config
        .listen
        .iter()
        .map(|address| transport::socket(*address).map_err(|e| failed(*address, e, &config.listen)))
        .filter_map(|bound| skip_missing_ipv6(bound, &config.listen))
        .collect()
}

fn failed(address: SocketAddr, error: io::Error, all: &[SocketAddr]) -> Failure {
    let failure = Failure::new(format!("cannot listen on {address} (UDP)"));
    match error.kind() {
        io::ErrorKind::AddrInUse if let Some(other) = earlier(all, address) => failure
            .source(format!("aditd itself listens on {other} already, and {address} is a part of that"))
            .hint("name only one of the two"),
        io::ErrorKind::AddrInUse => match port_holder(address, Protocol::UDP) {
            Some(holder) => failure.source(format!("address already in use by {holder}")),
            None => failure
                .source(error)
                .hint(format!("see who has it: `sudo ss -lupn 'sport = :{}'`", address.port())),
        }
        .hint("choose another with --listen"),
        io::ErrorKind::PermissionDenied => {
            failure.source(error).hint("choose a port above 1023 with --listen")
        }
        io::ErrorKind::AddrNotAvailable => failure.source(error).hint(
            "this machine has no such address: see those it has with `ip address`, or listen on 0.0.0.0",
        ),
        _ => failure.source(error),
    }
}

/// An address that this process has bound before, which includes it or is included in it.
fn earlier(all: &[SocketAddr], address: SocketAddr) -> Option<SocketAddr> {
    let covers = |other: &&SocketAddr| {
        let any = other.ip().is_unspecified() || address.ip().is_unspecified();
        any && other.port() == address.port() && other.is_ipv4() == address.is_ipv4()
    };
    all.iter().take_while(|other| **other != address).find(covers).copied()
}

/// Skips the IPv6 half of the default addresses on a machine without IPv6.
fn skip_missing_ipv6<T>(
    bound: Result<T, Failure>,
    all: &[SocketAddr],
) -> Option<Result<T, Failure>> {
    let default: [SocketAddr; 2] =
        [(Ipv4Addr::LOCALHOST, ADITD_PORT).into(), (Ipv6Addr::LOCALHOST, ADITD_PORT).into()];
    match bound {
        Err(e) if all == default && !has_ipv6() => {
            debug!("no IPv6 on this machine: {e}");
            None
        }
        other => Some(other),
    }
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
