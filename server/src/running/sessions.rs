//! Who is connected now: one session per device, and the means to end it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::{
    machine::process::unix_now,
    transport::{
        carrier::{InteractiveData, LossEstimate, PacketRepeats, PathCounts, ProtectedPath},
        splice::ByteCounters,
    },
};
use proto::{
    identity::{Certificate, DeviceId},
    wire::{Code, KEEP_ALIVE},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::policy::Policy;

#[derive(Default)]
pub(crate) struct Sessions {
    sessions: Mutex<HashMap<DeviceId, ConnectedDevice>>,
    /// Notified when a session that had no open stream has one.
    begun: Notify,
}

struct ConnectedDevice {
    connection: quinn::Connection,
    certificate: Certificate,
    since: i64,
    traffic: Arc<Traffic>,
    /// How many datagrams had arrived at the last check, and when the last new one was noticed.
    heard: (u64, i64),
    loss: LossEstimate,
    interactive: Arc<InteractiveData>,
}

/// How often sessions are checked for silence.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often while a session is in use: whether its link loses, and what it has left for copies,
/// changes soon when an answer begins.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// A device from which no packet has come for this long is away: two keep-alive intervals and a
/// half.
const AWAY_AFTER: i64 = KEEP_ALIVE.as_secs() as i64 * 5 / 2;

/// The traffic of one session.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// How many streams are open now.
    pub streams: AtomicUsize,
    /// Bytes of the session; `sent` is from the service to the device. Those of open `tcp` streams
    /// are not included yet.
    pub meter: ByteCounters,
    /// The bytes of open `tcp` streams.
    apart: Mutex<Vec<Arc<ByteCounters>>>,
    /// Why the server has ended the session, if it has.
    ended: OnceLock<Code>,
}

/// Counts the bytes of one stream, for the stream and for the session.
pub(crate) struct StreamMeter<'a> {
    traffic: &'a Traffic,
    pub meter: Arc<ByteCounters>,
}

impl Traffic {
    /// Counters for one stream.
    pub(crate) fn stream(&self) -> StreamMeter<'_> {
        let meter = Arc::<ByteCounters>::default();
        self.apart().push(meter.clone());
        StreamMeter { traffic: self, meter }
    }

    /// Bytes to the device, and from the device.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let apart = self.apart();
        let of = |meter: &ByteCounters| (meter.sent.load(Relaxed), meter.received.load(Relaxed));
        apart
            .iter()
            .map(|meter| of(meter))
            .fold(of(&self.meter), |all, one| (all.0 + one.0, all.1 + one.1))
    }

    /// Ends the session's connection with a code.
    pub(crate) fn close(&self, connection: &quinn::Connection, code: Code) {
        // The first reason is kept.
        let _ = self.ended.set(code);
        close(connection, code);
    }

    /// Why the server has ended the session, if it has.
    pub(crate) fn ended(&self) -> Option<Code> {
        self.ended.get().copied()
    }

    fn apart(&self) -> MutexGuard<'_, Vec<Arc<ByteCounters>>> {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamMeter<'_> {
    fn drop(&mut self) {
        let mut apart = self.traffic.apart();
        apart.retain(|other| !Arc::ptr_eq(other, &self.meter));
        let all = &self.traffic.meter;
        all.sent.fetch_add(self.meter.sent.load(Relaxed), Relaxed);
        all.received.fetch_add(self.meter.received.load(Relaxed), Relaxed);
    }
}

/// A session, as `aditd status` and `aditd device` print it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionStatus {
    pub device_id: DeviceId,
    /// When it began, in Unix time.
    pub since: i64,
    /// Since when nothing has come from the device, in Unix time; `None` if it is not away.
    pub away_since: Option<i64>,
    pub remote: String,
    /// The round-trip time in milliseconds.
    pub rtt_ms: f64,
    /// How many streams are open now.
    pub streams: usize,
    /// Bytes from the service to the device.
    pub sent: u64,
    /// Bytes from the device to the service.
    pub received: u64,
}

/// A session's entry among the live ones; removed when dropped.
pub(crate) struct SessionGuard {
    live: Arc<Sessions>,
    id: DeviceId,
    connection: quinn::Connection,
    pub traffic: Arc<Traffic>,
    /// The earlier session of the same device that this one has ended.
    pub earlier: Option<Earlier>,
}

/// A session that another session of the same device has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Earlier {
    /// The address that its last packets came from.
    pub remote: SocketAddr,
    /// Whether packets had arrived until just before.
    pub was_alive: bool,
}

impl Sessions {
    /// Adds a session. An earlier session of the same device is ended: its `adit` was killed, or
    /// its certificate was copied.
    pub(crate) fn enter(
        self: &Arc<Self>,
        id: DeviceId,
        certificate: &Certificate,
        connection: &quinn::Connection,
        interactive: &Arc<InteractiveData>,
        now: i64,
    ) -> SessionGuard {
        let traffic = Arc::new(Traffic::default());
        let session = ConnectedDevice {
            connection: connection.clone(),
            certificate: certificate.clone(),
            since: now,
            traffic: traffic.clone(),
            heard: (0, now),
            loss: LossEstimate::default(),
            interactive: interactive.clone(),
        };
        let earlier = self.lock().insert(id, session).map(|earlier| {
            let is_open = earlier.connection.close_reason().is_none();
            earlier.close(Code::Superseded);
            Earlier {
                remote: earlier.connection.remote_address(),
                was_alive: is_open && !earlier.is_away(now),
            }
        });
        SessionGuard { live: self.clone(), id, connection: connection.clone(), traffic, earlier }
    }

