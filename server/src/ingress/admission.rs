//! Admission: which packets are looked at, which connection attempts are answered, and how many at
//! once.
//!
//! It is asked twice. [`Admission::hear`] judges each first packet before QUIC sees it: only the knock
//! of a device, or of an open invitation, which is no copy of an earlier one, goes on.
//! [`Admission::judge`] judges the attempt that QUIC has made of it.

pub(crate) mod connection_ids;
mod recent;
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
    knock::{Checker, DeviceKnocks, Knock},
};
use tokio_util::sync::CancellationToken;

pub use self::slots::Knocker;
use self::{
    replay::{Group, Heard, Hearing, Issued},
    slots::Slots,
};
use crate::{policy::Policy, state::EndpointKeys};

/// Attempts of one address, and of one device, per second, and at once.
const ATTEMPTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const ATTEMPTS_AT_ONCE: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
/// Addresses and devices that are remembered; beyond it those are forgotten that have been quiet.
const REMEMBERED: usize = 10_000;

/// Which way an attempt goes in.
#[derive(Debug)]
pub enum Verdict {
    /// Not a sound.
    Ignore(Reason),
    /// Prove your address first (RFC 9000 section 8.1.2).
    Retry,
    /// A handshake, for the tunnel or for enrollment, as [`HandshakeSlot::knocker`] says.
    Accept(HandshakeSlot),
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
    /// A knock, or a connection ID of ours, that was used before or by somebody else: a copy.
    Replayed,
    /// Too many attempts of this address or device.
    TooOften,
    /// Too many handshakes at once.
    Full,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Network, Self::Datagram, Self::Stranger, Self::Replayed, Self::TooOften, Self::Full];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
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

/// How a handshake ended, after it was admitted.
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
    /// It had to make room for another.
    Displaced,
}

impl Handshake {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Tunnel, Self::Enrollment, Self::Failed, Self::Late, Self::Displaced];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
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
/// the peer has said its first words, which an honest one does at once.
#[derive(Debug)]
pub struct HandshakeSlot {
    number: u64,
    knocker: Knocker,
    displaced: CancellationToken,
    slots: Arc<Mutex<Slots<CancellationToken>>>,
}

impl HandshakeSlot {
    /// Whose knock it was.
    pub fn knocker(&self) -> Knocker {
        self.knocker
    }

    /// Ends when the slot belongs to another handshake. Cancellation safe.
    pub async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        lock(&self.slots).give_back(self.number);
    }
}

/// Who may not try too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Limited {
    Address(IpAddr),
    Device(DeviceId),
}

/// Decides about connection attempts, before a handshake costs anything.
pub struct Admission {
    knocks: DeviceKnocks,
    shared: Checker,
    policy: Arc<Policy>,
    began: Instant,
    heard: Mutex<Heard>,
    issued: Mutex<Issued>,
    slots: Arc<Mutex<Slots<CancellationToken>>>,
    attempts: DefaultKeyedRateLimiter<Limited>,
    closed: AtomicBool,
    ignored: HashMap<Reason, AtomicU64>,
    handshaken: [AtomicU64; Handshake::ALL.len()],
}

