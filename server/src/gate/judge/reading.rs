//! Reads as much of a request as must be known before it may pass, within the memory budget of the
//! device.

use common::transport::splice::SpliceEnd;
use proto::{
    http1::{BodyLength, head::RequestHead, response},
    ollama::route::{ApiRoute, Models, RouteClass, Target},
};

use super::{Content, Stop};
use crate::{
    gate::{
        budget::BudgetExhausted, connection::Conversation, exchange, refused::Refused,
        running::RunningRequest,
    },
    policy::RoutePermit,
    record::Refusal,
};

/// Why the models of a request are not known.
pub(super) const UNREAD: &str = "names no model that aditd can check";
/// The most bytes of a body that are read before it is forwarded, if the model is not known
/// earlier.
const MOST_BODY: usize = 48 << 20;
/// After this many bytes, memory is taken for the longest possible body. Otherwise several requests
/// could each hold a part of the memory and wait for the rest.
const FIRST: usize = 1 << 20;

impl Conversation<'_> {
    /// The models that a request names, read as Ollama will; `None` if its route takes none.
    pub(super) async fn models(
        &mut self,
        route_permit: Option<&RoutePermit>,
        head: &RequestHead,
        route: ApiRoute,
        content: &mut Content,
        running: &mut RunningRequest<'_>,
    ) -> Result<Option<Vec<String>>, Stop> {
        let needing = route_permit.filter(|permit| permit.needs_model());
        let keys = match route.models {
            Models::None => return Ok(None),
            Models::Path => return Ok(Some(vec![Target::new(&head.target).last_segment()])),
            Models::Unread => match needing {
                None => return Ok(None),
                Some(permit) => return Err(permit.no_model(UNREAD).into()),
            },
            Models::Json(_) if head.encoded => {
                let sentence = "adit: the model in a compressed body can't be checked: send the body uncompressed";
                return Err(Refused::new(400, Refusal::Malformed, sentence).into());
            }
            Models::Json(keys) => keys,
        };
        running.incoming.look_for_models(keys);
        let models = loop {
            if content.body.is_over() {
                break running.incoming.models()?;
            }
            // The rest is followed while it is forwarded.
            if let Some(models) = running.incoming.settled_models() {
                break models;
            }
            self.read(head, route.class, content, running).await?;
            if let Some(refused) = running.incoming.doubt() {
                return Err(refused.into());
            }
        };
        if let Some(permit) = needing.filter(|_| models.is_empty()) {
            return Err(permit.no_model("names none").into());
        }
        Ok(Some(models))
    }

    /// Reads more of an unfinished body.
    pub(super) async fn read(
        &mut self,
        head: &RequestHead,
        class: RouteClass,
        content: &mut Content,
        running: &mut RunningRequest<'_>,
    ) -> Result<(), Stop> {
        if head.expects_continue && content.raw.is_empty() {
            running.answer.continued();
            let gone = |_| Stop::Over(SpliceEnd::Aborted.into());
            running.outgoing.bytes += response::CONTINUE.len() as u64;
            self.send.write_all(response::CONTINUE).await.map_err(gone)?;
        }
        let mut chunks = self.device.next().await.map_err(|end| Stop::Over(end.into()))?;
        if chunks.is_empty() {
            let sentence =
                "adit: the application closed the connection in the middle of its request";
            return Err(Refused::new(400, Refusal::Malformed, sentence).into());
        }
        for at in 0..chunks.len() {
            let incoming = &mut running.incoming;
            let taken = content.body.follow(&chunks[at], |bytes| incoming.content(bytes))?;
            content.raw.extend_from_slice(&chunks[at][..taken]);
            if taken < chunks[at].len() {
                self.device.put_back(&mut chunks, at, taken);
                break;
            }
        }
        if let Some(most) = content.most.filter(|most| running.incoming.content > *most) {
            return Err(exchange::too_long(most).into());
        }
        if content.raw.len() > MOST_BODY {
            return Err(too_long_to_read().into());
        }
        let bytes = match head.body {
            _ if content.raw.len() < FIRST => content.len(),
            BodyLength::Known(length) => {
                content.head + usize::try_from(length).unwrap_or(MOST_BODY).min(MOST_BODY)
            }
            BodyLength::Chunked => content.head + MOST_BODY,
        };
        self.take_memory(bytes, class).await
    }

    /// Takes memory for `bytes` more than was read ahead; waits for it.
    pub(super) async fn take_memory(
        &mut self,
        bytes: usize,
        class: RouteClass,
    ) -> Result<(), Stop> {
        let all = bytes + self.device.ahead.len();
        if self.device.memory.try_grow(all).is_ok() {
            return Ok(());
        }
        let mut wait = self.gate.memory.share(self.context.asker.id);
        let more = all - self.device.memory.amount();
        let grown = self.meanwhile(bytes, class, wait.grow(more)).await?;
        if grown == Err(BudgetExhausted) {
            return Err(Refused::no_memory().into());
        }
        self.device.memory.join(wait);
        Ok(())
    }
}

fn too_long_to_read() -> Refused {
    let sentence = format!(
        "adit: the body is longer than {}, and it has to be read before it may pass",
        proto::human::size(MOST_BODY as u64)
    );
    Refused::new(413, Refusal::Limit("body"), sentence)
}
