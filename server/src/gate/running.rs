//! A request while it runs, and its record when it has ended, in whatever way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    http1::{head::RequestHead, response::Tracker},
    identity::{Name, UserName},
    ollama::{
        json_scan::JsonScan,
        model::Unreadable,
        named_models::NamedModels,
        route::{ApiRoute, Models, RouteClass, Target},
    },
};

use super::refused::Refused;
use crate::record::{
    Account, Asker, End, Observer, Refusal, RequestProgress, RequestRecord, TokenFacts,
};

/// The longest path that is recorded, in bytes.
const MOST_PATH: usize = 1024;

/// A request that has begun. If it is dropped before its end, it is recorded as cut.
pub(super) struct RunningRequest<'a> {
    record: RequestRecord,
    /// The bytes from the device.
    pub(super) incoming: Incoming,
    /// The bytes to the device.
    pub(super) outgoing: Outgoing<'a>,
    /// How far the answer has come.
    pub(super) answer: Tracker,
    is_recorded: bool,
}

#[derive(Default)]
pub(super) struct Incoming {
    /// All bytes.
    pub(super) bytes: u64,
    /// Bytes of the body's content.
    pub(super) content: u64,
    scan: Option<JsonScan>,
    /// The models that the body names, if they must be known.
    named: Option<NamedModels>,
}

pub(super) struct Outgoing<'a> {
    observer: &'a dyn Observer,
    route: RouteClass,
    began: Instant,
    first: Option<Duration>,
    last: Option<Instant>,
    status: Option<u16>,
    /// How long the request has waited in the queue, and since when it waits there now.
    queued: (Duration, Option<Instant>),
    /// Since when the service has all that it needs to begin.
    at_work: Option<Instant>,
    /// All bytes.
    pub(super) bytes: u64,
    /// The account that it is charged to.
    pub(super) account: Option<Arc<dyn Account>>,
    seen: RequestProgress,
}

impl<'a> RunningRequest<'a> {
    /// Begins with a head; with `None` if the head could not be read.
    pub(super) fn new(
        observer: &'a dyn Observer,
        (asker, service): (&Asker, &Name),
        role: Name,
        head: Option<(&RequestHead, ApiRoute)>,
    ) -> Self {
        let path = |head: &RequestHead| {
            Target::new(&head.target).path.chars().take(MOST_PATH).collect::<String>().into()
        };
        let route = head.map_or(RouteClass::Other, |(_, route)| route.class);
        let record = RequestRecord {
            asker: asker.clone(),
            service: service.clone(),
            number: None,
            role,
            method: head.map(|(head, _)| head.method.clone()).unwrap_or_default(),
            path: head.map(|(head, _)| path(head)).unwrap_or_default(),
            route,
            model: None,
            status: None,
            bytes_in: 0,
            bytes_out: 0,
            queued: Duration::ZERO,
            first_byte: None,
            total: Duration::ZERO,
            tokens: TokenFacts::default(),
            end: End::Cut,
        };
        let is_json = head
            .is_some_and(|(head, route)| matches!(route.models, Models::Json(_)) && !head.encoded);
        let is_kept =
            matches!(route, RouteClass::Generate | RouteClass::Embed | RouteClass::Models);
        let outgoing = Outgoing {
            observer,
            route,
            began: Instant::now(),
            first: None,
            last: None,
            status: None,
            queued: (Duration::ZERO, None),
            at_work: None,
            bytes: 0,
            account: None,
            seen: RequestProgress::default(),
        };
        Self {
            record,
            incoming: Incoming::new(is_json),
            outgoing,
            answer: Tracker::new(head.is_some_and(|(head, _)| &*head.method == "HEAD"), is_kept),
            is_recorded: false,
        }
    }

    /// The model that was found so far.
    fn model(&self) -> Option<Box<str>> {
        self.record.model.clone().or_else(|| self.incoming.scan.as_ref()?.model())
    }

    /// Sets the model that the checks have found.
    pub(super) fn set_model(&mut self, model: Option<Box<str>>) {
        self.record.model = model;
    }

    /// Sets the person who makes it and its role, which `authorize` may have chosen.
    pub(super) fn set_caller(&mut self, user: Option<UserName>, role: Name) {
        (self.record.asker.user, self.record.role) = (user, role);
    }

    /// The request is let pass.
    pub(super) fn let_pass(&mut self) {
        self.record.number = self.outgoing.observer.began(&self.record);
    }

