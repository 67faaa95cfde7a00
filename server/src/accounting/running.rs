//! Charges a request while it runs, so that the parallel requests of one device end at its limit
//! together, and not each at its own.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::machine::process::unix_now;
use proto::identity::{DeviceId, Name};
use tokio::sync::Notify;

use crate::{
    limits::{LimitedDevice, Limiter},
    record::{
        Account, CallerKind, Granted, NotNow, PermittedRequest, RequestProgress, charge::Speed,
    },
};

/// How often an answer that comes in one piece is charged by time.
const TICK: Duration = Duration::from_millis(100);

/// Charges one request.
pub(crate) struct RunningCharge {
    limiter: Arc<Limiter>,
    speed: Arc<Speed>,
    /// Notified when any device has used up its tokens, or when limits have changed.
    used_up: Arc<Notify>,
    kind: CallerKind,
    id: DeviceId,
    name: Name,
    role: Name,
    granted: Option<Arc<Granted>>,
    /// By which id its tokens are counted.
    payer: DeviceId,
    /// Whether its answer comes piece by piece, if the request does not say it.
    is_stream: bool,
    /// Whether the route generates text.
    writes: bool,
    charged: Mutex<Charged>,
    /// Notified when the service begins.
    begun: Notify,
}

#[derive(Default)]
struct Charged {
    tokens: u64,
    /// When the service began, and what has been seen since.
    seen: Option<(Instant, RequestProgress)>,
}

impl RunningCharge {
    /// Creates a charge of zero.
    pub(crate) fn new(
        asked: &PermittedRequest,
        limiter: Arc<Limiter>,
        speed: Arc<Speed>,
        used_up: Arc<Notify>,
    ) -> Arc<Self> {
        let asker = LimitedDevice::of(&asked.asker, &asked.role).with(asked.granted.as_deref());
        Arc::new(Self {
            payer: limiter.payer(asker),
            limiter,
            speed,
            used_up,
            kind: asked.asker.kind,
            id: asked.asker.id,
            name: asked.asker.name.clone(),
            role: asked.role.clone(),
            granted: asked.granted.clone(),
            is_stream: asked.path.starts_with("/api/"),
            writes: asked.route == proto::ollama::route::RouteClass::Generate,
            charged: Mutex::default(),
            begun: Notify::new(),
        })
    }

    /// Ends when the device has used more than it may, through this request or others.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn reached(self: Arc<Self>) -> NotNow {
        loop {
            let used_up = self.used_up.notified();
            tokio::pin!(used_up);
            // Enabled before the check, so that no notification is missed in between.
            used_up.as_mut().enable();
            let by_time = self.charge(None);
            if let Err(exceeded) = self.limiter.within(self.device(), unix_now()) {
                return exceeded.into();
            }
            tokio::select! {
                () = used_up => {}
                () = self.begun.notified() => {}
                () = tokio::time::sleep(TICK), if by_time => {}
            }
        }
    }

    /// Charges what has been seen. Returns whether the request is charged by time, too.
    fn charge(&self, seen: Option<RequestProgress>) -> bool {
        let mut charged = self.charged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = seen {
            let since = charged.seen.map_or_else(Instant::now, |(since, _)| since);
            charged.seen = Some((since, seen));
        }
        let Some((since, seen)) = charged.seen else { return false };
        let by_time = self.writes && !seen.is_stream.unwrap_or(self.is_stream);
        let written = if by_time { self.speed.tokens_in(since.elapsed()) } else { 0 };
        let tokens = seen.prompt.saturating_add(written.max(seen.pieces));
        if tokens > charged.tokens {
            self.limiter.settle(self.payer, charged.tokens, tokens, unix_now());
            charged.tokens = tokens;
            if self.limiter.within(self.device(), unix_now()).is_err() {
                self.used_up.notify_waiters();
            }
        }
        by_time
    }

    fn device(&self) -> LimitedDevice<'_> {
        LimitedDevice {
            kind: self.kind,
            id: self.id,
            name: &self.name,
            role: self.role.as_str(),
            granted: self.granted.as_deref(),
        }
    }
}

impl Account for RunningCharge {
    fn so_far(&self, seen: RequestProgress) {
        if self.charge(Some(seen)) {
            self.begun.notify_one();
        }
    }

    fn charged(&self) -> u64 {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner).tokens
    }

    fn payer(&self) -> DeviceId {
        self.payer
    }
}
