//! The TCP sockets of the listener, bound before a state is made.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use common::machine::{
    process::{Protocol, port_holder},
    report::Failure,
};
use socket2::{Domain, Socket, Type};

/// How many connections may wait to be taken.
const BACKLOG: i32 = 256;

/// Sockets that are bound.
pub(crate) type Bound = Vec<TcpListener>;

/// Binds a socket for each address.
///
/// # Errors
/// When one can't be bound; the others are closed then.
pub(crate) fn bind(addresses: &[SocketAddr]) -> Result<Bound, Failure> {
    addresses.iter().map(|address| socket(*address).map_err(|e| failed(*address, e))).collect()
}

fn socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart does not wait for the connections of the server before it.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn failed(address: SocketAddr, error: io::Error) -> Failure {
    let failure = Failure::new(format!("cannot listen on {address} (HTTPS)"));
    match error.kind() {
        io::ErrorKind::AddrInUse => match port_holder(address, Protocol::TCP) {
            Some(holder) => failure.source(format!("address already in use by {holder}")),
            None => failure
                .source(error)
                .hint(format!("see who has it: `sudo ss -ltnp 'sport = :{}'`", address.port())),
        }
        .hint("choose another with --https"),
        io::ErrorKind::PermissionDenied => {
            failure.source(error).hint("choose a port above 1023 with --https")
        }
        io::ErrorKind::AddrNotAvailable => failure.source(error).hint(
            "this machine has no such address: see those it has with `ip address`, or listen on 0.0.0.0",
        ),
        _ => failure.source(error),
    }
}