    /// Records the end. `status` is set if the answer was the gate's own.
    pub(super) fn ended(mut self, end: End, status: Option<u16>) {
        self.record.end = end;
        self.outgoing.status = status.or(self.outgoing.status);
        if !self.is_recorded {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.is_recorded = true;
        self.record.queued = self.outgoing.leaves_queue();
        self.record.model = self.model();
        let out = &self.outgoing;
        self.record.total = out.began.elapsed();
        (self.record.bytes_in, self.record.bytes_out) = (self.incoming.bytes, out.bytes);
        (self.record.first_byte, self.record.status) = (out.first, out.status);
        self.record.tokens = self.tokens();
        self.outgoing.observer.ended(&self.record);
    }

    fn tokens(&self) -> TokenFacts {
        let (scan, tracker) = (self.incoming.scan.as_ref(), &self.answer);
        let (told_in, told_out) = tracker.tokens();
        TokenFacts {
            told_in,
            told_out,
            pieces: tracker.pieces(),
            prompt: scan.map_or(0, JsonScan::prompt_tokens),
            // Ollama's own routes stream unless the request says otherwise; those of OpenAI and of
            // LM Studio do not.
            is_stream: scan.and_then(JsonScan::stream).unwrap_or_else(|| {
                let path = &self.record.path;
                path.starts_with("/api/") && !path.starts_with("/api/v0/")
            }),
            at_work: self.outgoing.at_work.map(|since| since.elapsed()),
            charged: self.outgoing.account.as_ref().map_or(0, |account| account.charged()),
            payer: self.outgoing.account.as_ref().map(|account| account.payer()),
        }
    }
}

impl Drop for RunningRequest<'_> {
    fn drop(&mut self) {
        if !self.is_recorded {
            self.tell();
        }
    }
}

impl Incoming {
    /// An empty reader. `is_json` is false for a body that is not followed.
    pub(super) fn new(is_json: bool) -> Self {
        Self { scan: is_json.then(JsonScan::default), ..Self::default() }
    }

    /// Whether the service can begin with the bytes that were forwarded, as far as that can be
    /// followed.
    pub(super) fn is_whole(&self) -> bool {
        self.scan.as_ref().is_some_and(JsonScan::is_whole)
    }

    /// About how many tokens the prompt has, and whether the request asks for a stream.
    pub(super) fn prompt(&self) -> (u64, Option<bool>) {
        self.scan.as_ref().map_or((0, None), |scan| (scan.prompt_tokens(), scan.stream()))
    }

    /// Looks for models under these keys of the body. Must be called before the body is read.
    pub(super) fn look_for_models(&mut self, keys: &'static [&'static [&'static str]]) {
        self.named = Some(NamedModels::new(keys));
    }

    /// The models, as soon as no later byte of the body can change them.
    pub(super) fn settled_models(&self) -> Option<Vec<String>> {
        self.named.as_ref()?.settled()
    }

    /// The models, when the whole body was read.
    ///
    /// # Errors
    /// If the body is ambiguous about its models.
    pub(super) fn models(&self) -> Result<Vec<String>, Refused> {
        self.named.as_ref().map_or_else(|| Ok(Vec::new()), NamedModels::finish).map_err(unreadable)
    }

    /// Why the body is ambiguous, as far as it was read.
    pub(super) fn doubt(&self) -> Option<Refused> {
        self.named.as_ref()?.fault().map(unreadable)
    }

    /// Reads bytes of the body's content.
    pub(super) fn content(&mut self, bytes: &[u8]) {
        self.content += bytes.len() as u64;
        if let Some(scan) = &mut self.scan {
            scan.push(bytes);
        }
        if let Some(named) = &mut self.named {
            named.push(bytes);
        }
    }
}

fn unreadable(why: Unreadable) -> Refused {
    Refused::new(400, Refusal::Malformed, format!("adit: {why}"))
}

impl Outgoing<'_> {
    /// Notes that the request waits in the queue from now on.
    pub(super) fn joins_queue(&mut self) {
        self.queued.1.get_or_insert_with(Instant::now);
    }

    /// Notes that the request does not wait in the queue any more. Returns how long it has waited
    /// there.
    pub(super) fn leaves_queue(&mut self) -> Duration {
        if let Some(since) = self.queued.1.take() {
            self.queued.0 += since.elapsed();
        }
        self.queued.0
    }

    /// Notes that the service can begin, and what was seen so far.
    pub(super) fn service_works(&mut self, seen: RequestProgress) {
        let is_new = self.at_work.is_none() || seen != self.seen;
        self.at_work.get_or_insert_with(Instant::now);
        if let Some(account) = self.account.as_ref().filter(|_| is_new) {
            self.seen = seen;
            account.so_far(seen);
        }
    }

    /// Notes that a piece of the answer was delivered, with the status once it has come.
    pub(super) fn piece(&mut self, bytes: usize, status: Option<u16>) {
        self.bytes += bytes as u64;
        self.status = status;
        if status.is_none() {
            return;
        }
        let now = Instant::now();
        match self.last {
            Some(last) => self.observer.piece(self.route, now - last),
            None => self.first = Some(now - self.began),
        }
        self.last = Some(now);
    }
}
