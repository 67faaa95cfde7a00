//! The tunnel: one connection to the server, opened again whenever it ends, and the streams on it.

mod backoff;
pub(crate) mod events;
pub(crate) mod inspection;
mod liveness;
mod loss;
mod migration;
mod news;
mod path_probe;
mod queue;
pub(crate) mod reconnect;
mod renewal;
pub(crate) mod state;

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use common::{
    machine::report::{self, Failure},
    transport::splice::{ByteCounters, Receiving, Sending},
};
use proto::{
    identity::Name,
    ollama::answer::{ErrorAnswer, RETRY_SOON},
    wire::{Code, Hello, KEEP_ALIVE, QueueAnswer, Service, ServiceKind, StreamHead},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    dial::{DialError, NextAttempt, plan::DialPlan},
    profile::Profile,
    tunnel::{
        events::Events,
        inspection::Inspection,
        reconnect::Reconnect,
        state::{NoTunnel, ServerRefusal, TunnelState, Up},
    },
};

/// Opens streams in the tunnel. Clones share it.
#[derive(Clone)]
pub(crate) struct Tunnel {
    state: watch::Receiver<TunnelState>,
    /// How many connections wait for the tunnel.
    waiting: Arc<watch::Sender<usize>>,
    /// Counts the bytes that have passed.
    pub(crate) counters: Arc<ByteCounters>,
    /// Recent events.
    pub(crate) events: Arc<Events>,
    plan: DialPlan,
}

/// An open stream, whose head has been sent.
pub(crate) struct Opened {
    /// The direction to the service.
    pub(crate) send: Sending,
    /// The direction from the service.
    pub(crate) recv: Receiving,
    /// The protocol of the service.
    pub(crate) kind: ServiceKind,
    /// The session, and how many datagrams had arrived on it when the stream was opened.
    pub(crate) since: (Arc<Up>, u64),
}

impl Tunnel {
    /// Starts the tunnel. The future keeps it up as long as it is polled; after `stop` it makes no
    /// new session. `listening` are the addresses of the local listeners: the tunnel must not lead
    /// back to them.
    pub(crate) fn new(
        plan: DialPlan,
        listening: Vec<SocketAddr>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let why = DialError::NoAnswerYet(plan.sought());
        let (publish, state) =
            watch::channel(TunnelState::Down(NoTunnel { since: Instant::now(), why }));
        let (counters, events) = (Arc::<ByteCounters>::default(), Arc::<Events>::default());
        let (waiting, wanted) = watch::channel(0);
        let reconnect = Reconnect {
            publish,
            plan: plan.clone(),
            wanted,
            listening,
            counters: counters.clone(),
            events: events.clone(),
            stop,
        };
        let waiting = Arc::new(waiting);
        (Self { state, waiting, counters, events, plan }, reconnect.run())
    }

    /// The state of the tunnel, and its changes.
    pub(crate) fn state(&self) -> watch::Receiver<TunnelState> {
        self.state.clone()
    }

    /// How the tunnel connects to the server.
    pub(crate) fn plan(&self) -> &DialPlan {
        &self.plan
    }

