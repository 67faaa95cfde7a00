//! The tunnel: one connection to the server, opened again for ever, and the streams on it.

mod backoff;
pub mod events;
mod liveness;
mod loss;
mod migration;
mod path_probe;
pub mod reconnect;
mod renewal;
pub mod state;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use common::transport::splice::{ByteCounters, Receiving, Sending};
use proto::{
    identity::Name,
    ollama::answer::{ErrorAnswer, RETRY_SOON},
    wire::{Code, ServiceKind, StreamHead},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    dial::{DialError, plan::DialPlan},
    profile::Profile,
    tunnel::{
        events::Events,
        reconnect::Reconnect,
        state::{Down, Refusal, TunnelState, Up},
    },
};

/// A way into the tunnel. Clones share it.
#[derive(Clone)]
pub struct Tunnel {
    link: watch::Receiver<TunnelState>,
    /// How many connections wait for it.
    waiting: Arc<watch::Sender<usize>>,
    /// Bytes that have passed.
    pub meter: Arc<ByteCounters>,
    /// What has happened.
    pub journal: Arc<Events>,
    directions: DialPlan,
}

/// A stream that has been opened and asked for its service.
pub struct Opened {
    /// To the service.
    pub send: Sending,
    /// From it.
    pub recv: Receiving,
    /// What its bytes are.
    pub kind: ServiceKind,
    /// On which connection, and what had been heard there by then.
    pub since: (Arc<Up>, u64),
}

impl Tunnel {
    /// Starts the tunnel. The future keeps it up for as long as it is polled; after `stop` it
    /// begins nothing new. `listening` are the addresses at which applications are served: the
    /// tunnel must not lead back to them.
    pub fn new(
        directions: DialPlan,
        listening: Vec<SocketAddr>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let why = DialError::NoAnswerYet(directions.sought());
        let (publish, link) =
            watch::channel(TunnelState::Down(Down { since: Instant::now(), why }));
        let (meter, journal) = (Arc::<ByteCounters>::default(), Arc::<Events>::default());
        let (waiting, wanted) = watch::channel(0);
        let keeper = Reconnect {
            publish,
            directions: directions.clone(),
            wanted,
            listening,
            meter: meter.clone(),
            journal: journal.clone(),
            stop,
        };
        let waiting = Arc::new(waiting);
        (Self { link, waiting, meter, journal, directions }, keeper.run())
    }

    /// The state now, and its changes.
    pub fn link(&self) -> watch::Receiver<TunnelState> {
        self.link.clone()
    }

    /// Where the server is sought.
    pub fn directions(&self) -> &DialPlan {
        &self.directions
    }

    /// What this device knows of its server and itself.
    pub fn profile(&self) -> Profile {
        self.directions.profile.get()
    }

    /// What the bytes of a service are, by the server's last word on it.
    pub fn kind(&self, service: &Name) -> ServiceKind {
        let of = |services: &[proto::wire::Service]| {
            services.iter().find(|s| s.name == *service).map(|s| s.kind)
        };
        let now = match &*self.link.borrow() {
            TunnelState::Up(up) | TunnelState::Silent(up) => of(&up.hello.services),
            _ => None,
        };
        now.or_else(|| of(&self.profile().enrolled.services)).unwrap_or(ServiceKind::Http)
    }

    /// Opens a stream to a service, waiting at most `hold` for a tunnel or for room in it.
    /// Cancellation safe.
    ///
    /// The head is on its way when this returns; bytes may follow at once.
    ///
    /// # Errors
    /// What to answer the application.
    pub async fn open(&self, service: &Name, hold: Duration) -> Result<Opened, ErrorAnswer> {
        let started = Instant::now();
        let opened = tokio::time::timeout(hold, async {
            let (mut link, mut waiting) = (self.link.clone(), None);
            loop {
                let up = match &*link.borrow_and_update() {
                    TunnelState::Up(up) => Some(up.clone()),
                    TunnelState::Refused(refusal) if Instant::now() < refusal.wake_at => {
                        return Err(refused(refusal, &self.profile()));
                    }
                    _ => None,
                };
                match up {
                    Some(up) => match self.open_on(&up, service).await {
                        Ok(opened) => return Ok(opened),
                        // It ended in this moment: the next one will do. The keeper sees it too and
                        // publishes.
                        Err(e) => debug!("cannot open a stream: {e}"),
                    },
                    None => {
                        waiting.get_or_insert_with(|| Waiting::new(&self.waiting));
                    }
                }
                if link.changed().await.is_err() {
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

    /// Ends when the server has been silent for `hold` and was never heard since a stream was
    /// opened: the request has most likely not arrived, and its application need not wait for ever.
    /// Once the server has been heard, the request may be at work there.
    pub async fn unheard(&self, (up, heard): (Arc<Up>, u64), hold: Duration) {
        let mut link = self.link.clone();
        loop {
            if link.wait_for(|link| matches!(link, TunnelState::Silent(_))).await.is_err()
                || up.heard() != heard
            {
                return std::future::pending().await;
            }
            let spoke = tokio::time::timeout(
                hold,
                link.wait_for(|link| !matches!(link, TunnelState::Silent(_))),
            )
            .await
            .is_ok();
            if !spoke && up.heard() == heard {
                return;
            }
        }
    }

    /// What to tell an application whose request was given up.
    pub fn gave_up(&self) -> ErrorAnswer {
        unavailable(
            "the server stopped answering before it got this request",
            Some("check that this computer is online and the server is up"),
        )
    }

    fn still_held(&self, waited: Duration) -> ErrorAnswer {
        let waited = format!("waited {} s", waited.as_secs());
        match &*self.link.borrow() {
            TunnelState::Up(_) => unavailable(
                &format!("{waited} for a free stream: too many requests are open at once"),
                None,
            ),
            TunnelState::Silent(_) => unavailable(
                &format!("{waited}: the server does not answer any more"),
                Some("check that this computer is online and the server is up"),
            ),
            TunnelState::Refused(refusal) => refused(refusal, &self.profile()),
            TunnelState::Down(Down { why, .. }) => {
                let hint = why.hint(&self.profile());
                unavailable(&format!("{waited} for a tunnel: {why}"), hint.as_deref())
            }
        }
    }
}

/// A connection that waits for the tunnel, counted for as long as it does.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

fn refused(Refusal { why, wake_at }: &Refusal, profile: &Profile) -> ErrorAnswer {
    let answer = unavailable(&why.to_string(), why.hint(profile).as_deref());
    // Nothing else of these passes by itself.
    let wait = matches!(why, DialError::Refused(Code::Superseded))
        .then(|| wake_at.saturating_duration_since(Instant::now()).as_secs() + 1);
    answer.retry_after(wait)
}

fn unavailable(why: &str, hint: Option<&str>) -> ErrorAnswer {
    let sentence = match hint {
        Some(hint) => format!("adit: {why} ({hint})"),
        None => format!("adit: {why}"),
    };
    ErrorAnswer::new(503, sentence).retry_after(RETRY_SOON)
}
