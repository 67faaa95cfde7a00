//! Judges a request that runs once more: the rules have changed, or time has passed.

use std::{sync::Arc, time::Duration};

use proto::{identity::Name, ollama::route::Models};
use tokio::sync::watch;

use super::{Judged, question, requested_route};
use crate::{
    gate::{Gate, StreamContext, refused::Refused},
    policy::authorize::{At, Authority, Question},
    record::Refusal,
};

impl Judged {
    /// Ends when the request may not pass any more: the rules have changed, its key or its token has
    /// ended, or `authorize` answers no when it is asked again. While `authorize` cannot be asked, the request goes on.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(in crate::gate) async fn overruled(
        &mut self,
        gate: &Gate,
        context: &StreamContext<'_>,
        mut changes: watch::Receiver<()>,
    ) -> Refused {
        loop {
            let recheck = gate.authority().and_then(|authority| authority.recheck());
            let narrowed = self.narrowed.as_ref();
            let judged = tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => self.again(gate, context, false).await,
                    // The gate was dropped: nothing can change any more.
                    Err(_) => return std::future::pending().await,
                },
                () = after(recheck) => self.again(gate, context, true).await,
                denied = context.out_of_time(&gate.policy, narrowed) => Err(denied.into()),
            };
            match judged {
                Err(refused) if refused.why != Refusal::AuthorizeFailed => return refused,
                Err(_) => tracing::warn!("a request that runs goes on until `authorize` answers"),
                Ok(()) => {}
            }
        }
    }

    /// The rules have changed, or (`is_time`) `authorize` is to be asked again in any case.
    pub(super) async fn again(
        &mut self,
        gate: &Gate,
        context: &StreamContext<'_>,
        is_time: bool,
    ) -> Result<(), Refused> {
        let authority = gate.authority().filter(|authority| authority.is_asked(At::Request));
        let own_role = gate.policy.role(context.caller);
        // An unchanged question is not asked again: its answer was about the whole request.
        let is_same = match (&authority, &self.authority) {
            (Some(now), Some(asked)) => Arc::ptr_eq(now, asked) && own_role == self.own_role,
            (None, _) => true,
            (Some(_), None) => false,
        };
        if authority.is_none() {
            self.grant = Arc::default();
        }
        if (is_time || !is_same)
            && let Some(authority) = &authority
        {
            // What is revoked is not asked about.
            gate.policy.admit_caller(context.caller)?;
            if self.models.is_none() && self.route.models != Models::None {
                let sentence = format!(
                    "adit: this request {BEFORE}: `authorize` can't be asked without its model"
                );
                return Err(Refused::new(403, Refusal::Authorize, sentence));
            }
            let question = self.question(context, authority, &own_role);
            self.grant = Box::pin(authority.ask(question)).await?;
        }
        self.permit(gate, context)?;
        (self.own_role, self.authority) = (own_role, authority);
        Ok(())
    }

    /// Judges the request by the rules in force and what `authorize` has granted.
    fn permit(&mut self, gate: &Gate, context: &StreamContext<'_>) -> Result<(), Refused> {
        let requested = requested_route(gate, context, &self.head, self.route);
        let route_permit =
            gate.policy.route(context.caller, self.narrowed.as_ref(), requested, &self.grant)?;
        let is_unknown = self.models.is_none() && self.route.models != Models::None;
        if is_unknown && route_permit.needs_model() {
            return Err(route_permit.no_model(BEFORE).into());
        }
        self.request_permit =
            route_permit.with_models(self.models.as_deref().unwrap_or_default())?;
        Ok(())
    }

    fn question(
        &self,
        context: &StreamContext<'_>,
        authority: &Authority,
        own_role: &Name,
    ) -> Question {
        let fields = authority.fields(&self.raw_head);
        question(&self.head, context, own_role, self.models.clone(), fields)
    }
}

/// Why a request that runs does not fit a rule: it was not read for that.
const BEFORE: &str = "began before this rule was in force";

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
