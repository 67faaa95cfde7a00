//! A running tunnel: the tasks that serve it, what other commands ask it, and its end.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use common::machine::{
    control::Control,
    progress::Progress,
    report::{Exit, Failure},
};
use proto::{human, identity::Name, wire::DEFAULT_SERVICE};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, info, warn};

use super::{services::ServedService, watched::Watched};
use crate::{
    commands::status::{ControlRequest, OllamaStatus, ServiceStatus, Status, ask_ollama, stopping},
    dial::{DialError, NextAttempt, plan::DialPlan},
    local::{
        front::{self, Front},
        lease::{Lease, LeaseAnswer, Leases},
        owner::Owners,
        unix::UnixEntrance,
    },
    profile::Profile,
    settings::Settings,
    tunnel::{
        Tunnel,
        inspection::Inspection,
        state::{ServerRefusal, TunnelState},
    },
};

/// How long to wait until the server has received the close.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long a program that asks for a port waits for the tunnel. After that it starts without one,
/// and its requests wait.
const UP_WITHIN: Duration = Duration::from_secs(8);

/// After this time, what has happened before is seen.
const SEEN_WITHIN: Duration = Duration::from_millis(20);

/// A tunnel and the tasks that serve it.
pub(in crate::commands) struct RunningTunnel {
    pub(in crate::commands) tunnel: Tunnel,
    /// The ports that are lent to programs.
    pub(in crate::commands) leases: Leases,
    /// The tasks without which there is no tunnel.
    pub(in crate::commands) parts: Parts,
    /// Cancelled when another command asks that this tunnel ends, and not the others of this process.
    pub(super) asked_to_end: CancellationToken,
    /// Cancelled when such a command does not wait for running answers.
    asked_to_end_now: CancellationToken,
    pub(super) listening: Vec<String>,
    /// The Unix sockets, as `unix:/PATH`.
    pub(super) sockets: Vec<String>,
    watched: Watched,
    connections: TaskTracker,
    no_more: CancellationToken,
    /// When running answers are aborted, once it is stopping.
    end: Arc<OnceLock<Instant>>,
}

impl RunningTunnel {
    /// Starts the tunnel, serves applications on `listeners` and at `entrances`, those of each other
    /// service at its own, and answers what other commands ask.
    ///
    /// # Errors
    /// None that a person can cause.
    pub(in crate::commands) fn start(
        plan: DialPlan,
        control: Control,
        owners: Owners,
        (listeners, entrances, services): (Vec<TcpListener>, Vec<UnixEntrance>, Vec<ServedService>),
        settings: &Settings,
    ) -> Result<Self, Failure> {
        let address = |listener: &TcpListener| listener.local_addr().ok();
        let mut bound: Vec<SocketAddr> = listeners.iter().filter_map(address).collect();
        let listening: Vec<String> = bound.iter().map(ToString::to_string).collect();
        bound.extend(services.iter().flat_map(|it| &it.listeners).filter_map(address));
        let served: Vec<_> = services.iter().map(|it| (it.name.clone(), it.listening())).collect();
        let sockets: Vec<String> = entrances.iter().map(UnixEntrance::shown).collect();
        let (connections, no_more) = (TaskTracker::new(), CancellationToken::new());
        let (asked_to_end, asked_to_end_now) = <(CancellationToken, CancellationToken)>::default();
        let end = Arc::<OnceLock<Instant>>::default();
        let profile_dir = plan.profile.get().profile_dir;
        let (tunnel, keep_up) = Tunnel::new(plan, bound, no_more.clone());
        let watched = Watched::start(
            &profile_dir,
            settings.carrier.value,
            settings.ssh_client.value,
            tunnel.state(),
        );
        let front = Front {
            owners: Arc::new(owners),
            tunnel: tunnel.clone(),
            service: DEFAULT_SERVICE.parse().map_err(Failure::new)?,
            hold: settings.hold.value,
            stop: no_more.clone(),
        };
        let leases = Leases::new(front.clone(), connections.clone());
        let mut parts = Parts::default();
        parts.services.spawn(keep_up.in_current_span());
        let shown = StatusSource {
            tunnel: tunnel.clone(),
            listening: listening.clone(),
            sockets: sockets.clone(),
            served,
            leases: leases.clone(),
            connections: connections.clone(),
            stop: no_more.clone(),
            end: end.clone(),
            asked_to_end: asked_to_end.clone(),
            asked_to_end_now: asked_to_end_now.clone(),
        };
        parts.services.spawn(answer_control(control, shown).in_current_span());
        for listener in listeners {
            let accepting = front::accept(listener, front.clone(), connections.clone());
            parts.accepting.spawn(accepting.in_current_span());
        }
        for entrance in entrances {
            let accepting = entrance.accept(front.clone(), connections.clone());
            parts.accepting.spawn(accepting.in_current_span());
        }
        for ServedService { name, listeners, entrances } in services {
            let front = Front { service: name, ..front.clone() };
            for listener in listeners {
                let accepting = front::accept(listener, front.clone(), connections.clone());
                parts.accepting.spawn(accepting.in_current_span());
            }
            for entrance in entrances {
                let accepting = entrance.accept(front.clone(), connections.clone());
                parts.accepting.spawn(accepting.in_current_span());
            }
        }
        Ok(Self {
            tunnel,
            leases,
            parts,
            asked_to_end,
            asked_to_end_now,
            listening,
            sockets,
            watched,
            connections,
            no_more,
            end,
        })
    }

