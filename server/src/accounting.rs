//! What stands behind the gate's two hooks: limits and the queue before a request, the audit log
//! and the metrics after it.

mod live;
pub(crate) mod queue;
pub(crate) mod running;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use common::machine::{
    process::unix_now,
    report::{Exit, Failure},
};
use proto::{
    http1::BodyLength,
    identity::{DeviceId, Name, UserName},
    ollama::{answer::RETRY_SOON, route::RouteClass},
};
use serde::Serialize;
use tokio::sync::Notify;

pub(crate) use self::live::LiveRequest;
use self::{live::LiveRequests, running::RunningCharge};
use crate::{
    accounting::queue::{Queue, QueueFull},
    audit::{Audit, AuditSettings, Event},
    limits::{Exceeded, LimitTable, LimitedDevice, Limiter, UsageFile},
    metrics::{
        Metrics,
        serve::{Exporter, MetricsAddr},
    },
    record::{
        Account, Asker, BoxFuture, CallerKind, GrantedTurn, LimitReached, NotNow, Observer,
        PermittedRequest, RequestRecord, Throttle, ThrottlePermit, TurnFuture,
        charge::{Charge, Speed},
    },
    state::register::Snapshot,
};

/// How long the audit log may take to write its last lines when the server stops.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(5);

/// The part of the configuration that accounting needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AccountingSettings {
    pub limits: LimitTable,
    /// How many requests for the GPU are forwarded at once.
    pub max_in_flight: Option<NonZeroUsize>,
    /// How many requests may wait in the queue.
    pub max_queue: usize,
    /// Whether answers say how their requests have waited in the queue.
    pub queue_header: bool,
    pub audit: AuditSettings,
    /// The address at which metrics are served, if any.
    pub metrics: Option<MetricsAddr>,
}

/// The accounting of one service.
#[derive(Clone)]
pub(crate) struct Accounting {
    pub limiter: Arc<Limiter>,
    pub queue: Arc<Queue>,
    queue_header: Arc<AtomicBool>,
    pub audit: Arc<Audit>,
    /// The requests that run.
    pub live: Arc<LiveRequests>,
    pub metrics: Arc<Metrics>,
    usage: Arc<UsageFile>,
    speed: Arc<Speed>,
    /// Notified when a device has used up its tokens, or when limits have changed.
    used_up: Arc<Notify>,
}

impl Throttle for Accounting {
    fn arrive(&self, asker: &Asker, role: &Name) -> Result<(), NotNow> {
        if self.audit.refuses() {
            return Err(NotNow {
                status: 503,
                retry_after: Some(RETRY_SOON),
                sentence:
                    "adit: the audit log can't be written, and without it nothing is forwarded; see `aditd status` on the server"
                        .to_owned(),
                limit: "audit",
            });
        }
        // The register does not say whose the token is.
        if let (CallerKind::Token, Some(user)) = (asker.kind, &asker.user) {
            self.limiter.know_tokens(asker.id, user);
        }
        self.limiter.arrive(LimitedDevice::of(asker, role)).map_err(NotNow::from)
    }

    fn body(&self, asker: &Asker, role: &Name, length: BodyLength) -> Result<Option<u64>, NotNow> {
        let asker = LimitedDevice::of(asker, role);
        let length = match length {
            BodyLength::Known(bytes) => Some(bytes),
            BodyLength::Chunked => None,
        };
        self.limiter.body(asker, length).map_err(NotNow::from)
    }

    fn admit<'a>(
        &'a self,
        asked: &'a PermittedRequest,
    ) -> BoxFuture<'a, Result<ThrottlePermit, NotNow>> {
        Box::pin(self.enter(asked))
    }
}

impl Observer for Accounting {
    fn piece(&self, route: RouteClass, after: Duration) {
        self.metrics.piece(route, after);
    }

