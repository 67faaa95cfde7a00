//! Joins batches of datagrams that QUIC hands over one after the other, so that the system gets
//! them in one call. It names no clock and no socket.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// What one call can take, in bytes: the longest UDP payload in an IPv6 packet (RFC 8200 section
/// 3).
pub(super) const MOST_BYTES: usize = 65_487;
/// Datagrams that Linux takes in one call (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 64;
/// Datagrams in a full batch of quinn. A batch with fewer is the last one: quinn has nothing more
/// to send for the moment.
const FULL: usize = 10;

/// What the socket has to do with a batch that it was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BatchStep {
    /// Send the given batch now. Nothing is held.
    SendIt,
    /// The given batch was added to what is held. Send nothing yet.
    Hold,
    /// The given batch was added to what is held. Send everything that is held now.
    SendHeld,
    /// Send what is held, then call [`Batch::add`] with the same batch again.
    SendHeldFirst,
}

/// Held batches, which wait for the next one. All go to one address, in datagrams of one length.
#[derive(Debug, Default)]
pub(super) struct Batch {
    contents: Vec<u8>,
    to: Option<Destination>,
    /// How many batches have been added since this was made.
    added: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Destination {
    address: SocketAddr,
    ecn: Option<EcnCodepoint>,
    source: Option<IpAddr>,
    segment: usize,
}

impl Batch {
    /// Decides what to do with `transmit`, and keeps a copy if it is to be held.
    pub(super) fn add(&mut self, transmit: &Transmit<'_>, most_segments: usize) -> BatchStep {
        let len = transmit.contents.len();
        let segment = transmit.segment_size.unwrap_or(len);
        let to = Destination {
            address: transmit.destination,
            ecn: transmit.ecn,
            source: transmit.src_ip,
            segment,
        };
        let most = |segment| MOST_BYTES.min(segment * most_segments.min(MOST_SEGMENTS));
        let is_full = transmit.segment_size.is_some() && len == FULL * segment;
        match self.to {
            None if is_full && 2 * len <= most(segment) => {
                self.to = Some(to);
                self.hold(transmit.contents);
                BatchStep::Hold
            }
            None => BatchStep::SendIt,
            Some(held) => {
                // Only the last datagram of a batch may be shorter than the others.
                let fits = Destination { segment: held.segment, ..to } == held
                    && (segment == held.segment || (len == segment && len < held.segment))
                    && self.contents.len() + len <= most(held.segment);
                if !fits {
                    return BatchStep::SendHeldFirst;
                }
                self.hold(transmit.contents);
                if is_full && self.contents.len() + len <= most(held.segment) {
                    BatchStep::Hold
                } else {
                    BatchStep::SendHeld
                }
            }
        }
    }

    fn hold(&mut self, contents: &[u8]) {
        self.contents.extend_from_slice(contents);
        self.added += 1;
    }

    /// Everything that is held, as one batch; `None` if nothing is held.
    pub(super) fn held(&self) -> Option<Transmit<'_>> {
        self.to.map(|to| Transmit {
            destination: to.address,
            ecn: to.ecn,
            contents: &self.contents,
            segment_size: Some(to.segment),
            src_ip: to.source,
        })
    }

    /// Forgets what is held: it was sent.
    pub(super) fn clear(&mut self) {
        self.contents.clear();
        self.to = None;
    }

    /// How many batches have been added so far. Two equal values mean that nothing was added
    /// between.
    pub(super) fn added(&self) -> u64 {
        self.added
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: usize = 1452;

    fn transmit(port: u16, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        let destination = SocketAddr::from(([10, 0, 0, 1], port));
        Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
    }

    #[test]
    fn full_batches_are_joined_until_no_more_fit_or_a_short_one_comes() {
        let bytes = [7; FULL * MTU];
        let full = transmit(1, &bytes, Some(MTU));
        let short = transmit(1, &bytes[..3 * MTU + 5], Some(MTU));
        let last = transmit(1, &bytes[..99], None);
        use BatchStep::{Hold, SendHeld, SendHeldFirst, SendIt};
        for (given, expected) in [
            (vec![&full, &full, &full, &full], vec![Hold, Hold, Hold, SendHeld]),
            (vec![&full, &short], vec![Hold, SendHeld]),
            (vec![&full, &last], vec![Hold, SendHeld]),
            (vec![&short], vec![SendIt]),
            (vec![&last], vec![SendIt]),
            // A batch to another address, or with datagrams of another length, is not joined.
            (vec![&full, &transmit(2, &bytes, Some(MTU))], vec![Hold, SendHeldFirst]),
            (vec![&full, &transmit(1, &bytes[..12_000], Some(1200))], vec![Hold, SendHeldFirst]),
            (vec![&full, &transmit(1, &bytes[..MTU + 1], None)], vec![Hold, SendHeldFirst]),
        ] {
            let mut batch = Batch::default();
            let next: Vec<BatchStep> = given.iter().map(|t| batch.add(t, 64)).collect();
            assert_eq!(next, expected, "{given:?}");
        }
    }

    #[test]
    fn what_is_held_is_what_was_given() {
        let (first, last) = ([1; FULL * MTU], [2; 40]);
        let mut batch = Batch::default();
        assert_eq!(batch.add(&transmit(1, &first, Some(MTU)), 64), BatchStep::Hold);
        assert_eq!(batch.add(&transmit(1, &last, None), 64), BatchStep::SendHeld);
        let held = batch.held().expect("something");
        assert_eq!(held.contents, [&first[..], &last].concat());
        assert_eq!((held.segment_size, held.destination.port()), (Some(MTU), 1));
        batch.clear();
        assert!(batch.held().is_none());
    }

    #[test]
    fn nothing_is_held_that_could_not_be_joined() {
        // Datagrams so long that a second batch does not fit; a system that takes no batches.
        let long = [0; FULL * 6500];
        assert_eq!(Batch::default().add(&transmit(1, &long, Some(6500)), 64), BatchStep::SendIt);
        let full = [0; FULL * MTU];
        assert_eq!(Batch::default().add(&transmit(1, &full, Some(MTU)), 1), BatchStep::SendIt);
        for ports in [[1, 1, 1, 1], [1, 2, 1, 2]] {
            let mut batch = Batch::default();
            for port in ports {
                if batch.add(&transmit(port, &full, Some(MTU)), 64) != BatchStep::Hold {
                    batch.clear();
                }
                let held = batch.held().map_or(0, |held| held.contents.len());
                assert!(held <= MOST_BYTES, "{held}");
            }
        }
    }
}
