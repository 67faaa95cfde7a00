//! How many connections there may be: of strangers, who have not shown yet who they are, few in all
//! and fewer from one address; of callers as many as the machine has descriptors for.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The address for which a bound counts: an IPv6 host has a /64 (RFC 6177), an IPv4 host one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

/// The most connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) all: usize,
    pub(super) strangers: usize,
    pub(super) strangers_of_one: usize,
}

#[derive(Debug)]
pub(super) struct Places {
    bounds: Bounds,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    strangers: HashMap<Origin, usize>,
}

/// The place of one connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    /// `None` once the connection has shown whose it is.
    stranger: Option<Origin>,
}

impl Places {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, taken: Mutex::default() })
    }

    /// A place for a stranger's connection, if one is free.
    pub(super) fn enter(self: &Arc<Self>, from: Origin) -> Option<Place> {
        let mut taken = self.lock();
        let strangers: usize = taken.strangers.values().sum();
        let of_one = taken.strangers.get(&from).copied().unwrap_or(0);
        let Bounds { all, strangers: most, strangers_of_one } = self.bounds;
        if taken.all >= all || strangers >= most || of_one >= strangers_of_one {
            return None;
        }
        taken.all += 1;
        *taken.strangers.entry(from).or_default() += 1;
        Some(Place { places: self.clone(), stranger: Some(from) })
    }

    /// How many connections there are.
    pub(super) fn taken(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn is_no_stranger(&mut self, from: Origin) {
        if let Some(count) = self.strangers.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.strangers.remove(&from);
            }
        }
    }
}

impl Place {
    /// The connection has shown whose it is: it takes no stranger's place any more.
    pub(super) fn is_known(&mut self) {
        if let Some(from) = self.stranger.take() {
            self.places.lock().is_no_stranger(from);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.is_known();
        self.places.lock().all -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Origin {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn a_host_is_one_ipv4_address_or_one_ipv6_network() {
        assert_eq!(from("2001:db8:1:2::1"), from("2001:db8:1:2:ffff::9"));
        assert_ne!(from("2001:db8:1:2::1"), from("2001:db8:1:3::1"));
        assert_eq!(from("::ffff:10.0.0.1"), from("10.0.0.1"));
        assert_ne!(from("10.0.0.1"), from("10.0.0.2"));
    }

    #[test]
    fn strangers_of_one_address_leave_places_to_others_and_callers_take_none_of_them() {
        let places = Places::new(Bounds { all: 5, strangers: 3, strangers_of_one: 2 });
        let (one, other) = (from("10.0.0.1"), from("10.0.0.2"));
        let mut first = places.enter(one).expect("free");
        let second = places.enter(one).expect("free");
        assert!(places.enter(one).is_none(), "two of one");
        let third = places.enter(other).expect("others find one");
        assert!(places.enter(from("10.0.0.3")).is_none(), "three strangers in all");
        first.is_known();
        first.is_known();
        let fourth = places.enter(one).expect("a caller is no stranger");
        drop((second, third));
        let rest: Vec<_> =
            (3..9).filter_map(|i| places.enter(from(&format!("10.0.1.{i}")))).collect();
        assert_eq!((rest.len(), places.taken()), (2, 4), "bounded by the strangers");
        drop((first, fourth, rest));
        assert_eq!(places.taken(), 0);
        assert!(places.lock().strangers.is_empty(), "nothing is left behind");
    }
}