impl Admission {
    /// Admission with the server's own keys; devices and open invitations come from the policy's
    /// snapshot, at each packet anew.
    pub fn new(keys: &EndpointKeys, policy: Arc<Policy>) -> Self {
        let quota = Quota::per_second(ATTEMPTS_PER_SECOND).allow_burst(ATTEMPTS_AT_ONCE);
        let ignored = Reason::ALL.map(|reason| (reason, AtomicU64::new(0)));
        Self {
            knocks: keys.device_knocks(),
            shared: keys.door.checker(),
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
    pub fn hear(&self, id: &[u8], from: SocketAddr, now: i64) -> bool {
        if self.is_closed() {
            return false;
        }
        let Ok(knock) = Knock::try_from(id) else {
            // The first packet after a Retry, and later ones, go to an ID that we chose.
            let knows = lock(&self.issued).knows(id, from, self.uptime());
            return knows || self.drop_for(Reason::Stranger);
        };
        let Some(knocker) = self.knocker(&knock, now) else {
            return self.drop_for(Reason::Stranger);
        };
        // Behind other keys there may be many: devices without a knock of their own are one
        // knocker, and a code may have been given to a crowd.
        let group = match knocker {
            Knocker::Device(_) => Group::Devices,
            Knocker::Shared | Knocker::Invited(_) => Group::Crowds,
        };
        let may_try = || match knocker {
            Knocker::Device(id) => self.may_try(Limited::Device(id)),
            Knocker::Shared | Knocker::Invited(_) => true,
        };
        match lock(&self.heard).hear(&knock, group, from, self.uptime(), may_try) {
            Hearing::Genuine => true,
            Hearing::TooOften => self.drop_for(Reason::TooOften),
            Hearing::Replayed => self.drop_for(Reason::Replayed),
        }
    }

    /// Notes a datagram that the server sends in a handshake.
    pub fn sent_in_handshake(&self, datagram: &[u8], to: SocketAddr) {
        lock(&self.issued).sent(datagram, to, self.uptime());
    }

    /// Judges one attempt that was heard: by its knock, its address, and whether that address has
    /// been proved. `now` is Unix time.
    pub fn judge(&self, knock: &[u8], remote: SocketAddr, proved: bool, now: i64) -> Verdict {
        // Asked anew: the device may have been revoked since.
        let knock: Result<Knock, _> = knock.try_into();
        let Some((knock, knocker)) = knock.ok().and_then(|k| Some((k, self.knocker(&k, now)?)))
        else {
            return self.ignore(Reason::Stranger);
        };
        let local = remote.ip().to_canonical().is_loopback();
        // What comes by SSH comes from loopback, all of it; whoever is on this machine has cheaper
        // ways to be a nuisance.
        if !local {
            if !proved {
                let may = lock(&self.heard).retry(&knock);
                return if may { Verdict::Retry } else { self.ignore(Reason::Replayed) };
            }
            if !self.may_try(Limited::Address(network(remote.ip()))) {
                return self.ignore(Reason::TooOften);
            }
        }
        let mut heard = lock(&self.heard);
        if !heard.may_take(&knock) {
            return self.ignore(Reason::Replayed);
        }
        match self.slot(knocker, (!local).then(|| network(remote.ip()))) {
            Some(slot) => {
                heard.take(&knock);
                Verdict::Accept(slot)
            }
            // The client sends its first packet again, a second later.
            None => self.ignore(Reason::Full),
        }
    }

    /// Whose knock this is, if that one may come in at `now`, Unix time.
    fn knocker(&self, knock: &Knock, now: i64) -> Option<Knocker> {
        let snapshot = self.policy.snapshot();
        if let Some(id) = self.knocks.whose(knock, |id| snapshot.key(id)) {
            return Some(Knocker::Device(id));
        }
        if snapshot.accepts_shared_knock(now) && self.shared.opens_for(knock) {
            return Some(Knocker::Shared);
        }
        snapshot.invites(knock, now).map(Knocker::Invited)
    }

    fn slot(&self, knocker: Knocker, address: Option<IpAddr>) -> Option<HandshakeSlot> {
        let displaced = CancellationToken::new();
        let taken = lock(&self.slots).take(knocker, address, self.uptime(), displaced.clone());
        let (number, earlier) = taken?;
        if let Some(earlier) = earlier {
            earlier.cancel();
        }
        Some(HandshakeSlot { number, knocker, displaced, slots: self.slots.clone() })
    }

    fn may_try(&self, who: Limited) -> bool {
        if self.attempts.len() > REMEMBERED {
            self.attempts.retain_recent();
        }
        self.attempts.check_key(&who).is_ok()
    }

    fn uptime(&self) -> Duration {
        self.began.elapsed()
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

    fn drop_for(&self, reason: Reason) -> bool {
        self.count(reason);
        false
    }

    fn ignore(&self, reason: Reason) -> Verdict {
        self.count(reason);
        Verdict::Ignore(reason)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What counts as one address: an IPv4 address, or the /64 of an IPv6 one.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
