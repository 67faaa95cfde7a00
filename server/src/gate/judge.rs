//! Whether a request may pass: asked in this order, certificate, Host, route, model, `authorize`,
//! limits; and again when the rules change.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::Bytes;
use common::{
    machine::process::unix_now,
    transport::splice::{CHUNKS, DownEnd},
};
use proto::{
    http1::{BodyLength, framing::Body, head::RequestHead, response},
    ollama::{
        host, model,
        route::{Models, Route, RouteClass, Target, route},
    },
    wire::Code,
};
use tokio::sync::watch;

use super::{
    Gate, Line,
    conversation::{Conversation, Over},
    exchange::Request,
    inbox::WAITING,
    refused::Refused,
    room::{Full, Share},
    running::Running,
};
use crate::{
    gate::this_machine::ThisMachine,
    policy::{
        Denied, Leave, Pass,
        authorize::{At, Authority, Question},
        roles::Wish,
    },
    record::{Asked, End, Refusal, Ticket},
};

/// The longest body that is read whole before it is forwarded, because some of its device's models
/// are not for it.
const MOST_BODY: usize = 32 << 20;

/// A request that may pass, and what that depends on.
pub(super) struct Judged {
    head: RequestHead,
    route: Route,
    models: Option<Vec<String>>,
    pass: Pass,
    /// Who else has said so.
    authority: Option<Arc<Authority>>,
}

/// Why a request goes no further.
enum Stop {
    Refused(Refused),
    Over(Over),
}

impl<T: Into<Refused>> From<T> for Stop {
    fn from(refused: T) -> Self {
        Self::Refused(refused.into())
    }
}

impl Judged {
    /// Ends when the rules have changed and it may not pass any more. Cancellation safe.
    pub(super) async fn overruled(
        &mut self,
        gate: &Gate,
        line: &Line<'_>,
        mut changes: watch::Receiver<()>,
    ) -> Refused {
        while changes.changed().await.is_ok() {
            if let Err(refused) = self.again(gate, line).await {
                return refused;
            }
        }
        // The gate is gone, and with it whoever could change anything.
        std::future::pending().await
    }

    async fn again(&mut self, gate: &Gate, line: &Line<'_>) -> Result<(), Refused> {
        const BEFORE: &str = "was made before that was so";
        let leave = gate.policy.route(line.certificate, wish(&self.head, self.route))?;
        let is_unknown = self.models.is_none() && self.route.models != Models::None;
        if is_unknown && leave.needs_model() {
            return Err(leave.no_model(BEFORE).into());
        }
        let pass = leave.with_models(self.models.as_deref().unwrap_or_default())?;
        let authority = gate.authority().filter(|authority| authority.is_asked(At::Request));
        let Some(authority) = authority else { return Ok(()) };
        // The same is not asked the same again: what it has said was about the whole request.
        if self.pass == pass
            && self.authority.as_ref().is_some_and(|asked| Arc::ptr_eq(asked, &authority))
        {
            return Ok(());
        }
        if is_unknown {
            let sentence = format!(
                "adit: this request {BEFORE}: `authorize` can't be asked without its model"
            );
            return Err(Refused::new(403, Refusal::Authorize, sentence));
        }
        authority.ask(question(&self.head, line, &pass, self.models.clone())).await?;
        (self.pass, self.authority) = (pass, Some(authority));
        Ok(())
    }
}

fn question(
    head: &RequestHead,
    line: &Line<'_>,
    pass: &Pass,
    models: Option<Vec<String>>,
) -> Question {
    let models = models.unwrap_or_default();
    Question {
        at: At::Request,
        device: line.asker.name.clone(),
        device_id: Some(line.asker.id),
        device_uid: line.asker.uid,
        role: pass.role.clone(),
        method: Some(head.method.clone()),
        path: Some(Target::new(&head.target).path.into()),
        model: models.first().cloned(),
        models,
    }
}

fn wish(head: &RequestHead, route: Route) -> Wish<'_> {
    Wish {
        method: &head.method,
        preflight: head.preflight.as_deref(),
        target: Target::new(&head.target),
        route,
    }
}

