//! Whether a request may pass: asked in this order, certificate, Host, route, model, `authorize`,
//! limits; and again when the rules change.

mod reading;

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::Bytes;
use common::{machine::process::unix_now, transport::splice::DownEnd};
use proto::{
    http1::{framing::Body, head::RequestHead},
    ollama::{
        host,
        route::{Models, Route, RouteClass, Target, route},
    },
    wire::Code,
};
use tokio::sync::watch;

use super::{
    Gate, StreamContext,
    carry::Hold,
    connection::{Conversation, Over},
    exchange::{Request, Turn},
    read_ahead::WAITING,
    refused::Refused,
    running::Running,
    service::Service,
    this_machine::ThisMachine,
};
use crate::{
    policy::{
        Denied, RequestPermit, RoutePermit,
        authorize::{At, Authority, Question},
        roles::RequestedRoute,
    },
    record::{End, PermittedRequest, Refusal, Ticket},
};

/// A request that may pass, and what that depends on.
pub(super) struct Judged {
    head: RequestHead,
    route: Route,
    models: Option<Vec<String>>,
    pass: RequestPermit,
    /// Who else has said so.
    authority: Option<Arc<Authority>>,
}

/// A request that may pass, with all that carries it.
pub(super) struct Judgement<'a> {
    pub(super) request: Request,
    pub(super) judged: Judged,
    pub(super) hold: Hold,
    pub(super) running: Running<'a>,
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
        line: &StreamContext<'_>,
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

    async fn again(&mut self, gate: &Gate, line: &StreamContext<'_>) -> Result<(), Refused> {
        const BEFORE: &str = "began before this rule was in force";
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
    line: &StreamContext<'_>,
    pass: &RequestPermit,
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

fn wish(head: &RequestHead, route: Route) -> RequestedRoute<'_> {
    RequestedRoute {
        method: &head.method,
        preflight: head.preflight.as_deref(),
        target: Target::new(&head.target),
        route,
    }
}

/// A request as far as it had to be read.
struct Content {
    /// The bytes of its head.
    head: usize,
    /// The bytes of its body, as they came.
    raw: Vec<u8>,
    /// The rest of it.
    body: Body,
    /// The most that it may have.
    most: Option<u64>,
}

