//! Decides whether a request may pass. Checks in this order: certificate or key, Host, route, model,
//! `authorize`, limits. Checks again when the rules change.

mod again;
mod proof;
mod reading;

use std::sync::Arc;

use bytes::Bytes;
use common::transport::splice::DownEnd;
use proto::{
    http1::{credentials::bearer_token, framing::Body, head::RequestHead, response::AddedFields},
    identity::Name,
    ollama::{
        host,
        route::{ApiRoute, Models, RouteClass, Target, is_repeatable, route},
    },
};

use self::reading::UNREAD;
use super::{
    Gate, StreamContext,
    carry::Hold,
    connection::{Conversation, Over},
    exchange::{ForwardedRequest, TurnPoint},
    read_ahead::WAITING,
    refused::Refused,
    running::RunningRequest,
    service::ServiceConnection,
    this_machine::ThisMachine,
};
use crate::{
    jwt::TokenHolder,
    policy::{
        Denied, RequestPermit, RoutePermit,
        authorize::{At, Authority, AuthorizeError, Fields, Grant, How, Question},
        roles::RequestedRoute,
    },
    record::{CallerKind, End, PermittedRequest, Refusal, ThrottlePermit},
};

/// A request that may pass, and what that depends on.
pub(super) struct Judged {
    head: RequestHead,
    route: ApiRoute,
    models: Option<Vec<String>>,
    request_permit: RequestPermit,
    /// The head as it was sent.
    raw_head: Bytes,
    /// The caller's own role when `authority` was asked.
    own_role: Name,
    /// The service that has allowed it, too, and what it has granted.
    authority: Option<Arc<Authority>>,
    grant: Arc<Grant>,
    /// The holder of the token that it brought in a tunnel.
    narrowed: Option<TokenHolder>,
}

/// A request that may pass, with everything that carries it.
pub(super) struct Judgement<'a> {
    pub(super) request: ForwardedRequest,
    pub(super) judged: Judged,
    pub(super) hold: Hold,
    pub(super) running: RunningRequest<'a>,
}

enum Stop {
    Refused(Refused),
    Over(Over),
}

impl<T: Into<Refused>> From<T> for Stop {
    fn from(refused: T) -> Self {
        Self::Refused(refused.into())
    }
}

fn question(
    head: &RequestHead,
    context: &StreamContext<'_>,
    own_role: &Name,
    models: Option<Vec<String>>,
    fields: Fields,
) -> Question {
    let models = models.unwrap_or_default();
    Question {
        at: At::Request,
        device: context.asker.name.clone(),
        device_id: Some(context.asker.id),
        device_uid: context.asker.uid,
        enrolled: How::of(&context.asker),
        key: context.asker.kind == CallerKind::Key,
        token: context.asker.kind == CallerKind::Token,
        user: context.asker.user.clone(),
        role: own_role.clone(),
        service: Some(context.service.clone()),
        method: Some(head.method.clone()),
        path: Some(Target::new(&head.target).path.into()),
        uri: Some(head.target.clone()),
        model: models.first().cloned(),
        models,
        fields,
    }
}

/// What a request asks for, of the service of its stream.
fn requested_route<'a>(
    gate: &Gate,
    context: &'a StreamContext<'_>,
    head: &'a RequestHead,
    route: ApiRoute,
) -> RequestedRoute<'a> {
    RequestedRoute {
        method: &head.method,
        preflight: head.preflight.as_deref(),
        target: Target::new(&head.target),
        route,
        service: context.service,
        api: gate.policy.api(context.service),
    }
}

/// A request as far as it had to be read.
struct Content {
    /// Length of the head in bytes.
    head: usize,
    /// The body, as it was received.
    raw: Vec<u8>,
    /// The rest of the body.
    body: Body,
    /// The most bytes that the body may have.
    most: Option<u64>,
}

impl Gate {
    /// The checks that need only the head. The inner error is a lack of the caller's own role:
    /// `authorize` may grant another.
    pub(super) fn route_permit(
        &self,
        context: &StreamContext<'_>,
        narrowed: Option<&TokenHolder>,
        head: &RequestHead,
        route: ApiRoute,
    ) -> Result<Result<RoutePermit, Denied>, Refused> {
        context.is_in_time(&self.policy, narrowed)?;
        self.throttle.arrive(&context.asker, &self.policy.role(context.caller))?;
        if !host::allows(&head.host, &ThisMachine) {
            let sentence = format!(
                "adit: this is not `{}`: Ollama answers to localhost, to private addresses and to the server's own name",
                head.host.chars().take(100).collect::<String>()
            );
            return Err(Refused::new(403, Refusal::Host, sentence));
        }
        let requested = requested_route(self, context, head, route);
        match self.policy.route(context.caller, narrowed, requested, &Grant::default()) {
            Err(denied) if !matches!(denied, Denied::Role { .. } | Denied::Service { .. }) => {
                Err(denied.into())
            }
            judged => Ok(judged),
        }
    }
}