/// The body of a request, as far as it had to be read.
struct Content<'a> {
    raw: Vec<u8>,
    text: Vec<u8>,
    room: Share<'a>,
}

impl Line<'_> {
    fn is_in_time(&self) -> Result<(), Denied> {
        if self.not_after.load(Relaxed) < unix_now() {
            Err(Denied::Device(Code::Expired))
        } else {
            Ok(())
        }
    }
}

impl Gate {
    /// What needs nothing but the head.
    pub(super) fn leave(
        &self,
        line: &Line<'_>,
        head: &RequestHead,
        route: Route,
    ) -> Result<Leave, Refused> {
        line.is_in_time()?;
        self.admission.arrive(&line.asker, &self.policy.role(line.certificate))?;
        if !host::allows(&head.host, &ThisMachine) {
            let sentence = format!(
                "adit: this is not `{}`: Ollama answers to localhost, to private addresses and to the server's own name",
                head.host.chars().take(100).collect::<String>()
            );
            return Err(Refused::new(403, Refusal::Host, sentence));
        }
        Ok(self.policy.route(line.certificate, wish(head, route))?)
    }
}

impl<'a> Conversation<'a> {
    /// Judges a request, and carries it if it may pass.
    pub(super) async fn judge(&mut self, head: RequestHead, bytes: Bytes) -> Result<(), Over> {
        // Whatever changes from now on is about this request.
        self.changes.mark_unchanged();
        let route = route(&head.method, Target::new(&head.target));
        let mut running = self.gate.begin(self.line, Some((&head, route)));
        let mut body = Body::new(head.body);
        let mut content = Content {
            raw: Vec::new(),
            text: Vec::new(),
            room: self.gate.room.share(self.line.asker.id),
        };
        match self.admit(head, route, &mut body, &mut content, &mut running).await {
            Ok((judged, ticket)) => {
                let begun = [bytes, content.raw.into()]
                    .into_iter()
                    .filter(|bytes| !bytes.is_empty())
                    .collect();
                self.exchange(
                    Request { begun, room: Some(content.room), body, judged: Some(judged), ticket },
                    running,
                )
                .await
            }
            Err(Stop::Refused(refused)) => {
                running.incoming.bytes = (bytes.len() + content.raw.len()) as u64;
                Err(self.refuse(running, &bytes, refused).await)
            }
            Err(Stop::Over(over)) => {
                running.incoming.bytes = (bytes.len() + content.raw.len()) as u64;
                running.ended(
                    if self.inbox.is_finished() { End::Cancelled } else { End::of(&over) },
                    None,
                );
                Err(over)
            }
        }
    }

