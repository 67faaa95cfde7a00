//! The state of the tunnel, shared by all parts.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use common::{
    machine::process::unix_now,
    transport::{
        carrier::{LossEstimate, PathCounts, Protection, Repeated},
        congestion::path_changed,
        credit::Credit,
    },
};
use proto::wire::Hello;
use quinn::{Connection, Endpoint};
use tokio_util::sync::CancellationToken;

use super::loss::{Loss, Packets};
use crate::dial::{
    DialError, Dialed,
    plan::DialPlan,
    route::{Carrier, Route},
    unmarked,
};

/// The state of the tunnel.
#[derive(Debug, Clone)]
pub(crate) enum TunnelState {
    /// There is no session; adit is connecting.
    Down(NoTunnel),
    /// There is a session, and the server answers.
    Up(Arc<Up>),
    /// There is a session, but nothing has arrived for a while.
    Silent(Arc<Up>),
    /// The server has refused this device, or must not be used.
    Refused(ServerRefusal),
}

/// A refusal of the server.
#[derive(Debug, Clone)]
pub(crate) struct ServerRefusal {
    pub(crate) why: DialError,
    /// From this time on, a waiting connection starts the next attempt.
    pub(crate) wake_at: Instant,
}

/// No tunnel: since when, and why.
#[derive(Debug, Clone)]
pub(crate) struct NoTunnel {
    /// Since when.
    pub(crate) since: Instant,
    /// Why the last session ended or the last attempt failed. Before that, the addresses that have
    /// not answered yet.
    pub(crate) why: DialError,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Up {
    /// The endpoint of the connection.
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
    /// The server's hello.
    pub(crate) hello: Hello,
    /// How far the server's clock was ahead of this computer's at the hello, in milliseconds; `None`
    /// if the server is too old to say.
    pub(crate) ahead: Option<i64>,
    /// Since when.
    pub(crate) since: SystemTime,
    /// The credit of its streams.
    pub(crate) credit: Arc<Credit>,
    /// Cancelled when another session takes its place, or the program stops: its running answers go
    /// on to their end, and the next requests do not begin here.
    pub(crate) retired: CancellationToken,
    /// Shared with the session whose place it has taken, if both are on one carrier.
    carried: Arc<Mutex<CurrentRoute>>,
    loss: Mutex<Loss>,
    /// How many datagrams had arrived when that was last looked at, and when the last had.
    last_heard: Mutex<(u64, Instant)>,
    redundancy: Mutex<Redundancy>,
}

/// The redundancy of a session.
#[derive(Debug, Default)]
struct Redundancy {
    estimate: LossEstimate,
    /// How small packets are protected now, if they are.
    protection: Option<Protection>,
    /// What the carriers before this one have sent twice.
    earlier: Repeated,
}

/// The route and carrier of a session.
#[derive(Debug)]
pub(crate) struct CurrentRoute {
    /// The route.
    pub(crate) route: Route,
    pub(crate) carrier: Carrier,
    /// Since when this kind of carrier is in use, in Unix seconds.
    pub(crate) since: i64,
    /// Why the other kind of carrier is not in use, if that is known.
    pub(crate) why_not_other: Option<String>,
}

impl CurrentRoute {
    /// Why the other carrier is not in use.
    pub(crate) fn why_not_the_other(&self, plan: &DialPlan) -> String {
        let (other, preferred) = match self.route {
            Route::Udp(_) => ("ssh", "UDP is preferred"),
            Route::Ssh(_) => ("udp", "it has not answered yet"),
        };
        match (plan.why_never(other), &self.why_not_other) {
            (Some(never), _) => never.to_owned(),
            (None, Some(why)) if other == "udp" => why.clone(),
            _ => preferred.to_owned(),
        }
    }

    /// Whether it sends no ECN marks, and it is certain that this network drops packets with them.
    pub(crate) fn drops_ecn_marks(&self) -> bool {
        self.carrier.is_unmarked() && self.route.source().is_some_and(unmarked::drops_marks)
    }
}

impl Up {
    /// A session that begins now, on this carrier. It ends with `stop`.
    pub(crate) fn new(
        dialed: Dialed,
        hello: Hello,
        ahead: Option<i64>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let Dialed { endpoint, connection, route, carrier } = dialed;
        let carried = CurrentRoute { route, carrier, since: unix_now(), why_not_other: None };
        Self::on(endpoint, connection, (hello, ahead), stop, Arc::new(Mutex::new(carried)))
    }