    fn began(&self, record: &RequestRecord) -> Option<u64> {
        #[derive(Serialize)]
        struct Began<'a> {
            event: &'static str,
            #[serde(flatten)]
            request: &'a LiveRequest,
        }
        let request = self.live.begin(record);
        let began = Began { event: "request_began", request: &request };
        self.audit.events().send(SystemTime::now(), &began);
        Some(request.request)
    }

    fn ended(&self, record: &RequestRecord) {
        if let Some(number) = record.number {
            self.live.end(number);
        }
        let charge = Charge::of(record, self.speed.get());
        self.speed.learn(record);
        let payer = record.tokens.payer.unwrap_or(record.asker.id);
        self.limiter.settle(payer, record.tokens.charged, charge.sum(), unix_now());
        self.metrics.ended(record, &charge);
        self.audit.note(Event::request(record, &charge));
    }
}

impl Accounting {
    /// Opens the audit log and reads the tokens that were used today. The state is in `dir`.
    ///
    /// # Errors
    /// When a required audit log can't be written.
    pub(crate) fn open(settings: &AccountingSettings, dir: &Path) -> Result<Self, Failure> {
        let usage = Arc::new(UsageFile::new(dir));
        Ok(Self {
            limiter: Limiter::new(settings.limits.clone(), usage.load()),
            queue: Queue::new(settings.max_in_flight, settings.max_queue),
            queue_header: Arc::new(AtomicBool::new(settings.queue_header)),
            audit: Audit::start(settings.audit.clone())
                .map_err(|e| e.named_by("`audit_dir` in the configuration"))?,
            live: Arc::default(),
            metrics: Arc::default(),
            usage,
            speed: Arc::default(),
            used_up: Arc::default(),
        })
    }

    /// Puts new limits in force at once. The audit log and the address of the metrics do not
    /// change.
    pub(crate) fn update(&self, settings: &AccountingSettings) {
        self.limiter.update(settings.limits.clone());
        self.used_up.notify_waiters();
        self.queue.resize(settings.max_in_flight, settings.max_queue);
        self.queue_header.store(settings.queue_header, Relaxed);
    }

    /// Takes over to whom the devices and keys of the register belong. `tokens_of` is by which id the
    /// tokens of a user count.
    pub(crate) fn know(
        &self,
        register: &Snapshot,
        tokens_of: impl Fn(&UserName) -> Option<DeviceId>,
    ) {
        let users = register.devices().filter_map(|one| one.user.as_ref());
        for user in users.chain(register.keys().filter_map(|one| one.user.as_ref())) {
            if let Some(id) = tokens_of(user) {
                self.limiter.know_tokens(id, user);
            }
        }
        let devices = register.devices().map(|one| (one.id, &one.name, one.user.as_ref()));
        let keys = register.keys().filter(|key| key.revoked.is_none());
        let keys = keys.map(|one| (one.id, &one.name, one.user.as_ref()));
        self.limiter.know(devices.chain(keys));
    }

    /// Counts what an older process of this server has charged.
    pub(crate) fn add(&self, changes: &HashMap<DeviceId, i64>) {
        self.limiter.add(changes, unix_now());
        self.used_up.notify_waiters();
    }

    /// Saves the usage regularly, for as long as it is polled.
    pub(crate) async fn keep(self) {
        self.usage.keep(self.limiter).await;
    }

    /// Notes in the audit log that the server stops, and writes all remaining lines.
    pub(crate) async fn close(&self) {
        self.audit.note(Event::Stop { pid: std::process::id() });
        self.audit.flush(LAST_LINES_WITHIN).await;
        if let Some(usage) = self.limiter.unsaved() {
            // A failure was logged before, and the process ends.
            let _ = self.usage.save(&usage);
        }
    }