impl<'a> Conversation<'a> {
    /// Decides about a request. An error ends the connection; the application was told why.
    pub(super) async fn judge(
        &mut self,
        head: RequestHead,
        bytes: Bytes,
    ) -> Result<Judgement<'a>, Over> {
        // Every later change of the rules concerns this request.
        self.changes.mark_unchanged();
        let api = self.gate.policy.api(self.context.service);
        let route = route(api, &head.method, Target::new(&head.target));
        let mut running = self.gate.begin(self.context, Some((&head, route)));
        let mut content =
            Content { head: bytes.len(), raw: Vec::new(), body: Body::new(head.body), most: None };
        match self.admit((head, bytes.clone()), route, &mut content, &mut running).await {
            Ok((judged, ticket)) => {
                let begun = [bytes, content.raw.into()];
                let request = ForwardedRequest {
                    begun: begun.into_iter().filter(|bytes| !bytes.is_empty()).collect(),
                    body: content.body,
                    most_body: ticket.most_body,
                    added: self.added(ticket.tells_queue && ticket.turn.is_some()),
                    turn: match &ticket.turn {
                        None => TurnPoint::None,
                        Some(_) if ticket.waits => TurnPoint::Whole,
                        Some(_) => TurnPoint::First,
                    },
                    ends_with_device: matches!(
                        route.class,
                        RouteClass::Generate | RouteClass::Embed | RouteClass::Models
                    ),
                    may_repeat: self.service.as_ref().is_some_and(|service| service.has_answered)
                        && is_repeatable(&judged.head.method, &judged.head.target),
                };
                let ThrottlePermit { turn, limit, held, account, .. } = ticket;
                running.outgoing.account = account;
                running.let_pass();
                let hold = Hold { turn, held: None, _ticket: held, limit };
                Ok(Judgement { request, judged, hold, running })
            }
            Err(stop) => {
                running.incoming.bytes = (bytes.len() + content.raw.len()) as u64;
                Err(self.stop(stop, running, &bytes).await)
            }
        }
    }

    /// The fields that are added to the answer, if there are any.
    fn added(&self, tells_queue: bool) -> Option<AddedFields> {
        let mut added = AddedFields::default();
        for (name, value) in self.context.added {
            added.add(name, value);
        }
        (tells_queue || !self.context.added.is_empty()).then_some(added)
    }

    /// Records a request that does not pass; the application is told why. `line` is its beginning.
    async fn stop(&mut self, stop: Stop, running: RunningRequest<'a>, line: &[u8]) -> Over {
        match stop {
            Stop::Refused(refused) => self.refuse(running, line, refused).await,
            Stop::Over(over) => {
                let end = if self.device.ahead.finished { End::Cancelled } else { End::of(&over) };
                running.ended(end, None);
                over
            }
        }
    }

    /// Opens another connection to the service, for a request that is sent again. It has `held`
    /// bytes, the first of them in `line`. The request is given back if it may still pass.
    pub(super) async fn reach_again(
        &mut self,
        judged: &mut Judged,
        running: RunningRequest<'a>,
        line: &[u8],
        held: usize,
    ) -> Result<RunningRequest<'a>, Over> {
        tracing::debug!("the service had closed the connection: the request is sent on a new one");
        self.service = None;
        match self.pass(judged, held).await {
            Ok(()) => Ok(running),
            Err(stop) => Err(self.stop(stop, running, line).await),
        }
    }

    /// Reaches the service, and makes sure that the request may still pass then. It has `held` bytes.
    async fn pass(&mut self, judged: &mut Judged, held: usize) -> Result<(), Stop> {
        self.again(judged, held).await?;
        self.reach(held, judged.route.class).await?;
        // The rules may have changed while the connection was awaited.
        self.again(judged, held).await?;
        self.context.is_in_time(&self.gate.policy, judged.narrowed.as_ref())?;
        if (self.context.is_closed)() {
            return Err(Stop::Over(common::transport::splice::SpliceEnd::Aborted.into()));
        }
        Ok(())
    }

    /// The holder of the token that a request brings in a tunnel, if tokens count there.
    async fn narrowed(
        &mut self,
        bytes: &[u8],
        class: RouteClass,
    ) -> Result<Option<TokenHolder>, Stop> {
        let tokens = self.gate.policy.narrowing_tokens();
        let Some((tokens, token)) = tokens.zip(bearer_token(bytes)) else { return Ok(None) };
        let judged = Box::pin(tokens.judge(token.reveal()));
        let judged = self.meanwhile(bytes.len(), class, judged).await?;
        Ok(Some(judged.map_err(Denied::from)?))
    }

    async fn admit(
        &mut self,
        (head, raw_head): (RequestHead, Bytes),
        route: ApiRoute,
        content: &mut Content,
        running: &mut RunningRequest<'_>,
    ) -> Result<(Judged, ThrottlePermit), Stop> {
        self.take_memory(content.head, route.class).await?;
        let authority = self.gate.authority().filter(|authority| authority.is_asked(At::Request));
        let narrowed = self.narrowed(&raw_head, route.class).await?;
        let own = self.gate.route_permit(self.context, narrowed.as_ref(), &head, route)?;
        if authority.is_none()
            && let Err(denied) = own
        {
            return Err(denied.into());
        }
        let own_role = self.gate.policy.role(self.context.caller);
        content.most = self.gate.throttle.body(&self.context.asker, &own_role, head.body)?;
        let own_permit = own.as_ref().ok();
        let is_read = authority.is_some() || own_permit.is_some_and(RoutePermit::needs_model);
        let models = if is_read {
            self.models(own_permit, &head, route, content, running).await?
        } else {
            None
        };
        running.set_model(
            models
                .as_ref()
                .filter(|models| !models.is_empty())
                .map(|models| models.join(", ").into()),
        );
        let mut grant = Arc::<Grant>::default();
        if let Some(authority) = &authority {
            let fields = authority.fields(&raw_head);
            let question = question(&head, self.context, &own_role, models.clone(), fields);
            // In a box: a question over HTTPS has a large future, and few servers ask one.
            let asked = Box::pin(authority.ask(question));
            let asked = self.meanwhile(content.len(), route.class, asked).await?;
            grant = match (asked, &own) {
                // Without an answer, no other role is granted.
                (Err(AuthorizeError::Failed(_)), Err(denied)) => return Err(denied.clone().into()),
                (asked, _) => asked?,
            };
        }
        let route_permit = match own {
            Ok(own) if authority.is_none() => Ok(own),
            _ => {
                let requested = requested_route(self.gate, self.context, &head, route);
                self.gate.policy.route(self.context.caller, narrowed.as_ref(), requested, &grant)
            }
        };
        if let Err(Denied::Granted { role }) = &route_permit {
            tracing::warn!(
                "`authorize` grants the role `{role}`, which the configuration does not have: requests are refused"
            );
        }
        let route_permit = route_permit?;
        if route_permit.needs_model() && route.models != Models::None {
            match &models {
                None => return Err(route_permit.no_model(UNREAD).into()),
                Some(models) if models.is_empty() => {
                    return Err(route_permit.no_model("names none").into());
                }
                Some(_) => {}
            }
        }
        let request_permit = route_permit.with_models(models.as_deref().unwrap_or_default())?;
        let mut asker = self.context.asker.clone();
        if let Some(user) = &grant.user {
            asker.user = Some(user.clone());
        }
        running.set_caller(asker.user.clone(), request_permit.role.clone());
        let asked = PermittedRequest {
            asker,
            role: request_permit.role.clone(),
            granted: grant.of_limits(),
            path: Target::new(&head.target).path.into(),
            route: route.class,
            body: head.body,
        };
        let gate = self.gate;
        let ticket =
            self.meanwhile(content.len(), route.class, gate.throttle.admit(&asked)).await??;
        content.most = ticket.most_body;
        // A request that may have to wait must be known to be whole; most bodies are followed while
        // they are forwarded.
        let is_followed = matches!(route.models, Models::Json(_)) && !head.encoded;
        if ticket.waits && !is_followed {
            while !content.body.is_over() {
                self.read(&head, route.class, content, running).await?;
            }
        }
        self.device.memory.shrink(content.len() + self.device.ahead.len());
        let mut judged = Judged {
            head,
            route,
            models,
            request_permit,
            raw_head,
            own_role,
            authority,
            grant,
            narrowed,
        };
        // The rules may have changed while the body was awaited.
        self.pass(&mut judged, content.len()).await?;
        Ok((judged, ticket))
    }

    /// Checks a request again if the rules have changed in the meantime.
    async fn again(&mut self, judged: &mut Judged, held: usize) -> Result<(), Stop> {
        let (gate, context, class) = (self.gate, self.context, judged.route.class);
        while self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            self.meanwhile(held, class, judged.again(gate, context, false)).await??;
        }
        Ok(())
    }

    /// Reuses the connection to the service if it is still good, or opens one.
    async fn reach(&mut self, held: usize, class: RouteClass) -> Result<(), Stop> {
        if self.service.as_ref().is_some_and(ServiceConnection::has_left) {
            self.service = None;
        }
        if self.service.is_none() {
            let (gate, context) = (self.gate, self.context);
            let dialled = self.meanwhile(held, class, Box::pin(gate.dial(context))).await?;
            self.service = Some(dialled.map_err(|code| Refused::unreached(context.service, code))?);
        }
        Ok(())
    }

    /// Waits for `work` while the application may go away. An application that sends FIN gives up a
    /// request that would take long, as with Ollama directly.
    async fn meanwhile<T>(
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
                // A FIN after a pipelined request gives up nothing.
                DownEnd::Finished if !class.needs_gpu() || !self.device.ahead.is_empty() => Ok(work.await),
                end => Err(Stop::Over(end.into())),
            },
        }
    }
}

impl Content {
    /// Bytes of memory that it takes.
    fn len(&self) -> usize {
        self.head + self.raw.len()
    }
}

impl End {
    pub(super) fn of(over: &Over) -> Self {
        match over {
            Over::Ended { end: common::transport::splice::SpliceEnd::Reset(code), .. }
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