    /// A session that begins now on the carrier of this one, and takes its place.
    pub(crate) fn next(
        &self,
        connection: Connection,
        hello: Hello,
        ahead: Option<i64>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        Self::on(self.endpoint.clone(), connection, (hello, ahead), stop, self.carried.clone())
    }

    fn on(
        endpoint: Endpoint,
        connection: Connection,
        (hello, ahead): (Hello, Option<i64>),
        stop: &CancellationToken,
        carried: Arc<Mutex<CurrentRoute>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            credit: Credit::new(&connection),
            connection,
            hello,
            ahead,
            since: SystemTime::now(),
            retired: stop.child_token(),
            carried,
            loss: Mutex::default(),
            last_heard: Mutex::new((0, Instant::now())),
            redundancy: Mutex::default(),
        })
    }

    /// Its route and carrier.
    pub(crate) fn carried(&self) -> MutexGuard<'_, CurrentRoute> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its route.
    pub(crate) fn route(&self) -> Route {
        self.carried().route.clone()
    }

    /// Moves the session to another carrier, and returns the one before. To the server this is a
    /// new address, so congestion control and the RTT start again (RFC 9000 section 9.4).
    ///
    /// # Errors
    /// If the new carrier cannot be used. The session then stays on the old one.
    pub(crate) fn put_on(
        &self,
        route: Route,
        carrier: Carrier,
    ) -> std::io::Result<(Route, Carrier)> {
        self.endpoint.rebind_abstract(carrier.socket())?;
        let mut carried = self.carried();
        if carried.route != route {
            path_changed(&self.connection);
        }
        if carried.route.carrier() != route.carrier() {
            carried.since = unix_now();
            carried.why_not_other = None;
        }
        let before = (
            std::mem::replace(&mut carried.route, route),
            std::mem::replace(&mut carried.carrier, carrier),
        );
        if before.1.drops_long() {
            carried.carrier.keep_short();
        }
        let mut redundancy = self.redundancy();
        redundancy.earlier += before.1.repeated();
        // It may have been in use before.
        redundancy.earlier -= carried.carrier.repeated();
        carried.carrier.protect(redundancy.protection, self.credit.interactive());
        Ok(before)
    }

    /// Notes how many packets have been sent and lost so far, and has small ones sent twice from
    /// now on if the link loses. What is lost while the path `is_down` says nothing about the link.
    pub(crate) fn note_packets(&self, now: Instant, is_down: bool) {
        let heard = self.heard();
        let mut last_heard = self.last_heard.lock().unwrap_or_else(PoisonError::into_inner);
        if last_heard.0 != heard {
            *last_heard = (heard, now);
        }
        drop(last_heard);
        let path = self.connection.stats().path;
        let packets = Packets { sent: path.sent_packets, lost: path.lost_packets };
        let mut loss = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        loss.note(now, packets, is_down);
        drop(loss);
        let counts = PathCounts::from(&self.connection.stats());
        let carried = self.carried();
        let mut redundancy = self.redundancy();
        let hidden = carried.carrier.hidden();
        let protection = match is_down {
            true => redundancy.estimate.pass_over(now, counts, hidden),
            false => redundancy.estimate.note(now, counts, hidden),
        };
        redundancy.protection = protection;
        carried.carrier.protect(protection, self.credit.interactive());
    }

    /// How long nothing has arrived from the server, to within a second.
    pub(crate) fn quiet_for(&self) -> Duration {
        let last_heard = self.last_heard.lock().unwrap_or_else(PoisonError::into_inner);
        match *last_heard {
            (heard, at) if heard == self.heard() => at.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// How small packets are protected now, if they are, and what has been sent twice in this
    /// session.
    pub(crate) fn redundancy_now(&self) -> (Option<Protection>, Repeated) {
        let carried = self.carried();
        let redundancy = self.redundancy();
        let mut repeated = redundancy.earlier;
        repeated += carried.carrier.repeated();
        let protection = redundancy.protection.filter(|_| carried.route.carrier() == "udp");
        (protection, repeated)
    }

    fn redundancy(&self) -> MutexGuard<'_, Redundancy> {
        self.redundancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many packets were sent and lost in the last minute while the path carried.
    pub(crate) fn recent_packets(&self) -> Packets {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).recent()
    }

    /// How many datagrams have arrived from the server.
    pub(crate) fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }
}
