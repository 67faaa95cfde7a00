//! A NAT as homes and hotels have it: the server sees one address, and a port that may change.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use super::packet::{Packet, UDP};

/// The address that the server sees.
pub(super) const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// How long the NAT remembers a UDP flow without a packet. Many real ones take 30 s; this is shorter,
/// so that a test need not wait, and more than two keep-alives of the tunnel.
pub const FORGETS_UDP: Duration = Duration::from_secs(12);
const FORGETS_TCP: Duration = Duration::from_secs(7200);
const FIRST_PORT: u16 = 20_000;

/// The NAT's table.
#[derive(Default)]
pub(super) struct Nat {
    flows: HashMap<(u8, SocketAddrV4), Flow>,
    inside: HashMap<(u8, u16), SocketAddrV4>,
    given: u16,
}

struct Flow {
    port: u16,
    /// When the last packet went out.
    used: Instant,
}

impl Nat {
    /// Forgets every flow, as after a power cut: each continues with another port, or not at all.
    pub(super) fn forget(&mut self) {
        self.flows.clear();
        self.inside.clear();
    }

    /// Translates an outgoing packet; `false` if it can't be.
    pub(super) fn outward(&mut self, packet: &mut [u8], now: Instant) -> bool {
        let Some(mut packet) = Packet::read(packet) else { return false };
        let key = (packet.protocol(), packet.source());
        if self.flows.get(&key).is_none_or(|flow| flow.is_over(key.0, now)) {
            self.given = (self.given + 1) % 40_000;
            let port = FIRST_PORT + self.given;
            if let Some(old) = self.flows.insert(key, Flow { port, used: now }) {
                self.inside.remove(&(key.0, old.port));
            }
            self.inside.insert((key.0, port), key.1);
        }
        let Some(flow) = self.flows.get_mut(&key) else { return false };
        flow.used = now;
        packet.set_source(SocketAddrV4::new(PUBLIC, flow.port));
        true
    }

    /// Translates an incoming packet; `false` if no flow uses its port, or the flow was quiet for
    /// too long.
    pub(super) fn inward(&mut self, packet: &mut [u8], now: Instant) -> bool {
        let Some(mut packet) = Packet::read(packet) else { return false };
        let (protocol, to) = (packet.protocol(), packet.destination());
        let Some(inside) = self.inside.get(&(protocol, to.port())).filter(|_| *to.ip() == PUBLIC)
        else {
            return false;
        };
        if self.flows.get(&(protocol, *inside)).is_none_or(|flow| flow.is_over(protocol, now)) {
            return false;
        }
        packet.set_destination(*inside);
        true
    }
}

impl Flow {
    fn is_over(&self, protocol: u8, now: Instant) -> bool {
        now - self.used > if protocol == UDP { FORGETS_UDP } else { FORGETS_TCP }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::packet::TCP;

    const LAPTOP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 2), 5000);
    const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 11435);

    fn folded(mut sum: u32, words: &[u8]) -> u16 {
        for pair in words.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        (bytes[0], bytes[9]) = (0x45, protocol);
        bytes[12..16].copy_from_slice(&from.ip().octets());
        bytes[16..20].copy_from_slice(&to.ip().octets());
        let sum = !folded(0, &bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend([from.port().to_be_bytes(), to.port().to_be_bytes()].concat());
        bytes.extend([0; 16]);
        bytes.extend(b"tokens");
        let at = if protocol == UDP { 26 } else { 36 };
        let sum = !folded(u32::from(protocol) + bytes.len() as u32 - 20, &bytes[12..]);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Checks both checksums as a receiver does.
    fn is_sound(bytes: &[u8]) -> bool {
        folded(0, &bytes[..20]) == 0xffff
            && folded(u32::from(bytes[9]) + bytes.len() as u32 - 20, &bytes[12..]) == 0xffff
    }

    #[test]
    fn answers_are_translated_back_with_valid_checksums_until_the_flow_is_forgotten() {
        let now = Instant::now();
        for (protocol, forgets) in [(UDP, FORGETS_UDP), (TCP, FORGETS_TCP)] {
            let mut nat = Nat::default();
            let mut out = packet(protocol, LAPTOP, SERVER);
            assert!(is_sound(&out) && nat.outward(&mut out, now) && is_sound(&out));
            let seen = Packet::read(&mut out).expect("read").source();
            assert_eq!(*seen.ip(), PUBLIC);
            let mut back = packet(protocol, SERVER, seen);
            assert!(nat.inward(&mut back, now + forgets) && is_sound(&back));
            assert_eq!(Packet::read(&mut back).expect("read").destination(), LAPTOP);
            let late = now + forgets + Duration::from_secs(1);
            assert!(!nat.inward(&mut packet(protocol, SERVER, seen), late));
            let mut again = packet(protocol, LAPTOP, SERVER);
            assert!(nat.outward(&mut again, late));
            let seen_again = Packet::read(&mut again).expect("read").source();
            assert_ne!(seen_again, seen);
            nat.forget();
            assert!(!nat.inward(&mut packet(protocol, SERVER, seen_again), late));
        }
    }

    #[test]
    fn packets_without_a_flow_are_dropped() {
        let mut nat = Nat::default();
        for port in [0, FIRST_PORT, FIRST_PORT + 1, 11435] {
            assert!(
                !nat.inward(
                    &mut packet(UDP, SERVER, SocketAddrV4::new(PUBLIC, port)),
                    Instant::now()
                )
            );
        }
        assert!(!nat.outward(&mut [0x45; 12], Instant::now()));
    }
}
