//! A list of networks that drop packets with ECN marks, with when that was found out. Names no clock
//! and no file.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// For so long no marks are tried on such a network, in seconds: networks are mended, and an address
/// may be another network's by then.
const KEPT: i64 = 7 * 24 * 3600;
/// The most networks that are remembered.
const MOST: usize = 16;
/// So many dials one after the other must have had no answer to packets with marks, and an answer to
/// one without. A link that loses one packet in ten looks like that in one dial of five.
const CERTAIN: u8 = 3;

/// The networks, oldest first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Networks {
    networks: Vec<Network>,
}

/// A network. It is known by this device's address there: nothing else of it can be read without
/// special rights.
#[derive(Debug, Serialize, Deserialize)]
struct Network {
    address: IpAddr,
    /// When it was found out last, in Unix time.
    found_at: i64,
    /// How many dials have found it out, one after the other. Older versions were certain after one.
    #[serde(default = "certain")]
    dials: u8,
}

fn certain() -> u8 {
    CERTAIN
}

impl Network {
    /// A time in the future was written by a clock that was wrong.
    fn is_recent(&self, now: i64) -> bool {
        (0..KEPT).contains(&now.saturating_sub(self.found_at))
    }
}

impl Networks {
    /// No network.
    pub(super) const NONE: Self = Self { networks: Vec::new() };

    /// Whether it is certain at `now`, in Unix time, that the network drops marks.
    pub(super) fn contains(&self, address: IpAddr, now: i64) -> bool {
        let is_it = |known: &Network| {
            known.address == address && known.dials >= CERTAIN && known.is_recent(now)
        };
        self.networks.iter().any(is_it)
    }

    /// A dial has had no answer to packets with marks, and an answer to one without. Forgets networks
    /// that are too old or too many. What is certain does not become newer: marks are tried again when
    /// its time is over.
    pub(super) fn suspect(&mut self, address: IpAddr, now: i64) {
        if self.contains(address, now) {
            return;
        }
        self.networks.retain(|known| known.is_recent(now));
        let before = self.networks.iter().position(|known| known.address == address);
        let before = before.map_or(0, |at| self.networks.remove(at).dials);
        let dials = before.saturating_add(1);
        self.networks.push(Network { address, found_at: now, dials });
        let too_many = self.networks.len().saturating_sub(MOST);
        self.networks.drain(..too_many);
    }

    /// A packet with a mark was answered there. Returns whether that ends a suspicion.
    pub(super) fn clear(&mut self, address: IpAddr) -> bool {
        let before = self.networks.len();
        self.networks.retain(|known| known.address != address);
        self.networks.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    fn suspect_often(networks: &mut Networks, address: IpAddr, now: i64) {
        for _ in 0..CERTAIN {
            networks.suspect(address, now);
        }
    }

    #[test]
    fn a_network_is_known_for_a_week_after_it_was_found_out() {
        let mut networks = Networks::NONE;
        suspect_often(&mut networks, network(1), 1_000);
        suspect_often(&mut networks, network(1), 1_000 + KEPT / 2);
        for (now, is_known) in [
            (999, false),
            (1_000, true),
            (1_000 + KEPT - 1, true),
            (1_000 + KEPT, false),
            (i64::MIN, false),
            (i64::MAX, false),
        ] {
            assert_eq!(networks.contains(network(1), now), is_known, "{now}");
        }
        assert!(!networks.contains(network(2), 1_000));
        suspect_often(&mut networks, network(1), 1_000 + KEPT);
        assert!(networks.contains(network(1), 1_000 + KEPT), "it is found out again");
    }

    #[test]
    fn a_packet_that_is_lost_at_a_dial_does_not_blame_the_marks() {
        let mut networks = Networks::NONE;
        for dial in 1..CERTAIN {
            networks.suspect(network(1), 10);
            assert!(!networks.contains(network(1), 10), "after {dial}");
        }
        networks.suspect(network(2), 10);
        assert!(!networks.contains(network(1), 10), "that was another network");
        assert!(networks.clear(network(1)), "a mark was answered");
        assert!(!networks.clear(network(1)));
        for _ in 1..CERTAIN {
            networks.suspect(network(1), 10);
        }
        assert!(!networks.contains(network(1), 10), "it is counted anew");
        networks.suspect(network(1), 10);
        assert!(networks.contains(network(1), 10));
    }

    #[test]
    fn a_list_of_an_older_version_is_certain() {
        let kept = r#"{"networks":[{"address":"192.0.2.1","found_at":10}]}"#;
        let networks: Networks = serde_json::from_str(kept).expect("read");
        assert!(networks.contains(network(1), 20));
    }

    #[test]
    fn only_the_newest_networks_are_remembered() {
        let mut networks = Networks::NONE;
        for number in 0..=u8::MAX {
            suspect_often(&mut networks, network(number), i64::from(number));
        }
        assert_eq!(networks.networks.len(), MOST);
        assert!(networks.contains(network(u8::MAX), 300));
        assert!(!networks.contains(network(u8::MAX - MOST as u8), 300));
    }
}
