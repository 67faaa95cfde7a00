//! Lends ports to programs of this computer: each program has a port of its own as long as it runs.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use common::machine::report::Failure;
use proto::{identity::Name, wire::Service};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{
    sync::DropGuard,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::local::front::{self, Front};

/// How long a tunnel without any lease waits for the first one.
const FIRST_WITHIN: Duration = Duration::from_secs(10);

/// The answer to a program that asks for a port.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LeaseAnswer {
    /// A port was lent.
    Lent {
        /// The port, on 127.0.0.1.
        address: SocketAddr,
        /// Why there is no tunnel yet, if there is none.
        waits_for: Option<String>,
        /// The service, as the server describes it; `None` if it has not said.
        #[serde(default)]
        service: Option<Service>,
    },
    /// The tunnel is stopping. Another one can be started when it has ended.
    Stopping,
    /// No port could be lent.
    Failed(Failure),
}

/// Lends ports. Clones lend for the same tunnel.
#[derive(Clone)]
pub(crate) struct Leases {
    front: Front,
    connections: TaskTracker,
    /// How many ports are lent; `None` before the first one. The value stays known if a program ends
    /// before anybody has looked.
    lent: watch::Sender<Option<usize>>,
}

/// A port that is lent. When it is dropped, nothing is accepted there any more, and connections
/// without an answer under way end.
pub(crate) struct Lease {
    /// The port, on 127.0.0.1.
    pub(crate) address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
    _stop: DropGuard,
    _lent: Lent,
}

/// Counts one lease until it is dropped.
struct Lent(watch::Sender<Option<usize>>);

impl Lent {
    fn count(lent: watch::Sender<Option<usize>>) -> Self {
        lent.send_modify(|count| *count = Some(count.unwrap_or(0) + 1));
        Self(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.map(|count| count - 1));
    }
}

impl Leases {
    /// Connections to lent ports are carried by `front`, as tasks in `connections`.
    pub(crate) fn new(front: Front, connections: TaskTracker) -> Self {
        Self { front, connections, lent: watch::Sender::new(None) }
    }

    /// How many ports are lent now.
    pub(crate) fn count(&self) -> usize {
        self.lent.borrow().unwrap_or(0)
    }

    /// Whether ports were lent, and none is any more.
    pub(crate) fn are_over(&self) -> bool {
        *self.lent.borrow() == Some(0)
    }

    /// The service of those who name none.
    pub(crate) fn service(&self) -> &Name {
        &self.front.service
    }

    /// Lends a port that is free, for a service.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) async fn lend(&self, service: &Name) -> io::Result<Lease> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let stop = self.front.stop.child_token();
        let front = Front { stop: stop.clone(), service: service.clone(), ..self.front.clone() };
        let accepting = front::accept(listener, front, self.connections.clone());
        Ok(Lease {
            address,
            _accepting: AbortOnDropHandle::new(tokio::spawn(accepting)),
            _stop: stop.drop_guard(),
            _lent: Lent::count(self.lent.clone()),
        })
    }

    /// Waits until the last lease has ended, or until there has been none for ten seconds.
    /// Cancellation safe.
    pub(crate) async fn none_left(&self) {
        let mut lent = self.lent.subscribe();
        let first = lent.wait_for(Option::is_some);
        if tokio::time::timeout(FIRST_WITHIN, first).await.is_ok() {
            let _ = lent.wait_for(|count| *count == Some(0)).await;
        }
    }
}
