//! The filter below QUIC: drops the datagrams to which QUIC would answer a stranger, and all
//! datagrams from networks that are not allowed.
//!
//! A QUIC server answers an unknown version with a list of its own (RFC 9000 section 6). It answers
//! some malformed first packets, and those with an expired or foreign token, with a
//! CONNECTION_CLOSE. Each of these answers would tell a port scanner that a server is here. First
//! packets without a knock are also dropped here, because QUIC would derive keys for each of them
//! before it asks.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use common::{machine::process::unix_now, transport::carrier::Unmarked};
use ipnet::IpNet;
use proto::knock::KNOCK_LEN;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::ingress::{
    admission::{Admission, Reason, connection_ids, replay::destination_id},
    older::Older,
};

/// Types of packets with a long header (RFC 9000 section 17.2).
const INITIAL: u8 = 0x00;
const HANDSHAKE: u8 = 0x20;
/// QUIC version 1 (RFC 9000 section 15).
const VERSION_1: [u8; 4] = [0, 0, 0, 1];

/// The networks that may send to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Audience(Vec<IpNet>);

impl Audience {
    /// Allows these networks. Loopback is always allowed, so that this machine can reach its own
    /// server.
    pub(crate) fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    pub(crate) fn networks(&self) -> &[IpNet] {
        &self.0
    }

    /// Whether `address` is allowed.
    pub(crate) fn includes(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.0.iter().any(|network| network.contains(&address))
    }
}

/// A UDP socket that hands QUIC only the datagrams that it may see.
pub(crate) struct FilteredSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    audience: Audience,
    admission: Arc<Admission>,
    older: Arc<Older>,
    /// Addresses where packets with ECN marks do not arrive.
    unmarked: Mutex<Unmarked>,
}

impl fmt::Debug for FilteredSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilteredSocket")
            .field("inner", &self.inner)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

impl FilteredSocket {
    /// Wraps `inner`: accepts datagrams from `audience`, and from new clients if `admission` hears
    /// them. `admission` counts the dropped ones. Those of `older` processes are handed on.
    pub(crate) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        audience: Audience,
        admission: Arc<Admission>,
        older: Arc<Older>,
    ) -> Self {
        Self { inner, audience, admission, older, unmarked: Mutex::default() }
    }

    fn unmarked(&self) -> MutexGuard<'_, Unmarked> {
        self.unmarked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_pass(&self, datagram: &[u8], from: SocketAddr) -> bool {
        if !may_pass(datagram) {
            self.admission.count(Reason::Datagram);
            return false;
        }
        if !is_initial(datagram) {
            return true;
        }
        destination_id(datagram).is_some_and(|id| self.admission.hear(id, from, unix_now()))
    }
}

