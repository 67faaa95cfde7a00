//! One request while it runs, and its record when it has ended, however that comes about.

use std::time::{Duration, Instant, SystemTime};

use proto::{
    http1::{head::RequestHead, response::Tracker},
    identity::Name,
    ollama::{
        route::{Models, Route, RouteClass, Target},
        usage::JsonScan,
    },
};

use crate::record::{Asker, End, Observer, RequestRecord, TokenFacts};

/// A path is recorded up to this length.
const MOST_PATH: usize = 1024;

/// A request that has begun. Dropped before its end, it was cut.
pub(super) struct Running<'a> {
    record: RequestRecord,
    /// What comes from the device.
    pub(super) incoming: Incoming,
    /// What goes to it.
    pub(super) outgoing: Outgoing<'a>,
    told: bool,
}

/// The request's bytes.
#[derive(Default)]
pub(super) struct Incoming {
    /// All of them.
    pub(super) bytes: u64,
    /// Those of the body's content.
    pub(super) content: u64,
    scan: Option<JsonScan>,
    /// So long it has waited for its turn.
    pub(super) queued: Duration,
    /// Since when the service has all that it needs to begin.
    at_work: Option<Instant>,
}

/// The answer's bytes.
pub(super) struct Outgoing<'a> {
    observer: &'a dyn Observer,
    route: RouteClass,
    began: Instant,
    first: Option<Duration>,
    last: Option<Instant>,
    status: Option<u16>,
    /// All of them.
    pub(super) bytes: u64,
    /// Where it is.
    pub(super) tracker: Tracker,
}

impl<'a> Running<'a> {
    /// Begins with a head; or with none, if it could not be read.
    pub(super) fn new(
        observer: &'a dyn Observer,
        asker: &Asker,
        role: Name,
        head: Option<(&RequestHead, Route)>,
    ) -> Self {
        let path = |head: &RequestHead| {
            Target::new(&head.target).path.chars().take(MOST_PATH).collect::<String>().into()
        };
        let route = head.map_or(RouteClass::Other, |(_, route)| route.class);
        let record = RequestRecord {
            at: SystemTime::now(),
            asker: asker.clone(),
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
        let is_json = |head: &RequestHead, route: Route| {
            matches!(route.models, Models::Json(_)) && !head.encoded
        };
        let scan = head.filter(|(head, route)| is_json(head, *route)).map(|_| JsonScan::default());
        let counted = matches!(route, RouteClass::Generate | RouteClass::Embed);
        let outgoing = Outgoing {
            observer,
            route,
            began: Instant::now(),
            first: None,
            last: None,
            status: None,
            bytes: 0,
            tracker: Tracker::new(head.is_some_and(|(head, _)| &*head.method == "HEAD"), counted),
        };
        Self { record, incoming: Incoming { scan, ..Incoming::default() }, outgoing, told: false }
    }

    /// It is no request after all: what the service says unasked.
    pub(super) fn unrecorded(mut self) -> Self {
        self.told = true;
        self.outgoing.tracker = Tracker::unasked();
        self
    }

    /// Whether it needs no record any more.
    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    /// The model that it has named so far.
    pub(super) fn model(&self) -> Option<Box<str>> {
        self.record.model.clone().or_else(|| self.incoming.scan.as_ref()?.model())
    }

    /// The model that it names, for sure.
    pub(super) fn set_model(&mut self, model: Option<Box<str>>) {
        self.record.model = model;
    }

    /// It has ended. `status` if it was ours.
    pub(super) fn ended(mut self, end: End, status: Option<u16>) {
        self.record.end = end;
        self.outgoing.status = status.or(self.outgoing.status);
        if !self.told {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.told = true;
        self.record.model = self.model();
        let out = &self.outgoing;
        self.record.total = out.began.elapsed();
        (self.record.bytes_in, self.record.bytes_out) = (self.incoming.bytes, out.bytes);
        self.record.queued = self.incoming.queued;
        (self.record.first_byte, self.record.status) = (out.first, out.status);
        self.record.tokens = self.tokens();
        self.outgoing.observer.ended(&self.record);
    }

    fn tokens(&self) -> TokenFacts {
        let (scan, tracker) = (self.incoming.scan.as_ref(), &self.outgoing.tracker);
        let (told_in, told_out) = tracker.tokens();
        TokenFacts {
            told_in,
            told_out,
            pieces: tracker.pieces(),
            prompt: scan.map_or(0, JsonScan::prompt_tokens),
            // What Ollama's own routes do if nobody says otherwise, and those of others do not.
            is_stream: scan
                .and_then(JsonScan::stream)
                .unwrap_or_else(|| self.record.path.starts_with("/api/")),
            at_work: self.incoming.at_work.map(|since| since.elapsed()),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.tell();
        }
    }
}

impl Incoming {
    /// Whether what has passed is all that the service needs to begin, so far as that can be
    /// followed.
    pub(super) fn is_whole(&self) -> bool {
        self.scan.as_ref().is_some_and(JsonScan::is_whole)
    }

    /// The service has got what there is of it; `all` if that is the whole request.
    pub(super) fn forwarded(&mut self, all: bool) {
        if self.at_work.is_none() && (all || self.is_whole()) {
            self.at_work = Some(Instant::now());
        }
    }

    /// Bytes of the body's content.
    pub(super) fn content(&mut self, bytes: &[u8]) {
        self.content += bytes.len() as u64;
        if let Some(scan) = &mut self.scan {
            scan.push(bytes);
        }
    }
}

impl Outgoing<'_> {
    /// Whether something else can still be said: nothing has come but interim answers.
    pub(super) fn is_free(&self) -> bool {
        self.bytes == 0 || self.tracker.is_between_heads()
    }

    /// A piece of the answer passes.
    pub(super) fn piece(&mut self, bytes: &[u8]) {
        self.tracker.follow(bytes);
        self.bytes += bytes.len() as u64;
        self.status = self.tracker.status();
        if self.status.is_none() {
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
