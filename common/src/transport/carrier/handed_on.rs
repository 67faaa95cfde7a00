//! Datagrams of a UDP socket that one process reads for another one, which still has connections on
//! it: a Unix socket carries them from the reader to the other, each with what the system said of it.
//! A datagram for which there is no room is dropped, as a network drops it.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    task::{Context, Poll},
};

use quinn::udp::{EcnCodepoint, RecvMeta};
use tokio::io::ReadBuf;

/// The sender's address and scope (22), the ECN mark (1), and the address that it was sent to (17).
const HEAD: usize = 40;
/// The longest UDP payload, in bytes.
const LONGEST: usize = 65_535;
/// The buffers that the system is asked for, in bytes: a burst of an upload.
const BUFFER: usize = 4 << 20;

/// A way from the process that reads the socket to another one: the reader's end, and the end of the
/// other one.
///
/// # Errors
/// If the system gives no sockets.
pub fn handed_on() -> io::Result<(OwnedFd, Inbox)> {
    let (near, far) = pair()?;
    for end in [&near, &far] {
        let end = socket2::SockRef::from(end);
        // With less room only more datagrams are dropped.
        let _ = end.set_send_buffer_size(BUFFER);
        let _ = end.set_recv_buffer_size(BUFFER);
    }
    far.set_nonblocking(true)?;
    Ok((near.into(), Inbox(tokio::net::UnixDatagram::from_std(far)?)))
}

/// Two sockets that keep datagrams apart and can send to each other only. Those of `SOCK_DGRAM` could
/// send to any Unix socket, so a server in its sandbox may not make them.
#[cfg(target_os = "linux")]
fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (near, far) = socketpair(unix, packets, SocketFlags::CLOEXEC, None)?;
    Ok((near.into(), far.into()))
}

/// macOS has no others that keep datagrams apart.
#[cfg(not(target_os = "linux"))]
fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    UnixDatagram::pair()
}

/// The reader's end.
#[derive(Debug)]
pub struct HandOn(UnixDatagram);

impl HandOn {
    /// The reader's end of [`handed_on`].
    ///
    /// # Errors
    /// If it cannot be used without waiting.
    pub fn new(end: OwnedFd) -> io::Result<Self> {
        let end = UnixDatagram::from(end);
        end.set_nonblocking(true)?;
        Ok(Self(end))
    }

    /// Hands a datagram on. False if the other process is gone.
    pub fn send(&self, datagram: &[u8], meta: &RecvMeta) -> bool {
        let framed = [&head(meta)[..], datagram].concat();
        match self.0.send(&framed) {
            Err(e) => !matches!(
                e.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::NotConnected
                    | io::ErrorKind::BrokenPipe
            ),
            Ok(_) => true,
        }
    }
}

impl AsFd for HandOn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The end of the process that does not read the socket any more.
#[derive(Debug)]
pub struct Inbox(tokio::net::UnixDatagram);

impl Inbox {
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut framed = vec![0; HEAD + LONGEST];
        let mut received = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let mut read = ReadBuf::new(&mut framed);
            match self.0.poll_recv(cx, &mut read) {
                // The reader is gone; the system says so at each call. Nothing comes any more, so
                // there is nothing to wake this task for.
                Poll::Ready(Ok(())) if read.filled().is_empty() && received == 0 => {
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if read.filled().is_empty() => break,
                Poll::Ready(Ok(())) => {}
                Poll::Pending if received == 0 => return Poll::Pending,
                // An error is not the end of a connection.
                Poll::Pending | Poll::Ready(Err(_)) => break,
            }
            let (said, datagram) = parse(read.filled());
            let len = datagram.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { len, stride: len, ..said };
            received += 1;
        }
        Poll::Ready(Ok(received))
    }
}