    /// Accepts no more connections, lets running ones go on for `drain` or until `end_now`, and
    /// closes the connection to the server.
    ///
    /// # Errors
    /// If a part of the tunnel has ended by itself.
    pub(in crate::commands) async fn stop(
        mut self,
        end_now: CancellationToken,
        drain: Duration,
    ) -> Result<(), Failure> {
        let _ = self.end.set(Instant::now() + drain);
        self.no_more.cancel();
        // The message below says that adit is stopping, so no connection may be accepted after it.
        self.parts.accept_no_more().await?;
        if self.leases.count() > 0 {
            let programs = human::count(self.leases.count() as u64, "program");
            warn!("{programs} of `adit run` can make no more requests");
        }
        self.connections.close();
        if !self.connections.is_empty() && !end_now.is_cancelled() {
            info!(
                "{} (press Ctrl-C again to end them now)",
                stopping(self.connections.len(), Some(drain))
            );
            tokio::select! {
                () = self.connections.wait() => {}
                () = count_down(&self.connections, drain) => {}
                () = tokio::time::sleep(drain) => warn!("aborting the answers that still run"),
                () = end_now.cancelled() => {}
                () = self.asked_to_end_now.cancelled() => {}
                ended = self.parts.ended() => return Err(ended),
            }
        }
        self.tunnel.close(FAREWELL).await;
        self.watched.dismiss().await;
        // Each connection sees the end of its stream, and aborts its application.
        let _ = tokio::time::timeout(FAREWELL, self.connections.wait()).await;
        self.parts.services.shutdown().await;
        Ok(())
    }
}

/// Logs which Ollama answers at the first address on which the tunnel listens. Takes at most six
/// seconds.
pub(super) async fn tell_of_ollama(tunnel: &Tunnel, listening: &[String]) {
    let Some(address) = listening.first() else { return };
    let said = ask_ollama(address).await;
    let status = Status::of(tunnel, &[], 0, false);
    let text = said.text(status.host());
    match said {
        OllamaStatus::Answers { .. } => info!("Ollama {text}"),
        _ => warn!("Ollama does not answer: {text}"),
    }
}

/// Shows at a terminal, for ever, how many answers run and how long they may still run.
async fn count_down(connections: &TaskTracker, drain: Duration) {
    let (began, progress) =
        (Instant::now(), Progress::show(&stopping(connections.len(), Some(drain))));
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let left = drain.saturating_sub(began.elapsed());
        // Rounded up: it begins with the whole time.
        let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
        progress.set(&stopping(connections.len(), Some(left)));
    }
}

/// The tasks without which there is no tunnel. If one ends by itself, the program ends.
#[derive(Default)]
pub(in crate::commands) struct Parts {
    /// None of these ends by itself.
    services: JoinSet<()>,
    /// Each of these ends when no more connections are accepted.
    accepting: JoinSet<()>,
}

