//! Which handshakes may be under way at once. Names no clock and no task.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use proto::identity::DeviceId;

/// How many handshakes may be under way at once.
pub(super) const SLOTS: usize = 64;
/// How many of these one device or one address may have. A device tries several addresses of the
/// server in parallel.
pub(super) const SLOTS_EACH: usize = 8;
/// How many of these the clients of one shared key may have.
pub(super) const SLOTS_OF_CROWD: usize = 32;
/// How long a handshake is kept before it may be ended to make room. An honest one is over by then;
/// many devices that come at once do not end each other's.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The owner of the key with which a knock was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Knocker {
    /// A device, with a key of its own.
    Device(DeviceId),
    /// Devices with the old key that all of them shared.
    Shared,
    /// An invitation, by its number in the register.
    Invited(i64),
}

impl Knocker {
    fn most_slots(self) -> usize {
        match self {
            Self::Device(_) => SLOTS_EACH,
            Self::Shared | Self::Invited(_) => SLOTS_OF_CROWD,
        }
    }
}

/// The handshakes under way, each with the means to end it.
#[derive(Debug)]
pub(super) struct Slots<T> {
    /// In the order in which they began.
    held: BTreeMap<u64, HeldSlot<T>>,
    next: u64,
}

#[derive(Debug)]
struct HeldSlot<T> {
    knocker: Knocker,
    address: Option<IpAddr>,
    since: Duration,
    end: T,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), next: 0 }
    }
}

impl<T> Slots<T> {
    /// Takes a slot. Returns its number, and the handshake that has to end for it. `address` is
    /// `None` if it is not counted: all clients over SSH have the same one. `now` is a time since
    /// any fixed moment.
    ///
    /// If the owner or the address has all its slots, the newcomer replaces its oldest handshake.
    /// Otherwise, if no slot is left, the newcomer replaces the oldest handshake of the owner with
    /// the most.
    ///
    /// `None` if the handshake to replace is younger than [`GRACE`].
    pub(super) fn take(
        &mut self,
        knocker: Knocker,
        address: Option<IpAddr>,
        now: Duration,
        end: T,
    ) -> Option<(u64, Option<T>)> {
        let displaced = self.to_displace(knocker, address);
        if let Some(number) = displaced
            && now.saturating_sub(self.held[&number].since) < GRACE
        {
            return None;
        }
        let ended = displaced.and_then(|number| self.held.remove(&number)).map(|held| held.end);
        let number = self.next;
        self.next += 1;
        self.held.insert(number, HeldSlot { knocker, address, since: now, end });
        Some((number, ended))
    }

    /// Gives a slot back. If the slot was taken over by another handshake, nothing changes.
    pub(super) fn give_back(&mut self, number: u64) {
        self.held.remove(&number);
    }

    fn to_displace(&self, knocker: Knocker, address: Option<IpAddr>) -> Option<u64> {
        let oldest_of = |is: &dyn Fn(&HeldSlot<T>) -> bool| {
            let mut theirs = self.held.iter().filter(|(_, held)| is(held));
            let oldest = theirs.next().map(|(number, _)| *number);
            (oldest, 1 + theirs.count())
        };
        let of_owner = |owner| oldest_of(&move |held: &HeldSlot<T>| held.knocker == owner);
        let (oldest, count) = of_owner(knocker);
        if count >= knocker.most_slots() {
            return oldest;
        }
        if address.is_some() {
            let (oldest, count) = oldest_of(&|held| held.address == address);
            if count >= SLOTS_EACH {
                return oldest;
            }
        }
        if self.held.len() < SLOTS {
            return None;
        }
        // Of several owners with equally many, the one whose oldest handshake is older.
        let all = self.held.values().map(|held| of_owner(held.knocker));
        all.max_by_key(|(oldest, count)| (*count, std::cmp::Reverse(*oldest)))?.0
    }

    /// How many handshakes are under way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;

    fn device(id: u32) -> Knocker {
        Knocker::Device(id.into())
    }

