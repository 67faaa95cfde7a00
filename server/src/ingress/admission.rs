//! The door: which packets are looked at, which connection attempts are answered, and how many at
//! once.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use proto::knock::DoorKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::policy::Policy;

/// Handshakes under way at once.
const HANDSHAKES: usize = 64;
/// Handshakes of one address under way at once, if it isn't this machine's own: one that never
/// finishes its own leaves room for others.
const HANDSHAKES_EACH: usize = 8;
/// Attempts of one address per second, and at once.
const ATTEMPTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const ATTEMPTS_AT_ONCE: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
/// Addresses that are remembered; beyond it those are forgotten that have been quiet.
const ADDRESSES: usize = 10_000;

/// Which way an attempt goes in.
#[derive(Debug)]
pub enum Verdict {
    /// Not a sound.
    Ignore(Reason),
    /// Prove your address first (RFC 9000 section 8.1.2).
    Retry,
    /// To the tunnel, where a certificate is required. The room is held until the handshake is
    /// over.
    Tunnel(Room),
    /// To enrollment, where an invitation is required.
    Enroll(Room),
}

/// Why an attempt, or a datagram, was ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It came from a network that nobody named.
    Network,
    /// It was no packet of QUIC version 1 that could be for us.
    Datagram,
    /// No knock, or not with a key of ours.
    Stranger,
    /// Too many attempts from this address.
    TooOften,
    /// Too many handshakes at once.
    Full,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Network, Self::Datagram, Self::Stranger, Self::TooOften, Self::Full];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Datagram => "datagram",
            Self::Stranger => "stranger",
            Self::TooOften => "too_often",
            Self::Full => "full",
        }
    }
}

/// How a handshake ended, after the door had let it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// It was a tunnel.
    Tunnel,
    /// It was an enrollment.
    Enrollment,
    /// It failed: a certificate that is not, or no longer, good, or none.
    Failed,
    /// It took too long.
    Late,
}

impl Handshake {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tunnel, Self::Enrollment, Self::Failed, Self::Late];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Enrollment => "enrollment",
            Self::Failed => "failed",
            Self::Late => "late",
        }
    }
}

/// Room for one handshake; given back when dropped.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
    under_way: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: Option<IpAddr>,
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = under_way.entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Decides about connection attempts, before a handshake costs anything.
pub struct Door {
    key: DoorKey,
    policy: Arc<Policy>,
    handshakes: Arc<Semaphore>,
    under_way: Arc<Mutex<HashMap<IpAddr, usize>>>,
    attempts: DefaultKeyedRateLimiter<IpAddr>,
    closed: AtomicBool,
    ignored: HashMap<Reason, AtomicU64>,
    handshaken: [AtomicU64; Handshake::ALL.len()],
}

impl Door {
    /// A door whose own key is `key`; open invitations come from the policy's snapshot.
    pub fn new(key: DoorKey, policy: Arc<Policy>) -> Self {
        let quota = Quota::per_second(ATTEMPTS_PER_SECOND).allow_burst(ATTEMPTS_AT_ONCE);
        let ignored = Reason::ALL.map(|reason| (reason, AtomicU64::new(0)));
        Self {
            key,
            policy,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            under_way: Arc::default(),
            attempts: RateLimiter::dashmap(quota),
            closed: AtomicBool::new(false),
            ignored: ignored.into(),
            handshaken: Default::default(),
        }
    }

    /// Judges one attempt by its knock, its address, and whether that address has been proved.
    /// `now` is Unix time.
    pub fn judge(&self, knock: &[u8], remote: SocketAddr, proved: bool, now: i64) -> Verdict {
        let to_tunnel = self.key.opens_for(knock);
        if !to_tunnel && !self.policy.snapshot().invites(knock, now) {
            return self.ignore(Reason::Stranger);
        }
        let local = remote.ip().to_canonical().is_loopback();
        // What comes by SSH comes from loopback, all of it; whoever is on this machine has cheaper
        // ways to be a nuisance.
        if !local {
            if !proved {
                return Verdict::Retry;
            }
            if self.attempts.len() > ADDRESSES {
                self.attempts.retain_recent();
            }
            if self.attempts.check_key(&network(remote.ip())).is_err() {
                return self.ignore(Reason::TooOften);
            }
        }
        match self.room((!local).then(|| network(remote.ip()))) {
            Some(room) if to_tunnel => Verdict::Tunnel(room),
            Some(room) => Verdict::Enroll(room),
            // The client sends its first packet again, a second later.
            None => self.ignore(Reason::Full),
        }
    }

