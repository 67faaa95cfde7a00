//! Admission: which packets are looked at, which connection attempts are answered, and how many at
//! once.
//!
//! It is asked twice. [`Admission::hear`] judges each first packet before QUIC sees it: the packet
//! goes on only if it has the knock of a device or of an open invitation, and is not a copy of an
//! earlier packet. [`Admission::judge`] judges the connection attempt that QUIC makes of it.

pub(crate) mod connection_ids;
pub(crate) mod recent;
pub(crate) mod replay;
mod slots;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use proto::{
    identity::DeviceId,
    knock::{Checker, Knock},
    rotation::{CaNumber, FIRST_CA},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::slots::Knocker;
use self::{
    replay::{Heard, Hearing, IssuedIds, KeyGroup},
    slots::Slots,
};
use crate::{
    policy::Policy,
    state::{EndpointKeys, authorities::SharedAuthorities},
};

/// The limit of attempts of one address or device: per second, and in a burst.
const ATTEMPTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const ATTEMPTS_AT_ONCE: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
/// How many addresses and devices are remembered; of more, those are forgotten that were quiet for
/// longest.
const REMEMBERED: usize = 10_000;

/// What is done with an attempt.
#[derive(Debug)]
pub(crate) enum AttemptVerdict {
    /// Send no answer.
    Ignore(Reason),
    /// Ask for a proof of the address (RFC 9000 section 8.1.2).
    Retry,
    /// Begin a handshake, for the tunnel or for enrollment, as [`HandshakeSlot::knocker`] says.
    Accept(HandshakeSlot),
}

/// Why an attempt, or a datagram, was ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// It came from a network that is not allowed.
    Network,
    /// It was not a packet of QUIC version 1 that could be for this server.
    Datagram,
    /// It had no knock, or one with an unknown key.
    Stranger,
    /// Its knock or connection ID was used before, or by another client: a copy.
    Replayed,
    /// Too many attempts of this address or device.
    TooOften,
    /// Too many handshakes under way.
    Full,
}

impl Reason {
    pub(crate) const ALL: [Self; 6] =
        [Self::Network, Self::Datagram, Self::Stranger, Self::Replayed, Self::TooOften, Self::Full];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Datagram => "datagram",
            Self::Stranger => "stranger",
            Self::Replayed => "replayed",
            Self::TooOften => "too_often",
            Self::Full => "full",
        }
    }
}

/// How an admitted handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// As a tunnel.
    Tunnel,
    /// As an enrollment.
    Enrollment,
    /// It failed: no certificate, or an invalid or expired one.
    Failed,
    /// It took too long.
    Late,
    /// It was ended to make room for another.
    Displaced,
}

impl Handshake {
    pub(crate) const ALL: [Self; 5] =
        [Self::Tunnel, Self::Enrollment, Self::Failed, Self::Late, Self::Displaced];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Enrollment => "enrollment",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Displaced => "displaced",
        }
    }
}

/// One of the handshakes that may be under way at once; given back when dropped. It is held until
/// the peer has sent its first message, which an honest peer does at once.
#[derive(Debug)]
pub(crate) struct HandshakeSlot {
    number: u64,
    knocker: Knocker,
    ca: CaNumber,
    displaced: CancellationToken,
    slots: Arc<Mutex<Slots<CancellationToken>>>,
}

impl HandshakeSlot {
    /// The owner of the key with which the knock was made.
    pub(crate) fn knocker(&self) -> Knocker {
        self.knocker
    }

    /// The CA that the owner of that key knows.
    pub(crate) fn ca(&self) -> CaNumber {
        self.ca
    }

    /// Ends when the slot was given to another handshake.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        lock(&self.slots).give_back(self.number);
    }
}

/// The keys by which attempts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RateKey {
    Address(IpAddr),
    Device(DeviceId),
}

/// Decides about connection attempts, before a handshake costs anything.
pub(crate) struct Admission {
    authorities: Arc<SharedAuthorities>,
    shared: Checker,
    policy: Arc<Policy>,
    began: Instant,
    heard: Mutex<Heard>,
    issued: Mutex<IssuedIds>,
    slots: Arc<Mutex<Slots<CancellationToken>>>,
    attempts: DefaultKeyedRateLimiter<RateKey>,
    closed: AtomicBool,
    ignored: HashMap<Reason, AtomicU64>,
    handshaken: [AtomicU64; Handshake::ALL.len()],
}

impl Admission {
    /// Uses the server's own keys, and those that go with its CAs. Devices and open invitations are
    /// read from the policy's snapshot at each packet.
    pub(crate) fn new(
        keys: &EndpointKeys,
        authorities: Arc<SharedAuthorities>,
        policy: Arc<Policy>,
    ) -> Self {
        let quota = Quota::per_second(ATTEMPTS_PER_SECOND).allow_burst(ATTEMPTS_AT_ONCE);
        let ignored = Reason::ALL.map(|reason| (reason, AtomicU64::new(0)));
        Self {
            authorities,
            shared: keys.shared_knock.checker(),
            policy,
            began: Instant::now(),
            heard: Mutex::default(),
            issued: Mutex::default(),
            slots: Arc::default(),
            attempts: RateLimiter::dashmap(quota),
            closed: AtomicBool::new(false),
            ignored: ignored.into(),
            handshaken: Default::default(),
        }
    }