fn head(meta: &RecvMeta) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let (ip, scope) = match meta.addr {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    head[..16].copy_from_slice(&ip.octets());
    head[16..18].copy_from_slice(&meta.addr.port().to_be_bytes());
    head[18..22].copy_from_slice(&scope.to_be_bytes());
    head[22] = meta.ecn.map_or(0, |mark| mark as u8) | if meta.addr.is_ipv4() { 0x80 } else { 0 };
    if let Some(to) = meta.dst_ip {
        let (kind, ip) = match to {
            IpAddr::V4(v4) => (4, v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => (6, v6),
        };
        head[23] = kind;
        head[24..].copy_from_slice(&ip.octets());
    }
    head
}

/// What was said of a datagram, and the datagram. Anything else is an empty datagram.
fn parse(framed: &[u8]) -> (RecvMeta, &[u8]) {
    let mut meta = RecvMeta::default();
    let Some((head, datagram)) = framed.split_first_chunk::<HEAD>() else { return (meta, &[]) };
    let part = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&head[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let port = u16::from_be_bytes([head[16], head[17]]);
    let scope = u32::from_be_bytes([head[18], head[19], head[20], head[21]]);
    meta.addr = match (part(0).to_ipv4_mapped(), head[22] & 0x80 != 0) {
        (Some(v4), true) => SocketAddr::from((v4, port)),
        _ => SocketAddrV6::new(part(0), port, 0, scope).into(),
    };
    meta.ecn = EcnCodepoint::from_bits(head[22] & 0x03);
    meta.dst_ip = match head[23] {
        4 => part(24).to_ipv4_mapped().map(IpAddr::V4),
        6 => Some(IpAddr::V6(part(24))),
        _ => None,
    };
    (meta, datagram)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(addr: &str, to: Option<&str>, ecn: Option<EcnCodepoint>) -> RecvMeta {
        let (addr, dst_ip) = (addr.parse().expect(addr), to.map(|to| to.parse().expect(to)));
        RecvMeta { addr, dst_ip, ecn, ..RecvMeta::default() }
    }

    async fn received(inbox: &Inbox, most: usize) -> Vec<(RecvMeta, Vec<u8>)> {
        let (mut space, mut metas) = (vec![vec![0; 1500]; most], vec![RecvMeta::default(); most]);
        let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let count = std::future::poll_fn(|cx| inbox.poll_recv(cx, &mut bufs, &mut metas)).await;
        let count = count.expect("no error");
        drop(bufs);
        metas.into_iter().zip(space).take(count).map(|(m, b)| (m, b[..m.len].to_vec())).collect()
    }

    #[tokio::test]
    async fn datagrams_arrive_with_what_the_system_said_of_them() {
        let (near, inbox) = handed_on().expect("sockets");
        let hand_on = HandOn::new(near).expect("usable");
        let cases = [
            meta("192.0.2.7:4433", Some("10.0.0.1"), Some(EcnCodepoint::Ce)),
            meta("[2001:db8::7]:1", Some("2001:db8::1"), Some(EcnCodepoint::Ect0)),
            meta("[fe80::7%3]:65535", None, None),
            meta("[::ffff:192.0.2.7]:9", None, None),
        ];
        for (i, case) in (0u8..).zip(&cases) {
            assert!(hand_on.send(&[i; 1200], case));
        }
        let mut came = Vec::new();
        while came.len() < cases.len() {
            came.extend(received(&inbox, 3).await);
        }
        for (i, ((got, datagram), sent)) in (0u8..).zip(came.iter().zip(&cases)) {
            assert_eq!((got.addr, got.dst_ip, got.ecn), (sent.addr, sent.dst_ip, sent.ecn));
            assert_eq!((got.stride, &datagram[..]), (1200, &[i; 1200][..]));
        }
    }

    #[tokio::test]
    async fn a_process_that_is_gone_is_noticed_and_a_full_way_is_not_taken_for_that() {
        let (near, inbox) = handed_on().expect("sockets");
        let hand_on = HandOn::new(near).expect("usable");
        let any = meta("192.0.2.7:4433", None, None);
        for _ in 0..20_000 {
            assert!(hand_on.send(&[0; 1200], &any), "it waits, and reads nothing");
        }
        drop(inbox);
        assert!(!hand_on.send(&[0; 1200], &any));
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_keeps_nobody_busy_and_loses_nothing() {
        let (near, inbox) = handed_on().expect("sockets");
        let hand_on = HandOn::new(near).expect("usable");
        let any = meta("192.0.2.7:4433", None, None);
        assert!(hand_on.send(&[7; 1200], &any));
        drop(hand_on);
        assert_eq!(received(&inbox, 3).await.len(), 1);
        let more = std::pin::pin!(received(&inbox, 3));
        let more = polled(more).await;
        assert!(more.is_pending(), "it would be asked again at once, for good");
    }

    async fn polled<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }

    #[test]
    fn what_is_no_datagram_is_an_empty_one() {
        assert_eq!(parse(&[1; HEAD - 1]).1, [0u8; 0]);
    }
}
