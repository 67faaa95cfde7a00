//! Who uses the listener: how much of it, from where, and when last.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
};

use common::transport::splice::ByteCounters;
use proto::identity::{DeviceId, Name, UserName};
use serde::{Deserialize, Serialize};

use crate::record::{Asker, CallerKind};

/// The most connections of one caller on which a request is served.
const MOST_AT_ONCE: usize = 256;
/// How often it is noted that a key was used, in seconds.
const NOTED_EVERY: i64 = 60;

/// The callers since the start: as many as there are keys and devices at the most.
#[derive(Debug, Default)]
pub(super) struct Callers(Mutex<HashMap<DeviceId, Arc<Use>>>);

/// What one caller uses.
#[derive(Debug)]
pub(super) struct Use {
    name: Name,
    kind: CallerKind,
    user: Option<UserName>,
    running: AtomicUsize,
    pub(super) meter: ByteCounters,
    last: Mutex<SocketAddr>,
    /// In Unix time.
    seen: AtomicI64,
    /// When that was noted in the register, in Unix time.
    noted: AtomicI64,
}

/// A request of a caller, while it is served.
#[derive(Debug)]
pub(super) struct Serving(pub(super) Arc<Use>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

/// A caller, as `aditd status` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallerStatus {
    pub id: DeviceId,
    pub name: Name,
    /// `device` or `key`.
    pub kind: String,
    #[serde(default)]
    pub user: Option<UserName>,
    /// Its requests that are served now.
    pub running: usize,
    /// The address of its last request.
    pub remote: String,
    /// When that came, in Unix time.
    pub seen: i64,
    /// Bytes from the service to it.
    pub sent: u64,
    /// Bytes from it to the service.
    pub received: u64,
}

impl Callers {
    /// A request is served for this caller, at `now` in Unix time. `None` if it has too many.
    pub(super) fn enter(&self, asker: &Asker, now: i64) -> Option<Serving> {
        let used = self.lock().entry(asker.id).or_insert_with(|| new_use(asker)).clone();
        *used.last.lock().unwrap_or_else(PoisonError::into_inner) = asker.remote;
        used.seen.store(now, Relaxed);
        let serving = (used.running.fetch_add(1, Relaxed) < MOST_AT_ONCE, Serving(used));
        serving.0.then_some(serving.1)
    }

    /// The keys whose use is to be noted, and when each was last used, in Unix time.
    pub(super) fn to_note(&self) -> Vec<(DeviceId, i64)> {
        let is_due = |used: &Use| {
            let (seen, noted) = (used.seen.load(Relaxed), used.noted.load(Relaxed));
            let due = used.kind == CallerKind::Key
                && seen > noted
                && (noted == 0 || seen - noted >= NOTED_EVERY);
            due.then(|| {
                used.noted.store(seen, Relaxed);
                seen
            })
        };
        self.lock().iter().filter_map(|(id, used)| Some((*id, is_due(used)?))).collect()
    }

    /// Those who have made a request since the start, by name.
    pub(super) fn status(&self) -> Vec<CallerStatus> {
        let mut all: Vec<_> = self.lock().iter().map(|(id, used)| used.status(*id)).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Arc<Use>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_use(asker: &Asker) -> Arc<Use> {
    Arc::new(Use {
        name: asker.name.clone(),
        kind: asker.kind,
        user: asker.user.clone(),
        running: AtomicUsize::new(0),
        meter: ByteCounters::default(),
        last: Mutex::new(asker.remote),
        seen: AtomicI64::new(0),
        noted: AtomicI64::new(0),
    })
}

impl Use {
    fn status(&self, id: DeviceId) -> CallerStatus {
        CallerStatus {
            id,
            name: self.name.clone(),
            kind: self.kind.to_string(),
            user: self.user.clone(),
            running: self.running.load(Relaxed),
            remote: self.last.lock().unwrap_or_else(PoisonError::into_inner).to_string(),
            seen: self.seen.load(Relaxed),
            sent: self.meter.sent.load(Relaxed),
            received: self.meter.received.load(Relaxed),
        }
    }
}
