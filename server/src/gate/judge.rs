//! Whether a request may pass: asked in this order, Host, route, model, `authorize`, limits; and again when the rules change.

use std::time::Instant;

use bytes::Bytes;
use common::splice::{CHUNKS, DownEnd};
use tokio::sync::SemaphorePermit;

use super::{
    Gate, Line,
    authorize::{At, Question},
    conversation::{Conversation, Over},
    exchange::Request,
    framing::Body,
    head::RequestHead,
    host::{self, ThisMachine},
    inbox::WAITING,
    model,
    record::{Asked, BodyLength, End, Refusal, RouteClass},
    refused::Refused,
    route::{Models, Route, Target, route},
    running::Running,
};
use crate::{
    policy::{Denied, Leave, Pass},
    roles::Wish,
};

/// The longest body that is read whole before it is forwarded, because some of its device's models are not for it.
const MOST_BODY: usize = 32 << 20;
const KIB: usize = 1024;
/// Room for it is taken in steps.
const STEP: usize = 256 * KIB;

/// A request that may pass, and what that depends on.
pub(super) struct Judged {
    head: RequestHead,
    route: Route,
    models: Option<Vec<String>>,
    _pass: Pass,
}

/// Why a request goes no further.
enum Stop {
    Refused(Refused),
    Over(Over),
}

impl From<Denied> for Stop {
    fn from(denied: Denied) -> Self {
        Self::Refused(denied.into())
    }
}

impl Judged {
    /// Whether it may still pass.
    pub(super) fn again(&self, gate: &Gate, line: &Line<'_>) -> Result<(), Denied> {
        let leave = gate.policy.route(line.certificate, wish(&self.head, self.route))?;
        match &self.models {
            _ if !leave.needs_model() => Ok(()),
            Some(models) => leave.with_models(models).map(drop),
            None if self.route.models == Models::None => Ok(()),
            None => Err(leave.no_model("was made before that was so")),
        }
    }
}

fn wish(head: &RequestHead, route: Route) -> Wish<'_> {
    Wish { method: &head.method, preflight: head.preflight.as_deref(), target: Target::new(&head.target), route }
}

/// The body of a request, as far as it had to be read.
#[derive(Default)]
struct Content<'a> {
    raw: Vec<u8>,
    text: Vec<u8>,
    room: Vec<SemaphorePermit<'a>>,
}

impl<'a> Conversation<'a> {
    /// Judges a request, and carries it if it may pass.
    pub(super) async fn judge(&mut self, head: RequestHead, bytes: Bytes) -> Result<(), Over> {
        let gate = self.gate;
        let route = route(&head.method, Target::new(&head.target));
        let leave = match self.leave(&head, route) {
            Ok(leave) => leave,
            Err(refused) => {
                let role = gate.policy.role(self.line.certificate);
                let mut running = Running::new(&*gate.observer, &self.line.asker, role, Some((&head, route)));
                running.incoming.bytes = bytes.len() as u64;
                return Err(self.refuse(running, &bytes, refused).await);
            }
        };
        let mut running = Running::new(&*gate.observer, &self.line.asker, leave.role().clone(), Some((&head, route)));
        let mut body = Body::new(head.body);
        let mut content = Content::default();
        match self.admit(leave, head, route, &mut body, &mut content, &mut running).await {
            Ok((judged, ticket)) => {
                let most_body = ticket.most_body.unwrap_or(u64::MAX);
                let begun = [bytes, content.raw.into()].into_iter().filter(|bytes| !bytes.is_empty()).collect();
                drop(content.room);
                let result = self.exchange(Request { begun, body, most_body, judged: Some(judged) }, running).await;
                drop(ticket);
                result
            }
            Err(Stop::Refused(refused)) => {
                running.incoming.bytes = (bytes.len() + content.raw.len()) as u64;
                Err(self.refuse(running, &bytes, refused).await)
            }
            Err(Stop::Over(over)) => {
                running.incoming.bytes = (bytes.len() + content.raw.len()) as u64;
                running.ended(if self.inbox.is_finished() { End::Cancelled } else { End::of(&over) }, None);
                Err(over)
            }
        }
    }