    async fn admit(
        &mut self,
        head: RequestHead,
        route: Route,
        body: &mut Body,
        content: &mut Content<'a>,
        running: &mut Running<'_>,
    ) -> Result<(Judged, Ticket), Stop> {
        let leave = self.gate.leave(self.line, &head, route)?;
        let authority = self.gate.authority().filter(|authority| authority.is_asked(At::Request));
        let is_read = leave.needs_model() || authority.is_some();
        let models = if is_read {
            self.models(&leave, &head, route, body, content, running).await?
        } else {
            None
        };
        running.set_model(
            models
                .as_ref()
                .filter(|models| !models.is_empty())
                .map(|models| models.join(", ").into()),
        );
        let pass = leave.with_models(models.as_deref().unwrap_or_default())?;
        if let Some(authority) = &authority {
            let question = question(&head, self.line, &pass, models.clone());
            self.meanwhile(route.class, authority.ask(question)).await??;
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
        let gate = self.gate;
        let ticket = self.meanwhile(route.class, gate.admission.admit(&asked)).await??;
        // What may have to wait has to be known to be whole; most is followed as it passes.
        let is_followed = matches!(route.models, Models::Json(_)) && !head.encoded;
        if ticket.waits && !is_followed {
            self.read(&head, body, content, running).await?;
        }
        let length = match asked.body {
            BodyLength::Known(length) => length,
            BodyLength::Chunked => content.text.len() as u64,
        };
        if let Some(most) = ticket.most_body.filter(|most| length > *most) {
            return Err(super::exchange::too_long(most).into());
        }
        content.text = Vec::new();
        content.room.shrink(content.raw.len());
        self.line.is_in_time()?;
        let mut judged = Judged { head, route, models, pass, authority };
        // Its body may have been long in coming, and the rules have changed meanwhile.
        while self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            let line = self.line;
            self.meanwhile(route.class, judged.again(gate, line)).await??;
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
            Models::Path => return Ok(Some(vec![Target::new(&head.target).last_segment()])),
            Models::Unread if !leave.needs_model() => return Ok(None),
            Models::Unread => {
                return Err(leave
                    .no_model("does not say its model where that can be checked")
                    .into());
            }
            Models::Json(_) if head.encoded => {
                let sentence = "adit: which model a request with a compressed body names can't be checked: send it uncompressed";
                return Err(Refused::new(400, Refusal::Malformed, sentence).into());
            }
            Models::Json(keys) => keys,
        };
        self.read(head, body, content, running).await?;
        let text = if head.body == BodyLength::Chunked { &content.text } else { &content.raw };
        let models = model::named(text, keys)
            .map_err(|e| Refused::new(400, Refusal::Malformed, format!("adit: {e}")))?;
        if models.is_empty() && leave.needs_model() {
            return Err(leave.no_model("names none").into());
        }
        Ok(Some(models))
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
            let gone = |_| Stop::Over(common::transport::splice::End::Aborted.into());
            running.outgoing.bytes += response::CONTINUE.len() as u64;
            self.send.write_all(response::CONTINUE).await.map_err(gone)?;
        }
        let chunked = head.body == BodyLength::Chunked;
        while !body.is_over() {
            let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
            let count = self.inbox.next(&mut chunks).await.map_err(|end| Stop::Over(end.into()))?;
            if count == 0 {
                let sentence = "adit: the application ended in the middle of its request";
                return Err(Refused::new(400, Refusal::Malformed, sentence).into());
            }
            for at in 0..count {
                let text = &mut content.text;
                let taken = body.follow(&chunks[at], |bytes| {
                    if chunked {
                        text.extend_from_slice(bytes)
                    }
                });
                let taken = taken?;
                content.raw.extend_from_slice(&chunks[at][..taken]);
                content.has_room()?;
                if taken < chunks[at].len() {
                    self.inbox.keep_behind(&mut chunks[at..count], taken);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits for something while the application may go. One that half-closes gives up what would
    /// take long, as it does with Ollama.
    async fn meanwhile<T>(
        &mut self,
        class: RouteClass,
        work: impl Future<Output = T>,
    ) -> Result<T, Stop> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => Ok(done),
            end = self.inbox.watch(WAITING) => match end {
                // Or it ends behind its next request.
                DownEnd::Finished if !class.needs_gpu() || self.inbox.has_more() => Ok(work.await),
                end => Err(Stop::Over(end.into())),
            },
        }
    }
}

impl End {
    fn of(over: &Over) -> Self {
        match over {
            Over::Ended { end: common::transport::splice::End::Reset(code), .. }
                if code.into_inner() == u64::from(proto::wire::Code::Aborted as u32) =>
            {
                Self::Cancelled
            }
            _ => Self::Cut,
        }
    }
}

impl Content<'_> {
    /// Takes room for what has been read.
    fn has_room(&mut self) -> Result<(), Refused> {
        if self.raw.len() > MOST_BODY {
            let sentence = format!(
                "adit: the body is longer than {}, and it has to be read before it may pass",
                proto::human::size(MOST_BODY as u64)
            );
            return Err(Refused::new(413, Refusal::Limit("body"), sentence));
        }
        self.room.grow(self.raw.len() + self.text.len()).map_err(|Full| {
            let sentence =
                "adit: the server is reading too many long requests at once: try again in a moment";
            let mut refused = Refused::new(503, Refusal::Limit("room"), sentence);
            refused.answer.retry_after = Some(1);
            refused
        })
    }
}
