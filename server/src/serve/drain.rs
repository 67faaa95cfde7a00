//! How a process of the server ends: it takes nothing new, and lets what runs come to its end.

use std::{os::unix::net::UnixStream, sync::Arc, time::Duration};

use common::machine::{control, files::FileError, process::StopSignals, report::Failure};
use proto::{human, wire::Code};
use quinn::Endpoint;
use tokio::task::{JoinError, JoinSet};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{debug, info, warn};

use super::notify;
use crate::{
    https::Https,
    ingress::admission::Admission,
    outside,
    running::{Answer, Request, Server, replacement::ended},
};

/// How long running answers may take after the order to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// How long running answers may take after another process has replaced this one.
const REPLACED_WITHIN: Duration = Duration::from_secs(3600);
/// How long the provider may take to answer what it has been asked. The units wait 50 s for the sum of
/// this, [`DRAIN_WITHIN`] and a second.
const ASKED_WITHIN: Duration = Duration::from_secs(15);
/// How long after the end of one process of the server the other one may get the order to stop that
/// was meant for both.
const BOTH_TOLD_WITHIN: Duration = Duration::from_secs(2);
/// How often a process that has been replaced tells what its answers cost.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// The parts of a running server that end with it.
pub(super) struct Parts {
    pub(super) server: Arc<Server>,
    pub(super) admission: Arc<Admission>,
    pub(super) endpoint: Endpoint,
    pub(super) https: Option<Arc<Https>>,
    pub(super) sessions: TaskTracker,
    pub(super) services: JoinSet<()>,
}

impl Parts {
    /// Stops: open streams get [`DRAIN_WITHIN`], or until the next order.
    pub(super) async fn stop(self, stop: &mut StopSignals) -> Result<(), Failure> {
        notify::tell(&sd_notify::NotifyState::Stopping);
        self.drain(stop).await;
        self.end().await;
        Ok(())
    }

    /// The failure that a part has ended.
    pub(super) fn failed(&self, ended: Option<Result<(), JoinError>>) -> Failure {
        notify::tell(&sd_notify::NotifyState::Stopping);
        self.server.draining.cancel();
        Failure::new("a part of the server stopped unexpectedly")
            .source(format!("{ended:?}"))
            .hint("the log above says why")
    }

    /// Runs the sessions here to their end while another process serves. `link` ends with that one.
    ///
    /// # Errors
    /// If that one ends first: then datagrams no longer arrive here.
    pub(super) async fn end_replaced(
        mut self,
        stop: &mut StopSignals,
        link: UnixStream,
    ) -> Result<(), Failure> {
        let telling = AbortOnDropHandle::new(tokio::spawn(tell_charges(self.server.clone())));
        self.sessions.close();
        let lost = tokio::select! {
            () = self.sessions.wait() => None,
            () = ended(link) => match told_to_stop(stop).await {
                true => {
                    // Datagrams no longer arrive here, so the tunnels are lost; answers over HTTPS go
                    // on.
                    self.close_endpoint();
                    self.drain(stop).await;
                    None
                }
                false => Some(Failure::new("the aditd that has replaced this one has ended")
                    .hint("the answers that ran here are lost; the log above says why")),
            },
            ended = self.services.join_next() => Some(self.failed(ended)),
            () = tokio::time::sleep(REPLACED_WITHIN) => {
                let within = human::time(REPLACED_WITHIN);
                warn!("{within} are over since this process was replaced: ending the requests that still run: {}", open_streams(&self.server));
                None
            }
            () = stop.asked() => {
                self.drain(stop).await;
                None
            }
        };
        drop(telling);
        let server = self.server.clone();
        self.end().await;
        tell(&server).await;
        lost.map_or(Ok(()), Err)
    }

    async fn drain(&self, stop: &mut StopSignals) {
        self.server.draining.cancel();
        self.sessions.close();
        if self.sessions.is_empty() {
            return;
        }
        let streams: usize = self.server.live.status().iter().map(|session| session.streams).sum();
        if streams > 0 {
            info!(
                "stopping: {} running, with {} s to end (Ctrl-C again ends them now)",
                human::count(streams as u64, "stream"),
                DRAIN_WITHIN.as_secs()
            );
        }
        tokio::select! {
            () = self.sessions.wait() => {}
            () = tokio::time::sleep(DRAIN_WITHIN) => {
                let within = DRAIN_WITHIN.as_secs();
                warn!("{within} s are over: ending the requests that still run: {}", open_streams(&self.server));
            }
            () = stop.asked() => {}
        }
    }

    /// Ends all tunnels.
    fn close_endpoint(&self) {
        // A closed QUIC endpoint would answer new clients with a refusal.
        self.admission.close();
        let code = Code::ShuttingDown;
        self.endpoint.close((code as u32).into(), code.sentence().as_bytes());
    }

    async fn end(mut self) {
        self.server.draining.cancel();
        self.sessions.close();
        self.services.shutdown().await;
        self.close_endpoint();
        let farewell = async {
            self.endpoint.wait_idle().await;
            self.sessions.wait().await;
        };
        // A client that is away does not get the close; it will notice the restart by a stateless
        // reset.
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
        if let Some(https) = &self.https {
            self.server.note_keys_now(https).await;
        }
        // A refresh token that the provider has replaced has to be stored.
        self.server.asking.close();
        let _ = tokio::time::timeout(ASKED_WITHIN, self.server.asking.wait()).await;
        self.server.accounting.close().await;
        info!("stopped");
    }
}

/// Whether this process is told to stop, too, when the one that replaces it has ended: a service
/// manager orders all processes of a service at once, and they end in any order.
pub(super) async fn told_to_stop(stop: &mut StopSignals) -> bool {
    tokio::time::timeout(BOTH_TOLD_WITHIN, stop.asked()).await.is_ok()
}

/// Tells systemd that the runtime still runs its tasks, if the unit has a `WatchdogSec=`: systemd
/// restarts a server that does not. Another process does so when it has replaced this one.
pub(super) async fn feed_watchdog(replaced: CancellationToken) {
    let Some(within) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(within / 3);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => notify::tell(&sd_notify::NotifyState::Watchdog),
            () = replaced.cancelled() => return std::future::pending().await,
        }
    }
}

/// Tells the process that has replaced this one what answers cost here, for ever.
async fn tell_charges(server: Arc<Server>) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        tell(&server).await;
    }
}

async fn tell(server: &Server) {
    let Some(tokens) = server.accounting.limiter.untold() else { return };
    let asked = Request::Charged { tokens };
    let ask = async {
        let path = control::socket_path(&server.state.dir)?;
        let failed = FileError::io("ask the running process at", &path);
        control::ask_on(outside::connect(&path).await.map_err(failed)?, &path, &asked).await
    };
    match ask.await {
        Ok(Answer::Charged) => {}
        other => debug!("cannot tell what answers cost: {other:?}"),
    }
}

/// The devices with requests that run, each with how many: "laptop (2 streams), ci (1 stream)".
fn open_streams(server: &Server) -> String {
    let register = server.policy.snapshot();
    let name = |id| register.devices().find(|device| device.id == id).map(|device| &device.name);
    let sessions = server.live.status().into_iter().filter(|session| session.streams > 0);
    let shown = sessions.map(|session| {
        let streams = human::count(session.streams as u64, "stream");
        match name(session.device_id) {
            Some(name) => format!("{name} ({streams})"),
            None => format!("{} ({streams})", session.device_id),
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}
