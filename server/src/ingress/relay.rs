//! The relay on loopback: SSH keys that may only forward ports reach it over SSH. It carries framed
//! datagrams to the UDP port of the same number. So a client that connects here can do what it
//! could do with UDP on this machine, and nothing more.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use common::{
    machine::process::{Protocol, port_holder},
    transport::{accept::accept, carrier},
};
use proto::wire::SSH_MARKER;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, Id, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How many connections may be open. A device needs one, and for a moment a second.
const MOST: usize = 64;
/// How long a client that has read the first line may send nothing.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(15);
/// The server sends something every few seconds to an enrolled device. A connection to which the
/// server has sent nothing for this long may be closed to make room for another.
const UNANSWERED: Duration = Duration::from_secs(15);

/// A listener on loopback, and the UDP address to which it relays.
#[derive(Debug)]
pub(crate) struct Relay {
    listener: TcpListener,
    to: SocketAddr,
}

impl Relay {
    /// Opens a relay for each of the UDP addresses that can be reached over loopback.
    pub(crate) async fn beside(listening: &[SocketAddr]) -> Vec<Self> {
        let mut relays: Vec<Self> = Vec::new();
        for to in listening.iter().filter_map(|to| on_loopback(*to)) {
            if !relays.iter().any(|relay| relay.to == to) {
                relays.extend(Self::bind(to).await);
            }
        }
        relays
    }

    /// Listens on the same port as the UDP socket. If the port is taken, that is a warning and not
    /// an error: `aditd relay` works without this listener.
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

    pub(crate) fn port(&self) -> u16 {
        self.to.port()
    }

    /// A copy of the listener, and where it relays to, for another process.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub(crate) fn listener(&self) -> io::Result<(SocketAddr, OwnedFd)> {
        Ok((self.to, self.listener.as_fd().try_clone_to_owned()?))
    }

    /// Takes the listener of [`Relay::listener`] over. Must be called within a runtime.
    ///
    /// # Errors
    /// If it is no listener.
    pub(crate) fn take_over(to: SocketAddr, listener: OwnedFd) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(listener);
        listener.local_addr()?;
        Ok(Self { listener: TcpListener::from_std(listener)?, to })
    }

    /// Relays for as long as it is polled. When another process has the listener (`replaced`), only
    /// for the connections that are open.
    pub(crate) async fn serve(self, replaced: CancellationToken) {
        info!("relaying for SSH on {} (TCP)", self.to);
        let (mut connections, mut open) = (JoinSet::new(), HashMap::<Id, Connection>::new());
        let mut accepts = true;
        loop {
            tokio::select! {
                () = replaced.cancelled(), if accepts => accepts = false,
                (tcp, from) = accept("the relay for SSH", || self.listener.accept()), if accepts => {
                    if open.len() >= MOST {
                        let silences = open.iter().map(|(id, open)| (*id, open.answered.silence()));
                        let Some(oldest) = to_displace(silences).and_then(|id| open.remove(&id)) else {
                            debug!(%from, "{MOST} connections to the relay are open: no more");
                            continue;
                        };
                        oldest.task.abort();
                    }
                    let (to, answered) = (self.to, Answered::default());
                    let told = answered.clone();
                    let task = connections.spawn(async move {
                        let end = carry(tcp, to, told).await;
                        debug!(%from, "a relayed connection ended: {end}");
                    });
                    open.insert(task.id(), Connection { task, answered });
                }
                Some(ended) = connections.join_next_with_id() => {
                    let id = ended.map_or_else(|e| e.id(), |(id, ())| id);
                    open.remove(&id);
                }
                else => return std::future::pending().await,
            }
        }
    }
}

struct Connection {
    task: AbortHandle,
    answered: Answered,
}

/// When the server last sent something over a connection, or when the connection began.
#[derive(Clone)]
struct Answered(Arc<Mutex<Instant>>);

impl Default for Answered {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Answered {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// The connection that is closed to make room for another: the one to which the server has sent
/// nothing for longest, if that is longer than [`UNANSWERED`]. A revoked device, or one without a
/// knock, gets no answer, so it does not keep its place.
fn to_displace<K>(silences: impl Iterator<Item = (K, Duration)>) -> Option<K> {
    let (longest, silence) = silences.max_by_key(|(_, silence)| *silence)?;
    (silence >= UNANSWERED).then_some(longest)
}

/// The writing half of a connection; it notes each write.
struct Noting<W>(W, Answered);

impl<W: AsyncWrite + Unpin> AsyncWrite for Noting<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(cx, bytes);
        if let Poll::Ready(Ok(_)) = written {
            self.1.note();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
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

async fn carry(mut tcp: TcpStream, to: SocketAddr, answered: Answered) -> io::Error {
    let begun = async {
        tcp.set_nodelay(true)?;
        tcp.write_all(SSH_MARKER.as_bytes()).await?;
        // A client that sends nothing does not keep its place.
        let first = tokio::time::timeout(FIRST_WORD_WITHIN, tcp.peek(&mut [0])).await;
        first.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    };
    match begun.await {
        Ok(0) => io::ErrorKind::UnexpectedEof.into(),
        Ok(_) => {
            let (read, write) = tcp.into_split();
            carrier::relay(read, Noting(write, answered), to).await
        }
        Err(e) => e,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn it_sends_its_greeting_and_relays_datagrams_to_the_same_port() {
        let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let to = udp.local_addr().expect("an address");
        // Another process may have the TCP port of this number.
        let Some(relay) = Relay::bind(to).await else { return };
        assert_eq!(relay.port(), to.port());
        assert!(Relay::bind(to).await.is_none(), "a taken port is no failure");
        let serving = tokio::spawn(relay.serve(CancellationToken::new()));
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
    fn the_connection_that_the_server_has_not_answered_for_longest_makes_room() {
        for (silences, leaves) in
            [(&[][..], None), (&[0, 5, 14], None), (&[0, 15, 5], Some(1)), (&[16, 5, 600], Some(2))]
        {
            let silences = silences.iter().map(|seconds| Duration::from_secs(*seconds));
            assert_eq!(to_displace((0..).zip(silences)), leaves);
        }
    }

    #[tokio::test]
    async fn what_the_server_sends_is_noted_and_what_the_client_sends_is_not() {
        let answered = Answered::default();
        let long_ago =
            Instant::now().checked_sub(UNANSWERED).expect("this machine is up for longer");
        *answered.0.lock().expect("no panic") = long_ago;
        let (near, mut far) = tokio::io::duplex(64);
        let (_read, write) = tokio::io::split(near);
        far.write_all(b"a client").await.expect("sent");
        assert!(answered.silence() >= UNANSWERED);
        Noting(write, answered.clone()).write_all(b"the server").await.expect("sent");
        assert!(answered.silence() < UNANSWERED);
    }

    #[test]
    fn it_listens_on_loopback_only() {
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