    fn host(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    /// Takes `count` slots, all with the value `name`.
    fn fill(
        slots: &mut Slots<&'static str>,
        count: usize,
        who: impl Fn(usize) -> (Knocker, Option<IpAddr>),
        name: &'static str,
    ) {
        for i in 0..count {
            let (knocker, address) = who(i);
            assert!(matches!(slots.take(knocker, address, NO_TIME, name), Some((_, None))), "{i}");
        }
    }

    #[test]
    fn a_device_with_all_its_slots_replaces_its_own_oldest_handshake() {
        let mut slots = Slots::default();
        fill(&mut slots, 1, |_| (device(1), None), "first of 1");
        fill(&mut slots, 1, |_| (device(2), None), "2");
        fill(&mut slots, SLOTS_EACH - 1, |_| (device(1), None), "more of 1");
        assert_eq!(slots.take(device(1), None, NO_TIME, "x"), None, "it is too young");
        let (_, ended) = slots.take(device(1), None, GRACE, "x").expect("a slot");
        assert_eq!(ended, Some("first of 1"));
        assert_eq!(slots.len(), SLOTS_EACH + 1);
        assert!(matches!(slots.take(device(2), None, NO_TIME, "2"), Some((_, None))));
    }

    #[test]
    fn a_crowd_behind_one_key_leaves_half_of_all_slots_to_others() {
        for crowd in [Knocker::Shared, Knocker::Invited(1)] {
            let mut slots = Slots::default();
            fill(&mut slots, SLOTS_OF_CROWD, |_| (crowd, None), "crowd");
            assert_eq!(slots.take(crowd, None, NO_TIME, "x"), None);
            fill(&mut slots, SLOTS - SLOTS_OF_CROWD, |i| (device(i as u32), None), "others");
        }
    }

    #[test]
    fn the_devices_of_one_address_share_and_those_that_come_by_ssh_do_not() {
        let mut slots = Slots::default();
        fill(&mut slots, SLOTS_EACH, |i| (device(i as u32), host(1)), "of host 1");
        assert_eq!(slots.take(device(99), host(1), NO_TIME, "x"), None);
        assert!(matches!(slots.take(device(99), host(2), NO_TIME, "x"), Some((_, None))));
        let (_, ended) = slots.take(device(99), host(1), GRACE, "x").expect("a slot");
        assert_eq!(ended, Some("of host 1"));
        fill(&mut slots, SLOTS_EACH * 2, |i| (device(200 + i as u32), None), "by ssh");
    }

    #[test]
    fn when_all_are_taken_the_oldest_of_the_owner_with_the_most_ends() {
        let mut slots = Slots::default();
        fill(&mut slots, SLOTS - SLOTS_EACH - 2, |i| (device(100 + i as u32), None), "single");
        fill(&mut slots, SLOTS_EACH, |_| (Knocker::Invited(7), None), "invited");
        fill(&mut slots, 2, |_| (Knocker::Shared, None), "shared");
        assert_eq!(slots.take(device(1), None, NO_TIME, "x"), None, "all are young");
        // At the end the newcomer has as many as the owners who had the most.
        for (second, leaves) in (1..).zip(["invited"; SLOTS_EACH / 2]) {
            let (_, ended) = slots.take(device(1), None, GRACE * second, "x").expect("a slot");
            assert_eq!(ended, Some(leaves));
        }
        let (_, ended) = slots.take(device(2), None, GRACE * 9, "x").expect("a slot");
        assert_eq!(ended, Some("invited"), "the older of both");
        let (_, ended) = slots.take(device(3), None, GRACE * 9, "x").expect("a slot");
        assert_eq!(ended, Some("x"), "the one with the most");
        assert_eq!(slots.len(), SLOTS);
    }

    #[test]
    fn a_slot_given_back_is_free_and_giving_back_a_replaced_one_changes_nothing() {
        let mut slots = Slots::default();
        let (number, _) = slots.take(device(1), host(1), NO_TIME, "first").expect("a slot");
        fill(&mut slots, SLOTS_EACH - 1, |_| (device(1), host(1)), "more");
        let (_, ended) = slots.take(device(1), host(1), GRACE, "last").expect("a slot");
        assert_eq!(ended, Some("first"));
        slots.give_back(number);
        assert_eq!(slots.len(), SLOTS_EACH);
        for number in 0..=SLOTS_EACH as u64 {
            slots.give_back(number);
        }
        assert_eq!(slots.len(), 0);
    }
}