impl AsyncUdpSocket for FilteredSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Only packets of a handshake have long headers.
        if is_long(transmit.contents) {
            let size = transmit.segment_size.unwrap_or(transmit.contents.len());
            for datagram in transmit.contents.chunks(size.max(1)) {
                self.admission.sent_in_handshake(datagram, transmit.destination);
            }
        }
        let marked = transmit.ecn.filter(|_| !self.unmarked().contains(transmit.destination));
        self.inner.try_send(&Transmit {
            destination: transmit.destination,
            ecn: marked,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buf, meta) in bufs.iter_mut().zip(&mut *meta).take(received) {
            let said = *meta;
            meta.len = if self.audience.includes(meta.addr.ip()) {
                keep(&mut buf[..meta.len], meta.stride, |datagram| {
                    !self.older.takes(datagram, &said) && self.may_pass(datagram, said.addr)
                })
            } else {
                self.admission.count(Reason::Network);
                0
            };
            if meta.len > 0 {
                self.unmarked().heard(meta.addr, meta.ecn.is_some());
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Removes the dropped datagrams from a batch, in which each datagram but the last is `stride`
/// bytes long. Returns the new length.
fn keep(batch: &mut [u8], stride: usize, may_pass: impl Fn(&[u8]) -> bool) -> usize {
    let (mut kept, mut at) = (0, 0);
    while at < batch.len() {
        let end = batch.len().min(at + stride.max(1));
        if may_pass(&batch[at..end]) {
            if kept != at {
                batch.copy_within(at..end, kept);
            }
            kept += end - at;
        }
        at = end;
    }
    kept
}

/// Whether QUIC can handle this datagram without answering a stranger.
///
/// Long headers (RFC 8999 section 5.1) must be of version 1, of a type that our clients send
/// (Initial or Handshake), and their connection ID must be as long as a knock or as one that this
/// server chooses.
fn may_pass(datagram: &[u8]) -> bool {
    match datagram {
        [first, rest @ ..] if is_long(datagram) => {
            matches!(first & 0x30, INITIAL | HANDSHAKE)
                && rest.first_chunk() == Some(&VERSION_1)
                && matches!(
                    rest.get(4).map(|len| usize::from(*len)),
                    Some(KNOCK_LEN | connection_ids::LEN)
                )
        }
        // QUIC sends no answer to a short header with an unknown connection ID, except for those of
        // [`OwnIds`].
        datagram => !datagram.is_empty(),
    }
}

fn is_long(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

/// Whether it is the first packet of a connection (RFC 9000 section 17.2.2).
fn is_initial(datagram: &[u8]) -> bool {
    is_long(datagram) && datagram[0] & 0x30 == INITIAL
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(version: u32, cid_len: u8) -> Vec<u8> {
        let mut packet = vec![0xc0];
        packet.extend_from_slice(&version.to_be_bytes());
        packet.push(cid_len);
        packet.resize(1200, 0);
        packet
    }

    #[test]
    fn what_quic_would_answer_does_not_reach_it() {
        assert!(may_pass(&long(1, 20)) && may_pass(&long(1, 8)));
        for (version, cid) in [
            (0, 20),
            (2, 20),
            (0x0a1a_2a3a, 20),
            (0x6b33_43cf, 8),
            (1, 0),
            (1, 7),
            (1, 21),
            (1, 255),
        ] {
            assert!(!may_pass(&long(version, cid)), "version {version:#x}, connection ID of {cid}");
        }
        assert!(!may_pass(&[]) && !may_pass(&[0xc0]) && !may_pass(&[0xff, 0, 0]));
        // Initial, 0-RTT, Handshake, Retry.
        for (first, passes) in [(0xc0, true), (0xd0, false), (0xe0, true), (0xf0, false)] {
            let mut packet = long(1, 8);
            packet[0] = first;
            assert_eq!(may_pass(&packet), passes, "{first:#x}");
        }
    }

    #[test]
    fn a_bad_datagram_in_a_batch_does_not_drop_a_good_one() {
        let (good, bad) = (long(1, 20), long(9, 20));
        let short = vec![0x40; 50];
        let mut batch = [&good[..], &bad, &good, &bad, &short].concat();
        let len = keep(&mut batch, 1200, may_pass);
        assert_eq!(batch[..len], [&good[..], &good, &short].concat());
        let mut all_bad = [&bad[..], &bad].concat();
        assert_eq!(keep(&mut all_bad, 1200, may_pass), 0);
    }

    #[test]
    fn first_packets_are_told_from_packets_of_a_connection() {
        assert!(is_initial(&[0xc3]) && is_initial(&[0xcf]));
        // 0-RTT, Handshake, Retry, short header.
        assert!(![0xd0, 0xe0, 0xf0, 0x40].into_iter().any(|first| is_initial(&[first])));
    }

    #[test]
    fn only_allowed_networks_and_this_machine_are_heard() {
        let audience = Audience::new(vec![
            "10.0.0.0/8".parse().expect("net"),
            "fd00::/8".parse().expect("net"),
        ]);
        for (address, heard) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("fd00::1", true),
            ("192.168.1.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(audience.includes(address.parse().expect("address")), heard, "{address}");
        }
        assert!(
            Audience::new(vec!["0.0.0.0/0".parse().expect("net")])
                .includes("203.0.113.9".parse().expect("address"))
        );
    }
}