    /// What needs nothing but the head.
    fn leave(&self, head: &RequestHead, route: Route) -> Result<Leave, Refused> {
        if !host::allows(&head.host, &ThisMachine) {
            let sentence = format!(
                "adit: this is not `{}`: Ollama answers to localhost, to private addresses and to the server's own name",
                head.host.chars().take(100).collect::<String>()
            );
            return Err(Refused::new(403, Refusal::Host, sentence));
        }
        Ok(self.gate.policy.route(self.line.certificate, wish(head, route))?)
    }

    async fn admit(
        &mut self,
        leave: Leave,
        head: RequestHead,
        route: Route,
        body: &mut Body,
        content: &mut Content<'a>,
        running: &mut Running<'_>,
    ) -> Result<(Judged, super::record::Ticket), Stop> {
        let authority = self.gate.authority().filter(|authority| authority.is_asked(At::Request));
        let is_read = leave.needs_model() || authority.is_some();
        let models = if is_read { self.models(&leave, &head, route, body, content, running).await? } else { None };
        running.set_model(models.as_ref().and_then(|models| models.first()).map(|model| model.as_str().into()));
        let pass = leave.with_models(models.as_deref().unwrap_or_default())?;
        if let Some(authority) = authority {
            let question = self.question(&head, &pass, models.clone().unwrap_or_default());
            self.meanwhile(route.class, authority.ask(question)).await?.map_err(|why| Stop::Refused(why.into()))?;
        }
        let asked = Asked {
            asker: self.line.asker.clone(),
            role: pass.role.clone(),
            method: head.method.clone(),
            path: Target::new(&head.target).path.into(),
            route: route.class,
            model: running.model(),
            body: head.body,
        };
        let judged = Judged { head, route, models, _pass: pass };
        let since = Instant::now();
        let gate = self.gate;
        let ticket = self.meanwhile(route.class, gate.admission.admit(&asked)).await?;
        running.waited(since);
        let ticket = ticket.map_err(|not_now| Stop::Refused(not_now.into()))?;
        if let (BodyLength::Known(length), Some(most)) = (asked.body, ticket.most_body)
            && length > most
        {
            return Err(Stop::Refused(super::exchange::too_long(most)));
        }
        if ticket.most_body.is_some_and(|most| content.text.len() as u64 > most) {
            return Err(Stop::Refused(super::exchange::too_long(ticket.most_body.unwrap_or_default())));
        }
        content.text = Vec::new();
        // It may have waited for long.
        if self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            judged.again(gate, self.line)?;
        }
        Ok((judged, ticket))
    }

    /// The models that a request is about, read as Ollama will; `None` if it is about none.
    async fn models(
        &mut self,
        leave: &Leave,
        head: &RequestHead,
        route: Route,
        body: &mut Body,
        content: &mut Content<'a>,
        running: &mut Running<'_>,
    ) -> Result<Option<Vec<String>>, Stop> {
        let keys = match route.models {
            Models::None => return Ok(None),
            Models::Path => return Ok(Some(vec![decoded(Target::new(&head.target).path)])),
            Models::Unread if !leave.needs_model() => return Ok(None),
            Models::Unread => return Err(leave.no_model("does not say its model where that can be checked").into()),
            Models::Json(_) if head.encoded => {
                let sentence = "adit: which model a request with a compressed body names can't be checked: send it uncompressed";
                return Err(Stop::Refused(Refused::new(400, Refusal::Malformed, sentence)));
            }
            Models::Json(keys) => keys,
        };
        self.read(head, body, content, running).await?;
        let text = if head.body == BodyLength::Chunked { &content.text } else { &content.raw };
        let unreadable = |e: model::Unreadable| Stop::Refused(Refused::new(400, Refusal::Malformed, format!("adit: {e}")));
        let models = model::named(text, keys).map_err(unreadable)?;
        if models.is_empty() && leave.needs_model() {
            return Err(leave.no_model("names none").into());
        }
        Ok(Some(models))
    }

    fn question(&self, head: &RequestHead, pass: &Pass, models: Vec<String>) -> Question {
        Question {
            at: At::Request,
            device: self.line.asker.name.clone(),
            device_id: Some(self.line.asker.id),
            role: pass.role.clone(),
            method: Some(head.method.clone()),
            path: Some(Target::new(&head.target).path.into()),
            model: models.first().cloned(),
            models,
        }
    }

    /// Reads a whole body.
    async fn read(
        &mut self,
        head: &RequestHead,
        body: &mut Body,
        content: &mut Content<'a>,
        running: &mut Running<'_>,
    ) -> Result<(), Stop> {
        if head.expects && !body.is_over() {
            running.outgoing.tracker.continued();
            let gone = |_| Stop::Over(common::splice::End::Aborted.into());
            self.send.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(gone)?;
        }
        let chunked = head.body == BodyLength::Chunked;
        let gate = self.gate;
        while !body.is_over() {
            let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
            let count = self.inbox.next(&mut chunks).await.map_err(|end| Stop::Over(end.into()))?;
            if count == 0 {
                let sentence = "adit: the application ended in the middle of its request";
                return Err(Stop::Refused(Refused::new(400, Refusal::Malformed, sentence)));
            }
            for at in 0..count {
                let text = &mut content.text;
                let taken = body.follow(&chunks[at], |bytes| {
                    if chunked {
                        text.extend_from_slice(bytes)
                    }
                });
                let taken = taken.map_err(|fault| Stop::Refused(fault.into()))?;
                while content.raw.len() + taken > content.room.len() * STEP {
                    let room =
                        gate.room.try_acquire_many((STEP / KIB) as u32).ok().filter(|_| content.raw.len() + taken <= MOST_BODY);
                    content.room.push(room.ok_or_else(|| Stop::Refused(no_room(content.raw.len() + taken)))?);
                }
                content.raw.extend_from_slice(&chunks[at][..taken]);
                if taken < chunks[at].len() {
                    let mut rest = chunks[at..count].to_vec();
                    rest[0] = rest[0].slice(taken..);
                    self.inbox.put_back(rest.into_iter());
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits for something while the application may go. One that half-closes gives up what would take long, as it does with Ollama.
    async fn meanwhile<T>(&mut self, class: RouteClass, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => Ok(done),
            end = self.inbox.watch(WAITING) => match end {
                DownEnd::Finished if !matches!(class, RouteClass::Generate | RouteClass::Embed) => Ok(work.await),
                end => Err(Stop::Over(end.into())),
            },
        }
    }
}

impl End {
    fn of(over: &Over) -> Self {
        match over {
            Over::Ended { end: common::splice::End::Reset(code), .. }
                if code.into_inner() == u64::from(common::wire::Code::Aborted as u32) =>
            {
                Self::Cancelled
            }
            _ => Self::Cut,
        }
    }
}

fn no_room(length: usize) -> Refused {
    if length > MOST_BODY {
        let sentence = format!("adit: the body is longer than {} MiB, which is too long to look for its model", MOST_BODY >> 20);
        return Refused::new(413, Refusal::Limit("body"), sentence);
    }
    let sentence = "adit: the server is reading too many long requests at once: try again in a moment";
    Refused { retry_after: Some(1), ..Refused::new(503, Refusal::Limit("room"), sentence) }
}

/// The last segment of a canonical path, decoded.
fn decoded(path: &str) -> String {
    let segment = path.rsplit_once('/').map_or(path, |(_, segment)| segment);
    let mut bytes = Vec::new();
    let mut rest = segment.as_bytes();
    while let [byte, after @ ..] = rest {
        let encoded = match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                std::str::from_utf8(&[*high, *low]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()).map(|b| (b, after))
            }
            _ => None,
        };
        let (byte, after) = encoded.unwrap_or((*byte, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
