//! The state of the way to the server, as all parts see it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use common::{machine::process::unix_now, transport::credit::Credit};
use proto::wire::Hello;
use quinn::{Connection, Endpoint};

use super::loss::{Loss, Packets};
use crate::dial::{
    DialError,
    route::{Carrier, Route},
};

/// The state of the way to the server.
#[derive(Debug, Clone)]
pub enum TunnelState {
    /// There is none; it is being sought.
    Down(Down),
    /// The server has said hello.
    Up(Arc<Up>),
    /// The connection stands, but nothing has come over it for a while.
    Silent(Arc<Up>),
    /// The server has said no, or it must not be connected to.
    Refused(Refusal),
}

/// Why there is no tunnel, though the server was reached.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Why.
    pub why: DialError,
    /// From then on a connection that waits brings the next attempt.
    pub wake_at: Instant,
}

/// Since when there is no tunnel, and why.
#[derive(Debug, Clone)]
pub struct Down {
    /// Since when.
    pub since: Instant,
    /// Why the last one ended or the last attempt failed; before the first has, whose answer is
    /// waited for.
    pub why: DialError,
}

/// A tunnel that is up.
#[derive(Debug)]
pub struct Up {
    /// The endpoint under it.
    pub endpoint: Endpoint,
    /// The connection.
    pub connection: Connection,
    /// What the server said.
    pub hello: Hello,
    /// Since when.
    pub since: SystemTime,
    /// What its streams may send.
    pub credit: Arc<Credit>,
    carried: Mutex<Carried>,
    loss: Mutex<Loss>,
}

/// What carries a session now.
#[derive(Debug)]
pub struct Carried {
    /// The way that it goes.
    pub way: Route,
    /// What goes it.
    pub carrier: Carrier,
    /// Since when, Unix seconds.
    pub since: i64,
    /// Why not another, if that is known.
    pub why_not_other: Option<String>,
}

impl Up {
    /// A session that has begun now, on this carrier.
    pub fn new(
        endpoint: Endpoint,
        connection: Connection,
        hello: Hello,
        way: Route,
        carrier: Carrier,
    ) -> Arc<Self> {
        let carried = Carried { way, carrier, since: unix_now(), why_not_other: None };
        Arc::new(Self {
            endpoint,
            connection,
            hello,
            since: SystemTime::now(),
            credit: Credit::new(),
            carried: Mutex::new(carried),
            loss: Mutex::default(),
        })
    }

    /// What carries it now.
    pub fn carried(&self) -> MutexGuard<'_, Carried> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way that it goes now.
    pub fn way(&self) -> Route {
        self.carried().way.clone()
    }

    /// Puts the session on another carrier and returns the one before: to the server it then comes
    /// from a new address, with nothing held against it (RFC 9000 section 9.4).
    ///
    /// # Errors
    /// If the carrier has no socket any more. The session stays where it was.
    pub fn put_on(&self, way: Route, carrier: Carrier) -> std::io::Result<(Route, Carrier)> {
        self.endpoint.rebind_abstract(carrier.socket())?;
        let mut carried = self.carried();
        if carried.way.carrier() != way.carrier() {
            carried.since = unix_now();
            carried.why_not_other = None;
        }
        Ok((
            std::mem::replace(&mut carried.way, way),
            std::mem::replace(&mut carried.carrier, carrier),
        ))
    }

    /// Notes how many packets have been lost so far.
    pub(crate) fn note_packets(&self, now: Instant) {
        let mut loss = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        loss.note(now, self.packets());
    }

    /// How many packets have been sent and lost in the last minute.
    pub(crate) fn recent_packets(&self) -> Packets {
        let loss = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        loss.recent(self.packets())
    }

    fn packets(&self) -> Packets {
        let path = self.connection.stats().path;
        Packets { sent: path.sent_packets, lost: path.lost_packets }
    }

    /// How many datagrams have come from the server.
    pub fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }
}