impl Parts {
    /// Waits until a task has ended by itself. Cancellation safe.
    pub(in crate::commands) async fn ended(&mut self) -> Failure {
        let ended = tokio::select! {
            Some(ended) = self.services.join_next() => ended,
            Some(ended) = self.accepting.join_next() => ended,
            else => std::future::pending().await,
        };
        ended_by_itself(ended)
    }

    /// Waits until all tasks that accept connections have ended.
    async fn accept_no_more(&mut self) -> Result<(), Failure> {
        while let Some(ended) = self.accepting.join_next().await {
            if ended.is_err() {
                return Err(ended_by_itself(ended));
            }
        }
        Ok(())
    }
}

fn ended_by_itself(ended: Result<(), JoinError>) -> Failure {
    let how = ended.map_or_else(|e| e.to_string(), |()| "it returned".to_owned());
    Failure::new("a part of adit stopped unexpectedly").source(how).hint("the log above says why")
}

/// Waits until the server has accepted this device. Cancellation safe.
///
/// # Errors
/// If the server refuses it.
pub(in crate::commands) async fn first_word(tunnel: &Tunnel) -> Result<(), RefusedDevice> {
    let mut state = tunnel.state();
    loop {
        match &*state.borrow_and_update() {
            TunnelState::Up(_) => return Ok(()),
            TunnelState::Refused(ServerRefusal { why, .. }) => {
                let (why, profile) = (why.clone(), tunnel.profile());
                return Err(RefusedDevice { why, profile });
            }
            TunnelState::Down(_) | TunnelState::Silent(_) => {}
        }
        if state.changed().await.is_err() {
            // The task that kept the tunnel up has ended; `Parts::ended` reports that.
            return std::future::pending().await;
        }
    }
}

/// Why the server has refused this device.
pub(in crate::commands) struct RefusedDevice {
    why: DialError,
    profile: Profile,
}

impl RefusedDevice {
    /// Why, and how it is let in again.
    pub(super) fn failure(&self, next: NextAttempt) -> Failure {
        let failure = match &self.why {
            DialError::Refused(_) | DialError::Revoked(_) => {
                Failure::new("the server does not let this device in")
                    .exit(Exit::NotAllowed)
                    .source(self.why.to_string())
            }
            // Not a refusal of the server.
            why => Failure::from_error(why.clone()),
        };
        self.why.hint(&self.profile, next).into_iter().fold(failure, Failure::hint)
    }
}

/// The parts that `adit status` shows.
struct StatusSource {
    tunnel: Tunnel,
    listening: Vec<String>,
    sockets: Vec<String>,
    /// The services besides Ollama, and their addresses.
    served: Vec<(Name, Vec<String>)>,
    leases: Leases,
    connections: TaskTracker,
    stop: CancellationToken,
    end: Arc<OnceLock<Instant>>,
    asked_to_end: CancellationToken,
    asked_to_end_now: CancellationToken,
}

impl StatusSource {
    async fn status(&self) -> Status {
        if self.listening.is_empty() && self.leases.count() > 0 {
            // A program that has just ended: its port is given back when that has been seen.
            tokio::time::sleep(SEEN_WITHIN).await;
        }
        let is_over = self.listening.is_empty() && self.leases.are_over();
        let stopping = self.stop.is_cancelled() || is_over;
        let listening = if stopping { &[][..] } else { &self.listening };
        // Without a connection no request of this device can wait.
        let queue = match self.connections.is_empty() {
            true => None,
            false => self.tunnel.queue().await,
        };
        Status {
            sockets: if stopping { Vec::new() } else { self.sockets.clone() },
            services: match stopping {
                true => Vec::new(),
                false => ServiceStatus::all(&self.tunnel, &self.served),
            },
            programs: self.leases.count(),
            queue: queue.unwrap_or_default(),
            stopping_seconds_left: self
                .end
                .get()
                .map(|end| end.saturating_duration_since(Instant::now()).as_secs()),
            ..Status::of(&self.tunnel, listening, self.connections.len(), stopping)
        }
    }