    /// Ends every session that the policy no longer admits, with its streams. Returns how many.
    pub(crate) fn enforce(&self, policy: &Policy) -> usize {
        let sessions = self.lock();
        let denied = sessions
            .values()
            .filter_map(|s| policy.admit(&s.certificate).err().map(|code| (s, code)));
        denied.map(|(session, code)| session.end(policy, code)).count()
    }

    /// Notes for ever which devices are away, and which links lose packets.
    pub(crate) async fn watch(self: Arc<Self>, repeats: Arc<PacketRepeats>) {
        loop {
            let looked = tokio::time::Instant::now();
            let pause = self.look(looked.into_std(), &repeats);
            tokio::select! {
                () = tokio::time::sleep_until(looked + pause) => {}
                // The first losses count, and the next look at idle sessions is far.
                () = self.begun.notified() => tokio::time::sleep_until(looked + LOOK_SOON).await,
            }
        }
    }

    /// Returns after how long to look again.
    fn look(&self, now: Instant, repeats: &PacketRepeats) -> Duration {
        let (mut protected, mut pause) = (Vec::new(), LOOK_EVERY);
        for session in self.lock().values_mut() {
            protected.extend(session.look(now, repeats));
            if session.is_at_risk() {
                pause = LOOK_SOON;
            }
        }
        repeats.protect(now, &protected);
        pause
    }

    /// All sessions, as the commands print them.
    pub(crate) fn status(&self) -> Vec<SessionStatus> {
        let now = unix_now();
        let shown = |(id, session): (&DeviceId, &ConnectedDevice)| {
            let (sent, received) = session.traffic.bytes();
            SessionStatus {
                device_id: *id,
                since: session.since,
                away_since: session.is_away(now).then_some(session.heard.1),
                remote: session.connection.remote_address().to_string(),
                rtt_ms: session.connection.rtt().as_secs_f64() * 1e3,
                streams: session.traffic.streams.load(Relaxed),
                sent,
                received,
            }
        };
        self.lock().iter().map(shown).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, ConnectedDevice>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectedDevice {
    fn close(&self, code: Code) {
        self.traffic.close(&self.connection, code);
    }

    /// Ends it because the policy does not admit it any more.
    fn end(&self, policy: &Policy, code: Code) {
        let _ = self.traffic.ended.set(code);
        refuse(&self.connection, policy, &self.certificate, code);
    }

    /// Notes whether it is heard. Returns its address if its small packets are to be sent twice,
    /// and how.
    fn look(&mut self, now: Instant, repeats: &PacketRepeats) -> Option<ProtectedPath> {
        let stats = self.connection.stats();
        if stats.udp_rx.datagrams != self.heard.0 {
            self.heard = (stats.udp_rx.datagrams, unix_now());
        }
        let remote = self.connection.remote_address();
        let hidden = repeats.hidden_to(remote);
        let protection = self.loss.note(now, PathCounts::from(&stats), hidden);
        let protection = protection.filter(|_| self.may_lose())?;
        Some(ProtectedPath { to: remote, protection, interactive: self.interactive.clone() })
    }

    /// Whether its path may lose packets: what comes by SSH is lost by nobody on the way, and nothing is
    /// on this machine.
    fn may_lose(&self) -> bool {
        !self.connection.remote_address().ip().is_loopback()
    }

    /// Whether an answer of it may have to be protected soon.
    fn is_at_risk(&self) -> bool {
        self.traffic.streams.load(Relaxed) > 0 && self.may_lose()
    }

    fn is_away(&self, now: i64) -> bool {
        now - self.heard.1 > AWAY_AFTER
    }
}

impl SessionGuard {
    /// Counts a stream until the returned value is dropped.
    pub(crate) fn count_stream(&self) -> CountedStream<'_> {
        if self.traffic.streams.fetch_add(1, Relaxed) == 0 {
            self.live.begun.notify_one();
        }
        CountedStream(&self.traffic.streams)
    }
}

/// An open stream of a session.
pub(crate) struct CountedStream<'a>(&'a AtomicUsize);

impl Drop for CountedStream<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let mut sessions = self.live.lock();
        // A later session of the same device may have replaced this entry.
        if sessions
            .get(&self.id)
            .is_some_and(|s| s.connection.stable_id() == self.connection.stable_id())
        {
            sessions.remove(&self.id);
        }
    }
}

/// Closes the connection of a device that the policy does not admit. The reason phrase of
/// [`Code::Revoked`] has the revoked user and the owner's reason, if there are any.
pub(crate) fn refuse(
    connection: &quinn::Connection,
    policy: &Policy,
    certificate: &Certificate,
    code: Code,
) {
    let revocation = policy.revocation(certificate).filter(|_| code == Code::Revoked);
    match revocation.and_then(|revocation| revocation.phrase()) {
        Some(phrase) => connection.close((code as u32).into(), phrase.as_bytes()),
        None => close(connection, code),
    }
}

/// Closes a connection with a code, and with its sentence for whoever looks at the packets.
pub(crate) fn close(connection: &quinn::Connection, code: Code) {
    connection.close((code as u32).into(), code.sentence().as_bytes());
}
