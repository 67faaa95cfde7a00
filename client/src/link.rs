//! The state of the way to the server, as all parts see it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use common::wire::Hello;
use quinn::{Connection, Endpoint};

use crate::{
    dial::{DialError, Way},
    ssh::SshCarrier,
};

/// The state of the way to the server.
#[derive(Debug, Clone)]
pub enum Link {
    /// There is none; it is being sought.
    Down(Down),
    /// The server has said hello.
    Up(Arc<Up>),
    /// The connection stands, but nothing has come over it for a while.
    Silent(Arc<Up>),
    /// The server has said no.
    Refused(DialError),
}

/// Since when there is no tunnel, and why.
#[derive(Debug, Clone)]
pub struct Down {
    /// Since when.
    pub since: Instant,
    /// Why the last one ended or the last attempt failed; `None` before the first has.
    pub why: Option<DialError>,
}

/// A tunnel that is up.
#[derive(Debug)]
pub struct Up {
    /// The endpoint under it.
    pub endpoint: Endpoint,
    /// The connection.
    pub connection: Connection,
    /// How its datagrams go.
    pub way: Way,
    /// What carries them, where that has to be kept alive.
    pub carrying: Mutex<Option<SshCarrier>>,
    /// What the server said.
    pub hello: Hello,
    /// Since when.
    pub since: SystemTime,
}

impl Up {
    /// Whether what carries the datagrams has ended.
    pub fn carrier_is_dead(&self) -> bool {
        self.carrying.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(SshCarrier::is_dead)
    }

    /// How many datagrams have come from the server.
    pub fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }
}
