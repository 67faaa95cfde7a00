//! Recent events of the tunnel, for the log and for `adit status`.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, PoisonError},
};

use common::machine::process::unix_now;
use serde::{Deserialize, Serialize};
use tracing::info;

const KEPT: usize = 32;

/// The last events.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<VecDeque<TunnelEvent>>);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TunnelEvent {
    /// When, Unix seconds.
    pub(crate) at: i64,
    /// The event, in words.
    pub(crate) what: String,
}

impl Events {
    /// Notes an event, and logs it.
    pub(crate) fn note(&self, what: impl fmt::Display) {
        let what = what.to_string();
        info!("{what}");
        self.keep(what);
    }

    /// Notes an event that is logged elsewhere.
    pub(crate) fn keep(&self, what: String) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(TunnelEvent { at: unix_now(), what });
    }

    /// Whether nothing has happened yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The last events, oldest first.
    pub(crate) fn latest(&self) -> Vec<TunnelEvent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