    /// The tunnel, looked at closely. Takes a few seconds.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn inspect(&self) -> Result<Inspection, DialError> {
        let up = match &*self.state.borrow() {
            TunnelState::Up(up) | TunnelState::Silent(up) => up.clone(),
            TunnelState::Down(NoTunnel { why, .. }) => return Err(why.clone()),
            TunnelState::Refused(ServerRefusal { why, .. }) => return Err(why.clone()),
        };
        Ok(inspection::inspect(&up, &self.plan).await)
    }

    /// Where this device's requests are in the server's queue; `None` if the server does not say it
    /// within a second.
    pub(crate) async fn queue(&self) -> Option<QueueAnswer> {
        let up = match &*self.state.borrow() {
            TunnelState::Up(up) if up.quiet_for() < KEEP_ALIVE * 2 => up.clone(),
            _ => return None,
        };
        queue::ask(&up).await
    }

    /// The profile of this device.
    pub(crate) fn profile(&self) -> Profile {
        self.plan.profile.get()
    }

    /// The protocol of a service, as the server last said.
    pub(crate) fn kind(&self, service: &Name) -> ServiceKind {
        let of = |services: &[proto::wire::Service]| {
            services.iter().find(|s| s.name == *service).map(|s| s.kind)
        };
        let now = match &*self.state.borrow() {
            TunnelState::Up(up) | TunnelState::Silent(up) => of(&up.hello.services),
            _ => None,
        };
        now.or_else(|| of(&self.profile().enrolled.services)).unwrap_or(ServiceKind::Http)
    }

    /// The services that the server offers, as it last said.
    pub(crate) fn services(&self) -> Vec<Service> {
        match &*self.state.borrow() {
            TunnelState::Up(up) | TunnelState::Silent(up) => up.hello.services.clone(),
            _ => self.profile().enrolled.services,
        }
    }

    /// What is told of a service that the server does not offer; `None` if it does, or if there is no
    /// session that would tell.
    pub(crate) fn lacks(&self, service: &Name) -> Option<LackingService> {
        match &*self.state.borrow() {
            TunnelState::Up(up) => LackingService::of(&up.hello, service),
            _ => None,
        }
    }

    /// Opens a stream to a service. Waits at most `hold` for a tunnel or for a free stream. A session
    /// that is `over` is not used. Cancellation safe.
    ///
    /// When this returns, the stream head has been written, and bytes may follow at once.
    ///
    /// # Errors
    /// The answer for the application.
    pub(crate) async fn open(
        &self,
        service: &Name,
        hold: Duration,
        over: Option<&Weak<Up>>,
    ) -> Result<Opened, ErrorAnswer> {
        let is_over = |up: &Arc<Up>| over.is_some_and(|over| over.as_ptr() == Arc::as_ptr(up));
        let started = Instant::now();
        let opened = tokio::time::timeout(hold, async {
            let (mut state, mut waiting) = (self.state.clone(), None);
            loop {
                let up = match &*state.borrow_and_update() {
                    TunnelState::Up(up) if !is_over(up) => Some(up.clone()),
                    TunnelState::Refused(refusal) if Instant::now() < refusal.wake_at => {
                        return Err(refused(refusal, &self.profile()));
                    }
                    _ => None,
                };
                match up {
                    Some(up) if let Some(lacks) = LackingService::of(&up.hello, service) => {
                        return Err(ErrorAnswer::new(502, format!("adit: {lacks}")));
                    }
                    Some(up) => match self.open_on(&up, service).await {
                        Ok(opened) => return Ok(opened),
                        // The session has just ended, so this waits for the next one. `Reconnect`
                        // publishes the end.
                        Err(e) => debug!("cannot open a stream: {e}"),
                    },
                    None => {
                        waiting.get_or_insert_with(|| WaitingGuard::new(&self.waiting));
                    }
                }
                if state.changed().await.is_err() {
                    return Err(unavailable("adit is stopping", None));
                }
            }
        });
        match opened.await {
            Ok(opened) => opened,
            Err(_) => Err(self.still_held(started.elapsed())),
        }
    }

    async fn open_on(&self, up: &Arc<Up>, service: &Name) -> Result<Opened, quinn::WriteError> {
        let heard = up.heard();
        let (send, recv) = up.connection.open_bi().await?;
        let mut send = Sending::within(send, &up.credit);
        let recv = Receiving::new(recv, &up.credit);
        send.write_all(&StreamHead::Forward(service.clone()).encode()).await?;
        Ok(Opened { send, recv, kind: self.kind(service), since: (up.clone(), heard) })
    }

    /// Ends when the server has been silent for `hold`, and no datagram has arrived since the
    /// stream was opened: then the request has most likely not arrived, and the application should
    /// not wait any longer. Once a datagram has arrived, the server may be working on the request.
    pub(crate) async fn unheard(&self, (up, heard): (Arc<Up>, u64), hold: Duration) {
        let mut state = self.state.clone();
        loop {
            if state.wait_for(|state| matches!(state, TunnelState::Silent(_))).await.is_err()
                || up.heard() != heard
            {
                return std::future::pending().await;
            }
            let spoke = tokio::time::timeout(
                hold,
                state.wait_for(|state| !matches!(state, TunnelState::Silent(_))),
            )
            .await
            .is_ok();
            if !spoke && up.heard() == heard {
                return;
            }
        }
    }

    /// Closes the connection to the server, and waits at most `within` until that is sent.
    pub(crate) async fn close(&self, within: Duration) {
        let up = match &*self.state.borrow() {
            TunnelState::Up(up) | TunnelState::Silent(up) => up.clone(),
            _ => return,
        };
        reconnect::take_leave(&up.connection, &up.endpoint, within).await;
    }

    /// The answer to a request that was given up.
    pub(crate) fn gave_up(&self) -> ErrorAnswer {
        unavailable(
            "the server stopped answering before it got this request",
            Some("check that this computer is online and the server is up"),
        )
    }

    fn still_held(&self, waited: Duration) -> ErrorAnswer {
        let waited = format!("waited {} s", waited.as_secs());
        match &*self.state.borrow() {
            TunnelState::Up(_) => unavailable(
                &format!("{waited} for a free stream: too many requests are open at once"),
                None,
            ),
            TunnelState::Silent(_) => unavailable(
                &format!("{waited}: the server does not answer any more"),
                Some("check that this computer is online and the server is up"),
            ),
            TunnelState::Refused(refusal) => refused(refusal, &self.profile()),
            TunnelState::Down(NoTunnel { why, .. }) => {
                let hint = why.hint(&self.profile(), NextAttempt::Automatic);
                unavailable(&format!("{waited} for a tunnel: {why}"), hint.as_deref())
            }
        }
    }
}

