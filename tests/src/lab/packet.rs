//! The fields of an IPv4 packet that a router reads or a NAT changes.

use std::net::{Ipv4Addr, SocketAddrV4};

/// TCP's number (RFC 9293).
#[cfg(test)]
pub(super) const TCP: u8 = 6;
/// UDP's number (RFC 768).
pub(super) const UDP: u8 = 17;

const HEADER_SUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;

/// Whether an IPv4 packet has an ECN mark (RFC 3168 section 5).
pub(super) fn is_marked(packet: &[u8]) -> bool {
    packet.get(1).is_some_and(|service| service & 0b11 != 0)
}

/// A whole IPv4 packet with TCP or UDP in it.
pub(super) struct Packet<'a> {
    bytes: &'a mut [u8],
    /// The offset of TCP or UDP.
    payload: usize,
    /// The offset of its checksum.
    sum: usize,
}

impl<'a> Packet<'a> {
    /// Parses a packet; `None` for what a NAT can't translate: another protocol, a fragment, a
    /// truncated packet.
    pub(super) fn read(bytes: &'a mut [u8]) -> Option<Self> {
        if bytes.len() < 20
            || bytes[0] >> 4 != 4
            || u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff != 0
        {
            return None;
        }
        let payload = usize::from(bytes[0] & 15) * 4;
        let sum = payload + if bytes[9] == UDP { 6 } else { 16 };
        let known = matches!(bytes[9], 6 | 17) && bytes.len() >= sum + 2;
        known.then_some(Self { bytes, payload, sum })
    }

    pub(super) fn protocol(&self) -> u8 {
        self.bytes[9]
    }

    pub(super) fn source(&self) -> SocketAddrV4 {
        self.address(SOURCE, self.payload)
    }

    pub(super) fn destination(&self) -> SocketAddrV4 {
        self.address(DESTINATION, self.payload + 2)
    }

    pub(super) fn set_source(&mut self, to: SocketAddrV4) {
        self.set(SOURCE, self.payload, to);
    }

    pub(super) fn set_destination(&mut self, to: SocketAddrV4) {
        self.set(DESTINATION, self.payload + 2, to);
    }

    fn address(&self, ip: usize, port: usize) -> SocketAddrV4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| self.bytes[ip + i]);
        SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), self.word(port))
    }

    fn set(&mut self, ip: usize, port: usize, to: SocketAddrV4) {
        let [a, b, c, d] = to.ip().octets();
        let no_sum = self.protocol() == UDP && self.word(self.sum) == 0;
        for (at, word) in [(ip, [a, b]), (ip + 2, [c, d])] {
            self.mend(HEADER_SUM, self.word(at), u16::from_be_bytes(word));
        }
        for (at, word) in [(ip, [a, b]), (ip + 2, [c, d]), (port, to.port().to_be_bytes())] {
            if !no_sum {
                self.mend(self.sum, self.word(at), u16::from_be_bytes(word));
            }
            self.put(at, u16::from_be_bytes(word));
        }
    }

    /// Updates a checksum after `old` was changed to `new` (RFC 1624).
    fn mend(&mut self, sum: usize, old: u16, new: u16) {
        let mut total = u32::from(!self.word(sum)) + u32::from(!old) + u32::from(new);
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        self.put(sum, !(total as u16));
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn put(&mut self, at: usize, word: u16) {
        self.bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }
}

/// The protocol of any IPv4 packet.
pub(super) fn protocol(packet: &[u8]) -> Option<u8> {
    (packet.len() >= 20 && packet[0] >> 4 == 4).then(|| packet[9])
}