    /// Lends a port to a service as soon as the tunnel is up, or after a while without one.
    async fn lend(&self, service: &Name) -> (LeaseAnswer, Option<Lease>) {
        if self.stop.is_cancelled() {
            return (LeaseAnswer::Stopping, None);
        }
        let waits_for = match tokio::time::timeout(UP_WITHIN, first_word(&self.tunnel)).await {
            Ok(Ok(())) => None,
            Ok(Err(refused)) => {
                let failure = refused.failure(NextAttempt::SameCommand);
                return (LeaseAnswer::Failed(failure), None);
            }
            Err(_) => match &*self.tunnel.state().borrow() {
                TunnelState::Down(down) => Some(down.why.to_string()),
                _ => Some("the server is silent".to_owned()),
            },
        };
        if let Some(lacks) = self.tunnel.lacks(service) {
            return (LeaseAnswer::Failed(lacks.failure().exit(Exit::Usage)), None);
        }
        let known = self.tunnel.services().into_iter().find(|it| it.name == *service);
        match self.leases.lend(service).await {
            Ok(lease) => {
                let address = lease.address;
                (LeaseAnswer::Lent { address, waits_for, service: known }, Some(lease))
            }
            Err(e) => {
                let failure = Failure::new("cannot listen on a free port of 127.0.0.1").source(e);
                (LeaseAnswer::Failed(failure), None)
            }
        }
    }
}

/// An answer over the control socket. The request tells which it is.
#[derive(Serialize)]
#[serde(untagged)]
enum ControlAnswer {
    Status(Box<Status>),
    Doctor(Box<Result<Inspection, Failure>>),
    Lease(LeaseAnswer),
}

async fn answer_control(control: Control, shown: StatusSource) {
    let shown = Arc::new(shown);
    let answer = move |request| {
        let shown = shown.clone();
        async move {
            match request {
                ControlRequest::Status => {
                    (ControlAnswer::Status(Box::new(shown.status().await)), None)
                }
                ControlRequest::End { now } => {
                    shown.asked_to_end.cancel();
                    if now {
                        shown.asked_to_end_now.cancel();
                    }
                    (ControlAnswer::Status(Box::new(shown.status().await)), None)
                }
                ControlRequest::Doctor => {
                    let inspected = shown.tunnel.inspect().await;
                    let profile = shown.tunnel.profile();
                    let inspected =
                        inspected.map_err(|why| why.failure(&profile, NextAttempt::Automatic));
                    (ControlAnswer::Doctor(Box::new(inspected)), None)
                }
                ControlRequest::Lease => {
                    let (answer, lease) = shown.lend(&shown.leases.service().clone()).await;
                    (ControlAnswer::Lease(answer), lease)
                }
                ControlRequest::LeaseOf(service) => {
                    let (answer, lease) = shown.lend(&service).await;
                    (ControlAnswer::Lease(answer), lease)
                }
            }
        }
    };
    match control.serve_granting(answer).await {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        let mut parts = Parts::default();
        parts.services.spawn(std::future::pending());
        parts.accepting.spawn(std::future::pending());
        parts
    }

    #[tokio::test]
    async fn a_part_that_ends_or_dies_is_a_failure_whichever_it_is() {
        let (mut returns, mut dies, mut deaf) = (parts(), parts(), parts());
        returns.services.spawn(async {});
        dies.services.spawn(async { panic!("a defect") });
        deaf.accepting.spawn(async { panic!("a defect") });
        for parts in [&mut returns, &mut dies, &mut deaf] {
            let failure = parts.ended().await;
            assert_eq!(failure.what(), "a part of adit stopped unexpectedly");
            assert_eq!(failure.exit_code(), Exit::Failed);
        }
    }

    #[tokio::test]
    async fn what_stops_listening_as_told_is_no_failure_and_what_dies_of_it_is() {
        let mut parts = Parts::default();
        parts.accepting.spawn(async {});
        assert!(parts.accept_no_more().await.is_ok());
        parts.accepting.spawn(async { panic!("a defect") });
        assert!(parts.accept_no_more().await.is_err());
    }
}
