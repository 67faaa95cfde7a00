//! The relay on loopback: what a key that may only forward reaches over SSH. It carries framed
//! datagrams to the UDP port of the same number, so that who connects here can do what they could
//! do with UDP on this machine, and nothing more.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use common::{
    machine::process::{Protocol, port_holder},
    transport::{accept::accept, carrier},
};
use proto::wire::SSH_MARKER;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tracing::{debug, info, warn};

/// A device needs one, and for a moment a second.
const MOST: usize = 64;
/// Whoever has read the first line has something to say.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(15);

/// A listener on loopback, and the UDP address that it leads to.
#[derive(Debug)]
pub struct Relay {
    listener: TcpListener,
    to: SocketAddr,
}

impl Relay {
    /// One for each of the UDP addresses that can be reached over loopback.
    pub async fn beside(listening: &[SocketAddr]) -> Vec<Self> {
        let mut relays: Vec<Self> = Vec::new();
        for to in listening.iter().filter_map(|to| on_loopback(*to)) {
            if !relays.iter().any(|relay| relay.to == to) {
                relays.extend(Self::bind(to).await);
            }
        }
        relays
    }

    /// Listens on the same port as the UDP socket. One that is taken is a warning and no failure:
    /// `aditd relay` works without this.
    async fn bind(to: SocketAddr) -> Option<Self> {
        match TcpListener::bind(to).await {
            Ok(listener) => Some(Self { listener, to }),
            Err(e) => {
                let holder = port_holder(to, Protocol::TCP)
                    .map_or_else(String::new, |holder| format!(", by {holder}"));
                warn!(
                    "no relay for SSH keys that may only forward: cannot listen on {to} (TCP): {e}{holder}"
                );
                None
            }
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.to.port()
    }

    /// Relays for as long as it is polled.
    pub async fn serve(self) {
        info!("relaying for SSH on {} (TCP)", self.to);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                (tcp, from) = accept("the relay for SSH", || self.listener.accept()) => {
                    if connections.len() >= MOST {
                        debug!(%from, "{MOST} connections to the relay are open: no more");
                        continue;
                    }
                    let to = self.to;
                    connections.spawn(async move {
                        let end = carry(tcp, to).await;
                        debug!(%from, "a relayed connection ended: {end}");
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// How a UDP address is reached over loopback.
fn on_loopback(address: SocketAddr) -> Option<SocketAddr> {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip if ip.is_loopback() => ip,
        _ => return None,
    };
    Some(SocketAddr::new(ip, address.port()))
}

async fn carry(mut tcp: TcpStream, to: SocketAddr) -> io::Error {
    let begun = async {
        tcp.set_nodelay(true)?;
        tcp.write_all(SSH_MARKER.as_bytes()).await?;
        // One that says nothing does not keep its place.
        let first = tokio::time::timeout(FIRST_WORD_WITHIN, tcp.peek(&mut [0])).await;
        first.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    };
    match begun.await {
        Ok(0) => io::ErrorKind::UnexpectedEof.into(),
        Ok(_) => {
            let (read, write) = tcp.into_split();
            carrier::relay(read, write, to).await
        }
        Err(e) => e,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn it_says_who_it_is_and_carries_datagrams_to_the_same_port() {
        let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let to = udp.local_addr().expect("an address");
        // Somebody else may have the port's other half.
        let Some(relay) = Relay::bind(to).await else { return };
        assert_eq!(relay.port(), to.port());
        assert!(Relay::bind(to).await.is_none(), "a taken port is no failure");
        let serving = tokio::spawn(relay.serve());
        let mut tcp = TcpStream::connect(to).await.expect("connected");
        tcp.write_all(&[0, 3, b'a', b'b', b'c']).await.expect("sent");
        let mut datagram = [0; 16];
        let (n, from) = udp.recv_from(&mut datagram).await.expect("a datagram");
        assert_eq!(&datagram[..n], b"abc");
        udp.send_to(b"de", from).await.expect("answered");
        let mut said = vec![0; SSH_MARKER.len() + 4];
        tcp.read_exact(&mut said).await.expect("an answer");
        assert_eq!(said, [SSH_MARKER.as_bytes(), &[0, 2, b'd', b'e']].concat());
        serving.abort();
    }

    #[test]
    fn it_is_on_loopback_alone() {
        for (udp, tcp) in [
            ("127.0.0.1:7", Some("127.0.0.1:7")),
            ("[::1]:7", Some("[::1]:7")),
            ("0.0.0.0:7", Some("127.0.0.1:7")),
            ("[::]:7", Some("[::1]:7")),
            ("192.0.2.1:7", None),
        ] {
            let address = |text: &str| text.parse::<SocketAddr>().expect(text);
            assert_eq!(on_loopback(address(udp)), tcp.map(address), "{udp}");
        }
    }
}