    async fn enter(&self, asked: &PermittedRequest) -> Result<ThrottlePermit, NotNow> {
        let asker = LimitedDevice::of(&asked.asker, &asked.role).with(asked.granted.as_deref());
        let body = match asked.body {
            BodyLength::Known(bytes) => Some(bytes),
            BodyLength::Chunked => None,
        };
        let running = self.limiter.enter(asker, body, unix_now())?;
        let most_body = self.limiter.body(asker, body)?;
        // A request that needs no GPU does not wait for one.
        let turn = asked.route.needs_gpu().then(|| self.turn(asker));
        let account = asked.route.needs_gpu().then(|| {
            let (limiter, speed) = (self.limiter.clone(), self.speed.clone());
            RunningCharge::new(asked, limiter, speed, self.used_up.clone())
        });
        Ok(ThrottlePermit {
            limit: account.clone().map(|account| Box::pin(account.reached()) as LimitReached),
            account: account.map(|account| account as Arc<dyn Account>),
            most_body,
            waits: turn.is_some() && self.queue.is_bounded(),
            tells_queue: self.queue_header.load(Relaxed),
            turn,
            held: Some(Box::new(running)),
        })
    }

    fn turn(&self, asker: LimitedDevice<'_>) -> TurnFuture {
        let (queue, account, device) = (self.queue.clone(), self.limiter.account(asker), asker.id);
        Box::pin(async move {
            let turn = match queue.enter(account, device) {
                Ok(waiting) => {
                    let position = waiting.position();
                    waiting.await.map(|turn| GrantedTurn { held: Box::new(turn), position })
                }
                Err(full) => Err(full),
            };
            // The words of Ollama's own queue: clients may look for them.
            let busy = |full: QueueFull| NotNow {
                status: 503,
                retry_after: Some(RETRY_SOON),
                sentence: full.to_string(),
                limit: "queue",
            };
            turn.map_err(busy)
        })
    }
}

impl From<Exceeded> for NotNow {
    fn from(exceeded: Exceeded) -> Self {
        Self {
            status: exceeded.status(),
            retry_after: exceeded.retry_after_secs(),
            sentence: format!("adit: {exceeded}"),
            limit: exceeded.limit.as_str(),
        }
    }
}