    /// Whether QUIC may see a client's Initial packet (RFC 9000 section 17.2.2) with this
    /// Destination Connection ID. `now` is Unix time.
    pub(crate) fn hear(&self, id: &[u8], from: SocketAddr, now: i64) -> bool {
        if self.is_closed() {
            return false;
        }
        let Ok(knock) = Knock::try_from(id) else {
            // The packet after a Retry, and later ones, go to a connection ID that this server
            // chose.
            let knows = lock(&self.issued).knows(id, from, self.uptime());
            return knows || self.drop_for(Reason::Stranger);
        };
        let Some((knocker, _)) = self.knocker(&knock, now) else {
            return self.drop_for(Reason::Stranger);
        };
        // Other keys may be used by many clients: devices without a key of their own share one, and
        // a code may have been given to many.
        let group = match knocker {
            Knocker::Device(_) => KeyGroup::Devices,
            Knocker::Shared | Knocker::Invited(_) => KeyGroup::Crowds,
        };
        let may_try = || match knocker {
            Knocker::Device(id) => self.may_try(RateKey::Device(id)),
            Knocker::Shared | Knocker::Invited(_) => true,
        };
        match lock(&self.heard).hear(&knock, group, from, self.uptime(), may_try) {
            Hearing::Genuine => true,
            Hearing::TooOften => self.drop_for(Reason::TooOften),
            Hearing::Replayed => self.drop_for(Reason::Replayed),
        }
    }

    /// Notes a datagram that the server sends in a handshake.
    pub(crate) fn sent_in_handshake(&self, datagram: &[u8], to: SocketAddr) {
        lock(&self.issued).sent(datagram, to, self.uptime());
    }

    /// Judges one attempt whose packet was heard: by its knock, its address, and whether the
    /// address was proved. `now` is Unix time.
    pub(crate) fn judge(
        &self,
        knock: &[u8],
        remote: SocketAddr,
        proved: bool,
        now: i64,
    ) -> AttemptVerdict {
        // Checked again: the device may have been revoked since.
        let knock: Result<Knock, _> = knock.try_into();
        let Some((knock, (knocker, ca))) =
            knock.ok().and_then(|k| Some((k, self.knocker(&k, now)?)))
        else {
            return self.ignore(Reason::Stranger);
        };
        let local = remote.ip().to_canonical().is_loopback();
        // Everything that comes over SSH comes from loopback. An attacker on this machine has
        // cheaper means.
        if !local {
            if !proved {
                let may = lock(&self.heard).retry(&knock);
                return if may { AttemptVerdict::Retry } else { self.ignore(Reason::Replayed) };
            }
            if !self.may_try(RateKey::Address(network(remote.ip()))) {
                return self.ignore(Reason::TooOften);
            }
        }
        let mut heard = lock(&self.heard);
        if !heard.may_take(&knock) {
            return self.ignore(Reason::Replayed);
        }
        match self.slot(knocker, ca, (!local).then(|| network(remote.ip()))) {
            Some(slot) => {
                heard.take(&knock);
                AttemptVerdict::Accept(slot)
            }
            // The client repeats its first packet after a second.
            None => self.ignore(Reason::Full),
        }
    }

    /// The owner of the key of this knock, and the CA that it knows, if that owner may connect at
    /// `now`, in Unix time.
    fn knocker(&self, knock: &Knock, now: i64) -> Option<(Knocker, CaNumber)> {
        let snapshot = self.policy.snapshot();
        let known = |id| Some((snapshot.key(id)?, snapshot.ca_of(id)));
        if let Some((id, ca)) = self.authorities.get().whose(knock, known) {
            return Some((Knocker::Device(id), ca));
        }
        if snapshot.accepts_shared_knock(now) && self.shared.opens_for(knock) {
            return Some((Knocker::Shared, FIRST_CA));
        }
        snapshot.invites(knock, now).map(|(number, ca)| (Knocker::Invited(number), ca))
    }

    fn slot(
        &self,
        knocker: Knocker,
        ca: CaNumber,
        address: Option<IpAddr>,
    ) -> Option<HandshakeSlot> {
        let displaced = CancellationToken::new();
        let taken = lock(&self.slots).take(knocker, address, self.uptime(), displaced.clone());
        let (number, earlier) = taken?;
        if let Some(earlier) = earlier {
            earlier.cancel();
        }
        Some(HandshakeSlot { number, knocker, ca, displaced, slots: self.slots.clone() })
    }

    fn may_try(&self, who: RateKey) -> bool {
        if self.attempts.len() > REMEMBERED {
            self.attempts.retain_recent();
        }
        self.attempts.check_key(&who).is_ok()
    }

    fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// How many attempts were ignored for this reason.
    pub(crate) fn ignored(&self, reason: Reason) -> u64 {
        self.ignored.get(&reason).map_or(0, |count| count.load(Relaxed))
    }

    /// Counts a handshake that has ended.
    pub(crate) fn count_handshake(&self, how: Handshake) {
        self.handshaken[how as usize].fetch_add(1, Relaxed);
    }

    /// How many handshakes ended in this way.
    pub(crate) fn handshakes(&self, how: Handshake) -> u64 {
        self.handshaken[how as usize].load(Relaxed)
    }

    /// Ignores new clients from now on. A closed QUIC endpoint would answer them with a refusal.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Whether new clients are ignored.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Counts an ignored datagram or attempt.
    pub(crate) fn count(&self, reason: Reason) {
        if let Some(count) = self.ignored.get(&reason) {
            count.fetch_add(1, Relaxed);
        }
    }

    fn drop_for(&self, reason: Reason) -> bool {
        self.count(reason);
        false
    }

    fn ignore(&self, reason: Reason) -> AttemptVerdict {
        self.count(reason);
        AttemptVerdict::Ignore(reason)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is completed before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The unit by which addresses are counted: an IPv4 address, or the /64 of an IPv6 address.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
