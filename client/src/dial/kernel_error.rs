//! Asks the kernel whether it can reach an address. QUIC itself does not notice: its socket ignores
//! these errors, because a session has to survive them.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use common::transport::any_address;
use tokio::net::UdpSocket;

/// The kernel's error for an address.
#[derive(Debug, Clone)]
pub struct KernelError {
    /// The address, for people.
    to: String,
    error: Arc<io::Error>,
}

/// Waits for an error of the kernel for `address`, for ever if there is none. Sends one byte, which
/// a server drops. Cancellation safe.
pub(super) async fn of(address: SocketAddr, to: &str) -> KernelError {
    match ask(address).await {
        Err(error) => KernelError { to: to.to_owned(), error: Arc::new(error) },
        Ok(never) => match never {},
    }
}

async fn ask(address: SocketAddr) -> io::Result<std::convert::Infallible> {
    let socket = UdpSocket::bind(any_address(address)).await?;
    socket.connect(address).await?;
    socket.send(&[0]).await?;
    loop {
        socket.recv(&mut [0]).await?;
    }
}

impl KernelError {
    /// How much this error says in comparison with other failures: a refusal says more than
    /// silence.
    pub(super) fn weight(&self) -> u8 {
        if self.error.kind() == io::ErrorKind::ConnectionRefused { 4 } else { 1 }
    }

    /// How to cure it.
    pub(super) fn hint(&self) -> &'static str {
        match self.error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "nothing listens on that UDP port there: check on the server that aditd runs and listens on that address (`aditd status`)"
            }
            io::ErrorKind::PermissionDenied => {
                "a firewall of this computer forbids it: allow UDP to that address"
            }
            _ => {
                "check that this computer is online, and that the VPN is up if the server needs one"
            }
        }
    }
}

impl std::error::Error for KernelError {}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot reach {}: {}", self.to, self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_an_error_and_a_silent_one_is_none() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("an address");
        let heard = async { silent.recv(&mut [0]).await.expect("the byte") };
        tokio::select! {
            kernel_error = of(address, "gpu") => panic!("{kernel_error}"),
            _ = heard => {}
        }
        drop(silent);
        let kernel_error = of(address, "gpu").await;
        assert_eq!(kernel_error.error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(kernel_error.to_string().starts_with("cannot reach gpu: "), "{kernel_error}");
    }

    #[tokio::test]
    async fn an_address_that_the_kernel_refuses_is_told_at_once() {
        // A socket that has not asked for it may not send to everybody.
        let kernel_error = of("255.255.255.255:7".parse().expect("an address"), "gpu").await;
        assert_ne!(kernel_error.error.kind(), io::ErrorKind::ConnectionRefused, "{kernel_error}");
        assert_eq!(kernel_error.weight(), 1);
    }
}