impl StreamContext<'_> {
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
        line: &StreamContext<'_>,
        head: &RequestHead,
        route: Route,
    ) -> Result<RoutePermit, Refused> {
        line.is_in_time()?;
        self.throttle.arrive(&line.asker, &self.policy.role(line.certificate))?;
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
    /// Judges a request. An error is the end of the connection; the application has been told why.
    pub(super) async fn judge(
        &mut self,
        head: RequestHead,
        bytes: Bytes,
    ) -> Result<Judgement<'a>, Over> {
        // Whatever changes from now on is about this request.
        self.changes.mark_unchanged();
        let route = route(&head.method, Target::new(&head.target));
        let mut running = self.gate.begin(self.line, Some((&head, route)));
        let mut content =
            Content { head: bytes.len(), raw: Vec::new(), body: Body::new(head.body), most: None };
        match self.admit(head, route, &mut content, &mut running).await {
            Ok((judged, ticket)) => {
                let begun = [bytes, content.raw.into()];
                let request = Request {
                    begun: begun.into_iter().filter(|bytes| !bytes.is_empty()).collect(),
                    body: content.body,
                    most_body: ticket.most_body,
                    turn: match &ticket.turn {
                        None => Turn::None,
                        Some(_) if ticket.waits => Turn::Whole,
                        Some(_) => Turn::First,
                    },
                    ends_with_device: matches!(
                        route.class,
                        RouteClass::Generate | RouteClass::Embed | RouteClass::Models
                    ),
                };
                let Ticket { turn, limit, held, account, .. } = ticket;
                running.outgoing.account = account;
                let hold = Hold { turn, held: None, _ticket: held, limit };
                Ok(Judgement { request, judged, hold, running })
            }
            Err(Stop::Refused(refused)) => {
                running.incoming.bytes = (bytes.len() + content.raw.len()) as u64;
                Err(self.refuse(running, &bytes, refused).await)
            }
            Err(Stop::Over(over)) => {
                running.incoming.bytes = (bytes.len() + content.raw.len()) as u64;
                running.ended(
                    if self.device.ahead.finished { End::Cancelled } else { End::of(&over) },
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
        content: &mut Content,
        running: &mut Running<'_>,
    ) -> Result<(Judged, Ticket), Stop> {
        self.has_room(content.head, route.class).await?;
        let leave = self.gate.leave(self.line, &head, route)?;
        content.most = self.gate.throttle.body(&self.line.asker, leave.role(), head.body)?;
        let authority = self.gate.authority().filter(|authority| authority.is_asked(At::Request));
        let is_read = leave.needs_model() || authority.is_some();
        let models =
            if is_read { self.models(&leave, &head, route, content, running).await? } else { None };
        running.set_model(
            models
                .as_ref()
                .filter(|models| !models.is_empty())
                .map(|models| models.join(", ").into()),
        );
        let pass = leave.with_models(models.as_deref().unwrap_or_default())?;
        if let Some(authority) = &authority {
            let question = question(&head, self.line, &pass, models.clone());
            self.meanwhile(content, route.class, authority.ask(question)).await??;
        }
        let asked = PermittedRequest {
            asker: self.line.asker.clone(),
            role: pass.role.clone(),
            method: head.method.clone(),
            path: Target::new(&head.target).path.into(),
            route: route.class,
            model: running.model(),
            body: head.body,
        };
        let gate = self.gate;
        let ticket = self.meanwhile(content, route.class, gate.throttle.admit(&asked)).await??;
        // What may have to wait has to be known to be whole; most is followed as it passes.
        let is_followed = matches!(route.models, Models::Json(_)) && !head.encoded;
        if ticket.waits && !is_followed {
            while !content.body.is_over() {
                self.read(&head, route.class, content, running).await?;
            }
        }
        self.device.room.shrink(content.len() + self.device.ahead.len());
        let mut judged = Judged { head, route, models, pass, authority };
        // Its body may have been long in coming, and the service, too.
        self.again(&mut judged, content).await?;
        self.reach(content, route.class).await?;
        self.again(&mut judged, content).await?;
        self.line.is_in_time()?;
        if (self.line.is_closed)() {
            return Err(Stop::Over(common::transport::splice::End::Aborted.into()));
        }
        Ok((judged, ticket))
    }

    /// Judges a request again if the rules have changed meanwhile.
    async fn again(&mut self, judged: &mut Judged, content: &Content) -> Result<(), Stop> {
        let (gate, line, class) = (self.gate, self.line, judged.route.class);
        while self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            self.meanwhile(content, class, judged.again(gate, line)).await??;
        }
        Ok(())
    }

    /// A connection to the service: the one there is, if that is still good, or a new one.
    async fn reach(&mut self, content: &Content, class: RouteClass) -> Result<(), Stop> {
        if self.service.as_mut().is_some_and(Service::has_left) {
            self.service = None;
        }
        if self.service.is_none() {
            let (gate, line) = (self.gate, self.line);
            self.service = Some(self.meanwhile(content, class, gate.dial(line)).await??);
        }
        Ok(())
    }

    /// Waits for something while the application may go. One that half-closes gives up what would
    /// take long, as it does with Ollama.
    async fn meanwhile<T>(
        &mut self,
        content: &Content,
        class: RouteClass,
        work: impl Future<Output = T>,
    ) -> Result<T, Stop> {
        self.meanwhile_of(content.len(), class, work).await
    }

    async fn meanwhile_of<T>(
        &mut self,
        held: usize,
        class: RouteClass,
        work: impl Future<Output = T>,
    ) -> Result<T, Stop> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => Ok(done),
            end = self.device.watch(held, WAITING) => match end {
                // Or it ends behind its next request.
                DownEnd::Finished if !class.needs_gpu() || !self.device.ahead.is_empty() => Ok(work.await),
                end => Err(Stop::Over(end.into())),
            },
        }
    }
}

impl Content {
    /// The memory that it takes.
    fn len(&self) -> usize {
        self.head + self.raw.len()
    }
}

impl End {
    pub(super) fn of(over: &Over) -> Self {
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

#[cfg(test)]
mod tests;