/// A service that the server does not offer to this device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server has no service `{service}` for this device; it has: {offered}")]
pub(crate) struct LackingService {
    pub(crate) service: Name,
    /// Those that it offers.
    offered: String,
}

impl LackingService {
    fn of(hello: &Hello, service: &Name) -> Option<Self> {
        // An older server, or a role that may use none: the answer is the server's.
        if hello.services.is_empty() || hello.services.iter().any(|it| it.name == *service) {
            return None;
        }
        let offered: Vec<_> = hello.services.iter().map(|it| format!("`{}`", it.name)).collect();
        Some(Self { service: service.clone(), offered: offered.join(", ") })
    }

    /// The failure of a command.
    pub(crate) fn failure(&self) -> Failure {
        Failure::new(format!("the server has no service `{}` for this device", self.service))
            .source(format!("it has: {}", self.offered))
    }
}

/// Counts a connection that waits for the tunnel, until it is dropped.
struct WaitingGuard<'a>(&'a watch::Sender<usize>);

impl<'a> WaitingGuard<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

fn refused(ServerRefusal { why, wake_at }: &ServerRefusal, profile: &Profile) -> ErrorAnswer {
    let answer =
        unavailable(&why.to_string(), why.hint(profile, NextAttempt::Automatic).as_deref());
    // The other refusals do not end by themselves.
    let wait = matches!(why, DialError::Refused(Code::Superseded))
        .then(|| wake_at.saturating_duration_since(Instant::now()).as_secs() + 1);
    answer.retry_after(wait)
}

fn unavailable(why: &str, hint: Option<&str>) -> ErrorAnswer {
    let sentence = match hint {
        Some(hint) => format!("adit: {why} ({})", report::typed(hint)),
        None => format!("adit: {why}"),
    };
    ErrorAnswer::new(503, sentence).retry_after(RETRY_SOON)
}
