//! A list of networks that drop packets with ECN marks, with when that was found out. Names no clock
//! and no file.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// For so long no marks are tried on such a network, in seconds: networks are mended, and an address
/// may be another network's by then.
const KEPT: i64 = 7 * 24 * 3600;
/// The most networks that are remembered.
const MOST: usize = 16;

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
    /// In Unix time.
    found_at: i64,
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

    /// Whether the network is known at `now`, in Unix time.
    pub(super) fn contains(&self, address: IpAddr, now: i64) -> bool {
        self.networks.iter().any(|known| known.address == address && known.is_recent(now))
    }

    /// Adds a network, and forgets those that are too old or too many. Returns whether it was not
    /// known yet. What is known does not become newer: marks are tried again when its time is over.
    pub(super) fn add(&mut self, address: IpAddr, now: i64) -> bool {
        if self.contains(address, now) {
            return false;
        }
        self.networks.retain(|known| known.is_recent(now) && known.address != address);
        self.networks.push(Network { address, found_at: now });
        let too_many = self.networks.len().saturating_sub(MOST);
        self.networks.drain(..too_many);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn a_network_is_known_for_a_week_after_it_was_found_out() {
        let mut networks = Networks::NONE;
        assert!(networks.add(network(1), 1_000));
        assert!(!networks.add(network(1), 1_000 + KEPT / 2), "it is known");
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
        assert!(networks.add(network(1), 1_000 + KEPT), "it is found out again");
        assert!(networks.contains(network(1), 1_000 + KEPT));
    }

    #[test]
    fn only_the_newest_networks_are_remembered() {
        let mut networks = Networks::NONE;
        for number in 0..=u8::MAX {
            networks.add(network(number), i64::from(number));
        }
        assert_eq!(networks.networks.len(), MOST);
        assert!(networks.contains(network(u8::MAX), 300));
        assert!(!networks.contains(network(u8::MAX - MOST as u8), 300));
    }
}