/// Opens the listener that serves metrics.
///
/// # Errors
/// When the address is taken, or may not be used.
pub(crate) async fn exporter(address: &MetricsAddr) -> Result<Exporter, Failure> {
    Exporter::bind(address).await.map_err(|e| {
        Failure::new(format!("cannot serve metrics at {address}"))
            .source(e)
            .hint(format!("choose another address with `metrics` in the configuration, for example metrics = \"{}\"", address.another()))
            .exit(Exit::Usage)
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{
        audit::{AuditSettings, entry::tests::record},
        limits::{LimitTable, Usage},
        record::{End, RequestProgress},
    };

    fn accounting(dir: &std::path::Path, limits: &str) -> Accounting {
        let table =
            LimitTable { default: toml::from_str(limits).expect(limits), ..Default::default() };
        Accounting {
            limiter: Limiter::new(table, Usage::default()),
            queue: Queue::new(NonZeroUsize::new(1), 1),
            queue_header: Arc::default(),
            audit: Audit::start(AuditSettings::in_dir(&dir.join("log"))).expect("started"),
            live: Arc::default(),
            metrics: Arc::default(),
            usage: Arc::new(UsageFile::new(dir)),
            speed: Arc::default(),
            used_up: Arc::default(),
        }
    }

    fn asked(route: RouteClass, body: BodyLength) -> PermittedRequest {
        let RequestRecord { asker, role, path, .. } = record(End::Done);
        PermittedRequest { asker, role, granted: None, path, route, body }
    }

    #[tokio::test]
    async fn a_refusal_names_the_limit_and_when_it_ends() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let accounting = accounting(tmp.path(), "requests_per_minute = 1\nbody = 10");
        let refused = accounting
            .admit(&asked(RouteClass::List, BodyLength::Known(11)))
            .await
            .expect_err("too long");
        assert_eq!((refused.status, refused.limit, refused.retry_after), (413, "body", None));
        let one = asked(RouteClass::List, BodyLength::Chunked);
        assert_eq!(accounting.admit(&one).await.expect("in").most_body, Some(10));
        accounting.arrive(&one.asker, &one.role).expect("the first");
        let refused = accounting.arrive(&one.asker, &one.role).expect_err("too often");
        assert_eq!((refused.status, refused.limit), (429, "requests_per_minute"));
        assert!(refused.retry_after.is_some_and(|secs| (1..=60).contains(&secs)), "{refused:?}");
        assert!(
            refused
                .sentence
                .starts_with("adit: device `laptop` may make 1 request per minute; try again in "),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn requests_of_one_device_reach_its_limit_together() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let accounting = accounting(tmp.path(), "tokens_per_day = 100");
        let one = asked(RouteClass::Generate, BodyLength::Known(1));
        let mut tickets = Vec::new();
        for _ in 0..3 {
            tickets.push(accounting.admit(&one).await.expect("in"));
        }
        let seen = |pieces| RequestProgress { prompt: 10, pieces, is_stream: None };
        let write = |ticket: &ThrottlePermit, pieces| {
            ticket.account.as_ref().expect("an account").so_far(seen(pieces));
        };
        for ticket in &tickets {
            write(ticket, 23);
        }
        // 99 are used. The waiting request is refused when another one has used the last token.
        let mut limits: Vec<_> =
            tickets.iter_mut().map(|ticket| ticket.limit.take().expect("a limit")).collect();
        for limit in &mut limits {
            tokio::select! { biased; _ = limit => panic!("too early"), () = std::future::ready(()) => {} }
        }
        write(&tickets[0], 25);
        for limit in limits {
            let reached = limit.await;
            assert_eq!((reached.status, reached.limit), (429, "tokens_per_day"), "{reached:?}");
            assert!(reached.retry_after.is_some(), "{reached:?}");
        }
        assert_eq!(tickets[0].account.as_ref().expect("an account").charged(), 35);
    }

    #[tokio::test]
    async fn an_answer_in_one_piece_is_charged_by_time() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let accounting = accounting(tmp.path(), "tokens_per_day = 4");
        let one = asked(RouteClass::Generate, BodyLength::Known(1));
        let mut ticket = accounting.admit(&one).await.expect("in");
        let limit = ticket.limit.take().expect("a limit");
        let account = ticket.account.take().expect("an account");
        account.so_far(RequestProgress { prompt: 1, pieces: 0, is_stream: Some(false) });
        assert_eq!(limit.await.limit, "tokens_per_day");
        assert!(account.charged() >= 5);
    }

    #[tokio::test]
    async fn only_what_needs_the_gpu_waits_for_it() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let accounting = accounting(tmp.path(), "");
        let generate = asked(RouteClass::Generate, BodyLength::Known(1));
        let turn =
            async || accounting.admit(&generate).await.expect("in").turn.expect("it needs the GPU");
        let running = turn().await.await.expect("its turn");
        let list =
            accounting.admit(&asked(RouteClass::List, BodyLength::Known(0))).await.expect("in");
        assert!(list.turn.is_none() && !list.waits, "a list does not wait");
        // A request that is not whole yet is not in the queue.
        let unfinished = turn().await;
        let mut waiting = turn().await;
        tokio::select! { biased; _ = &mut waiting => panic!("it did not wait"), () = std::future::ready(()) => {} }
        let refused = unfinished.await.err().expect("full");
        assert_eq!((refused.status, refused.limit), (503, "queue"));
        assert_eq!(refused.retry_after, Some(RETRY_SOON));
        assert!(refused.sentence.starts_with("server busy"), "{refused:?}");
        drop(running);
        drop(waiting.await.expect("its turn"));
        drop(turn().await.await.expect("its turn"));
        assert_eq!((accounting.queue.running(), accounting.queue.waiting()), (0, 0));
    }
}
