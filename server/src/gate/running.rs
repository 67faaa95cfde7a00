//! One request while it runs, and its record when it has ended, however that comes about.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use proto::{
    http1::{head::RequestHead, response::Tracker},
    identity::Name,
    ollama::{
        json_scan::JsonScan,
        model::Unreadable,
        named_models::NamedModels,
        route::{Models, Route, RouteClass, Target},
    },
};

use super::refused::Refused;
use crate::record::{Account, Asker, End, Observer, Refusal, RequestRecord, Seen, TokenFacts};

/// A path is recorded up to this length.
const MOST_PATH: usize = 1024;

/// A request that has begun. Dropped before its end, it was cut.
pub(super) struct Running<'a> {
    record: RequestRecord,
    /// What comes from the device.
    pub(super) incoming: Incoming,
    /// What goes to it.
    pub(super) outgoing: Outgoing<'a>,
    /// Where its answer is.
    pub(super) answer: Tracker,
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
    /// The models that it names, where that has to be known.
    named: Option<NamedModels>,
}

/// The answer's bytes.
pub(super) struct Outgoing<'a> {
    observer: &'a dyn Observer,
    route: RouteClass,
    began: Instant,
    first: Option<Duration>,
    last: Option<Instant>,
    status: Option<u16>,
    /// So long the request has waited for its turn.
    pub(super) queued: Duration,
    /// Since when the service has all that it needs to begin.
    at_work: Option<Instant>,
    /// All of them.
    pub(super) bytes: u64,
    /// What it is charged to.
    pub(super) account: Option<Arc<dyn Account>>,
    seen: Seen,
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
            queued: Duration::ZERO,
            at_work: None,
            bytes: 0,
            account: None,
            seen: Seen::default(),
        };
        Self {
            record,
            incoming: Incoming::new(is_json),
            outgoing,
            answer: Tracker::new(head.is_some_and(|(head, _)| &*head.method == "HEAD"), is_kept),
            told: false,
        }
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
        self.record.queued = out.queued;
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
            // What Ollama's own routes do if nobody says otherwise, and those of others do not.
            is_stream: scan
                .and_then(JsonScan::stream)
                .unwrap_or_else(|| self.record.path.starts_with("/api/")),
            at_work: self.outgoing.at_work.map(|since| since.elapsed()),
            charged: self.outgoing.account.as_ref().map_or(0, |account| account.charged()),
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
    /// Nothing yet, of a request whose body is JSON or is not followed.
    pub(super) fn new(is_json: bool) -> Self {
        Self { scan: is_json.then(JsonScan::default), ..Self::default() }
    }

    /// Whether what has passed is all that the service needs to begin, so far as that can be
    /// followed.
    pub(super) fn is_whole(&self) -> bool {
        self.scan.as_ref().is_some_and(JsonScan::is_whole)
    }

    /// About how many tokens the prompt has, and whether a stream is asked for.
    pub(super) fn prompt(&self) -> (u64, Option<bool>) {
        self.scan.as_ref().map_or((0, None), |scan| (scan.prompt_tokens(), scan.stream()))
    }

    /// The models that the body names by these keys have to be known. Said before it comes.
    pub(super) fn look_for_models(&mut self, keys: &'static [&'static [&'static str]]) {
        self.named = Some(NamedModels::new(keys));
    }

    /// The models, as soon as nothing that may still come names others.
    pub(super) fn settled_models(&self) -> Option<Vec<String>> {
        self.named.as_ref()?.settled()
    }

    /// The models, when all of the body has come.
    ///
    /// # Errors
    /// If the body does not name them in one way.
    pub(super) fn models(&self) -> Result<Vec<String>, Refused> {
        self.named.as_ref().map_or_else(|| Ok(Vec::new()), NamedModels::finish).map_err(unreadable)
    }

    /// Why the body can't be read in one way, as far as it has come.
    pub(super) fn doubt(&self) -> Option<Refused> {
        self.named.as_ref()?.fault().map(unreadable)
    }

    /// Bytes of the body's content.
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
    /// The service has all that it needs to begin, and this has been seen so far.
    pub(super) fn works(&mut self, seen: Seen) {
        let is_new = self.at_work.is_none() || seen != self.seen;
        self.at_work.get_or_insert_with(Instant::now);
        if let Some(account) = self.account.as_ref().filter(|_| is_new) {
            self.seen = seen;
            account.so_far(seen);
        }
    }

    /// So many bytes of the answer pass; with its status, when that has come.
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