    /// Room for a handshake in all, and for `address` if its own are counted.
    fn room(&self, address: Option<IpAddr>) -> Option<Room> {
        let permit = self.handshakes.clone().try_acquire_owned().ok()?;
        if let Some(address) = address {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            let count = under_way.entry(address).or_default();
            if *count >= HANDSHAKES_EACH {
                return None;
            }
            *count += 1;
        }
        Some(Room { _permit: permit, under_way: self.under_way.clone(), address })
    }

    /// How many attempts were ignored, by reason.
    pub fn ignored(&self, reason: Reason) -> u64 {
        self.ignored.get(&reason).map_or(0, |count| count.load(Relaxed))
    }

    /// Counts a handshake that is over.
    pub fn shaken(&self, how: Handshake) {
        self.handshaken[how as usize].fetch_add(1, Relaxed);
    }

    /// How many handshakes ended so.
    pub fn handshakes(&self, how: Handshake) -> u64 {
        self.handshaken[how as usize].load(Relaxed)
    }

    /// No newcomer is heard from now on: a closed endpoint refuses them aloud.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Whether newcomers are heard no more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Counts something that is ignored.
    pub fn count(&self, reason: Reason) {
        if let Some(count) = self.ignored.get(&reason) {
            count.fetch_add(1, Relaxed);
        }
    }

    fn ignore(&self, reason: Reason) -> Verdict {
        self.count(reason);
        Verdict::Ignore(reason)
    }
}

/// What counts as one address: an IPv4 address, or the /64 of an IPv6 one.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::upstream::Upstream, state::register::Snapshot};

    fn door() -> Door {
        Door::new(
            DoorKey::from_bytes([1; 32]),
            Arc::new(Policy::new(Snapshot::default(), Arc::default(), Upstream::default())),
        )
    }

    fn lan() -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 7], 4000))
    }

    #[test]
    fn without_a_knock_nothing_is_answered() {
        let door = door();
        for knock in [&[][..], &[0; 8], &DoorKey::generate().knock()] {
            assert!(matches!(door.judge(knock, lan(), true, 0), Verdict::Ignore(Reason::Stranger)));
        }
        assert_eq!(door.ignored(Reason::Stranger), 3);
    }

    #[test]
    fn an_address_off_this_machine_is_proved_before_a_handshake() {
        let door = door();
        let knock = door.key.knock();
        assert!(matches!(door.judge(&knock, lan(), false, 0), Verdict::Retry));
        assert!(matches!(door.judge(&knock, lan(), true, 0), Verdict::Tunnel(_)));
        assert!(matches!(
            door.judge(&knock, SocketAddr::from(([127, 0, 0, 1], 1)), false, 0),
            Verdict::Tunnel(_)
        ));
    }

    #[test]
    fn one_address_cannot_try_without_end_and_its_neighbour_still_can() {
        let door = door();
        let knock = door.key.knock();
        let tries = (0..200)
            .filter(|_| matches!(door.judge(&knock, lan(), true, 0), Verdict::Tunnel(_)))
            .count();
        assert!((50..100).contains(&tries), "{tries}");
        assert!(matches!(
            door.judge(&knock, SocketAddr::from(([10, 0, 0, 8], 1)), true, 0),
            Verdict::Tunnel(_)
        ));
        let v6 = |host: u16| SocketAddr::from(([0xfd00, 0, 0, 0, host, 0, 0, 1], 1));
        let tries = (0..200)
            .filter(|i| matches!(door.judge(&knock, v6(*i), true, 0), Verdict::Tunnel(_)))
            .count();
        assert!(tries < 100, "the addresses of one /64 count as one: {tries}");
    }

    #[test]
    fn one_address_cannot_take_the_room_of_all() {
        let door = door();
        let knock = door.key.knock();
        let held: Vec<_> = (0..HANDSHAKES).map(|_| door.judge(&knock, lan(), true, 0)).collect();
        assert_eq!(
            held.iter().filter(|v| matches!(v, Verdict::Tunnel(_))).count(),
            HANDSHAKES_EACH
        );
        let neighbour = SocketAddr::from(([10, 0, 0, 8], 1));
        assert!(matches!(door.judge(&knock, neighbour, true, 0), Verdict::Tunnel(_)));
        drop(held);
        assert!(
            door.under_way.lock().expect("no panic").is_empty(),
            "nothing is remembered of what is over"
        );
    }

    #[test]
    fn handshakes_at_once_are_bounded() {
        let door = door();
        let knock = door.key.knock();
        let local = SocketAddr::from(([127, 0, 0, 1], 1));
        let held: Vec<_> = (0..HANDSHAKES).map(|_| door.judge(&knock, local, false, 0)).collect();
        assert!(matches!(door.judge(&knock, local, false, 0), Verdict::Ignore(Reason::Full)));
        drop(held);
        assert!(matches!(door.judge(&knock, local, false, 0), Verdict::Tunnel(_)));
    }
}
