//! The requests that run now, for the owner's tools.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use common::machine::process::unix_now;
use proto::identity::Name;
use serde::Serialize;

use crate::{
    audit::entry::{Subject, escaped},
    record::{CallerKind, RequestRecord},
};

/// A request that was let pass and has not ended.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LiveRequest {
    /// Its number among the requests of this process that were let pass.
    pub request: u64,
    #[serde(flatten)]
    pub who: Subject,
    pub role: Name,
    pub service: Name,
    carrier: &'static str,
    remote: SocketAddr,
    pub method: String,
    pub path: String,
    /// The model that it names, if that was read.
    pub model: Option<String>,
    /// When it was let pass, in Unix time.
    pub since: i64,
}

impl LiveRequest {
    /// What its caller is.
    pub(crate) fn kind(&self) -> CallerKind {
        match (self.who.is_key, self.who.is_token) {
            (true, _) => CallerKind::Key,
            (_, true) => CallerKind::Token,
            _ => CallerKind::Device,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct LiveRequests {
    last: AtomicU64,
    running: Mutex<BTreeMap<u64, Arc<LiveRequest>>>,
}

impl LiveRequests {
    /// Adds a request, and gives it a number.
    pub(super) fn begin(&self, record: &RequestRecord) -> Arc<LiveRequest> {
        let number = self.last.fetch_add(1, Relaxed) + 1;
        let request = Arc::new(LiveRequest {
            request: number,
            who: (&record.asker).into(),
            role: record.role.clone(),
            service: record.service.clone(),
            carrier: record.asker.carrier.as_str(),
            remote: record.asker.remote,
            method: escaped(&record.method),
            path: escaped(&record.path),
            model: record.model.as_deref().map(escaped),
            since: unix_now(),
        });
        self.lock().insert(number, request.clone());
        request
    }

    /// Removes the request with this number.
    pub(super) fn end(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// The requests that run, the oldest first.
    pub(crate) fn list(&self) -> Vec<LiveRequest> {
        self.lock().values().map(|request| LiveRequest::clone(request)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<LiveRequest>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
