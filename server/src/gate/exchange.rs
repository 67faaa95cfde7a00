//! One request and its answer, as a state machine: events go in, actions come out. It names no
//! clock, no socket and no runtime; `carry.rs` drives it.
//!
//! A request goes through these states: it waits in the queue ([`Asking::Queued`]), its body is
//! forwarded ([`Asking::Body`]), its last part is kept back until it has its turn
//! ([`Asking::Held`]), it has been forwarded whole ([`Asking::Sent`]). Its answer is delivered at
//! the same time, and may come early.

mod again;
mod ending;
mod kept;
mod terms;

use bytes::Bytes;
use proto::http1::{
    framing::Body,
    response::{AddedFields, Tracker},
};

pub(super) use self::ending::too_long;
pub(super) use self::terms::{
    Actions, BATCH, Deliver, DeviceRead, Ending, ExchangeEvent, ForwardedRequest, How, QueueChange,
    TurnPoint, Wants,
};
use self::{again::Sent, kept::HeldBack};
use super::{
    read_ahead::{BEHIND, ReadAhead, WAITING},
    refused::Refused,
    running::Incoming,
};
use crate::record::{QueueWait, RequestProgress};

/// The state of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// It waits for its turn before any of it is forwarded.
    Queued,
    /// Its body is forwarded.
    Body,
    /// It is whole, and its last part waits for its turn.
    Held,
    /// All of it was forwarded.
    Sent,
    /// The device's FIN was passed on; `whole` if the request had been forwarded whole.
    Ended { whole: bool },
}

/// The state of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answering {
    /// It is delivered, or has not begun.
    Open,
    /// All of it was delivered.
    Whole,
    /// The service's FIN was passed on.
    Closed,
    /// The device does not accept more of it.
    Stopped,
    Lost,
}

/// The state machine.
pub(super) struct Exchange<'r> {
    incoming: &'r mut Incoming,
    answer: &'r mut Tracker,
    /// A field that is added to the answer.
    added: Option<AddedFields>,
    ahead: &'r mut ReadAhead,
    begun: Vec<Bytes>,
    body: Body,
    most_body: u64,
    turn: TurnPoint,
    ends_with_device: bool,
    kept: HeldBack,
    sent: Sent,
    asking: Asking,
    answering: Answering,
    /// Bytes to forward, or to deliver, have not been written yet.
    forwarding: bool,
    delivering: bool,
    /// The device's FIN was read in this state, in which it changes nothing.
    end_heard: bool,
    /// The device's FIN was passed on before the answer was whole.
    given_up: bool,
    /// The service closed the connection before the device did.
    service_left: bool,
    draining: bool,
    limit: Option<(Vec<u8>, Refused)>,
}

impl<'r> Exchange<'r> {
    /// The machine for one request, and its first actions.
    pub(super) fn start(
        request: ForwardedRequest,
        incoming: &'r mut Incoming,
        answer: &'r mut Tracker,
        ahead: &'r mut ReadAhead,
    ) -> (Self, Actions) {
        let ForwardedRequest { begun, body, most_body, turn, added, ends_with_device, may_repeat } =
            request;
        let mut exchange = Self {
            incoming,
            answer,
            added,
            ahead,
            begun,
            body,
            most_body: most_body.unwrap_or(u64::MAX),
            turn,
            ends_with_device,
            kept: HeldBack::default(),
            sent: Sent::new(may_repeat),
            asking: Asking::Body,
            answering: Answering::Open,
            forwarding: false,
            delivering: false,
            end_heard: false,
            given_up: false,
            service_left: false,
            draining: false,
            limit: None,
        };
        let mut actions = Actions::default();
        if turn == TurnPoint::First {
            exchange.step(Asking::Queued, &mut actions);
        } else {
            exchange.pump(&mut actions);
        }
        exchange.conclude(&mut actions);
        (exchange, actions)
    }

    /// The actions that follow from an event.
    pub(super) fn on(&mut self, event: ExchangeEvent<'_>) -> Actions {
        let mut actions = Actions::default();
        let now = &mut actions;
        match event {
            ExchangeEvent::Device(chunks) if self.asking == Asking::Body => {
                let batch = std::mem::take(chunks);
                self.take(batch, 0, now);
                self.pump(now);
            }
            ExchangeEvent::Device(chunks) => {
                chunks.drain(..).for_each(|chunk| self.ahead.push(chunk))
            }
            ExchangeEvent::DeviceEnded => self.device_ended(now),
            ExchangeEvent::DeviceReset(code) => self.close(How::Reset(code), now),
            ExchangeEvent::DeviceLost => self.close(How::Lost, now),
            ExchangeEvent::AnswerRefused => self.answering = Answering::Stopped,
            ExchangeEvent::AnswerLost => self.answering = Answering::Lost,
            ExchangeEvent::Forwarded => {
                self.forwarding = false;
                self.pump(now);
            }
            ExchangeEvent::Delivered => self.delivered(now),
            ExchangeEvent::Service(bytes) => self.service(bytes, now),
            ExchangeEvent::ServiceEnded => self.service_ended(now),
            ExchangeEvent::ServiceReset => self.service_reset(now),
            ExchangeEvent::ServiceRefused if self.is_sent_again() => now.again = true,
            ExchangeEvent::ServiceRefused => self.close(How::Aborted, now),
            ExchangeEvent::Turn(Ok(wait)) => {
                self.tell(wait);
                self.go_on(now);
            }
            ExchangeEvent::Turn(Err(not_now)) => self.refuse(not_now.into(), now),
            ExchangeEvent::Overruled(refused) => self.refuse(refused, now),
            ExchangeEvent::Limit { line, refused } => {
                self.limit = Some((line, refused));
                self.end_at_limit(now);
            }
            ExchangeEvent::Draining => self.draining = true,
        }
        self.conclude(now);
        actions
    }

    /// The events that the machine waits for.
    pub(super) fn wants(&self) -> Wants {
        let open = matches!(self.answering, Answering::Open | Answering::Whole);
        Wants {
            service: open && !self.delivering,
            device_takes: open,
            device: self.wants_of_device(),
            turn: matches!(self.asking, Asking::Queued | Asking::Held),
        }
    }

    /// The answer's status, once it has come.
    pub(super) fn status(&self) -> Option<u16> {
        self.answer.status()
    }

    /// Whether the service has all that it needs to begin.
    pub(super) fn is_at_work(&self) -> bool {
        let waits = self.forwarding || self.turn != TurnPoint::None || !self.begun.is_empty();
        !waits && (self.body.is_over() || self.incoming.is_whole())
    }

    /// What was seen of the prompt and of the answer.
    pub(super) fn seen(&self) -> RequestProgress {
        let (prompt, is_stream) = self.incoming.prompt();
        RequestProgress { prompt, pieces: self.answer.pieces(), is_stream }
    }

    /// How many bytes are in memory: they were read ahead, or may have to be sent again.
    pub(super) fn held(&self) -> usize {
        self.ahead.len() + self.sent.len()
    }

    /// Whether the service closed the connection before the device did.
    pub(super) fn service_left(&self) -> bool {
        self.service_left
    }

    fn wants_of_device(&self) -> DeviceRead {
        let most = match self.asking {
            Asking::Ended { .. } => return DeviceRead::Nothing,
            _ if self.forwarding => return DeviceRead::Reset,
            Asking::Body => return DeviceRead::Read,
            _ if self.end_heard => return DeviceRead::Nothing,
            Asking::Queued | Asking::Held => WAITING,
            Asking::Sent => BEHIND,
        };
        match most.checked_sub(self.ahead.len()) {
            // The FIN after these bytes is still to be read.
            _ if self.ahead.finished => DeviceRead::Read,
            Some(more @ 1..) => DeviceRead::Ahead(more),
            _ => DeviceRead::Loss,
        }
    }

    fn step(&mut self, to: Asking, actions: &mut Actions) {
        self.asking = to;
        self.end_heard = false;
        if matches!(to, Asking::Queued | Asking::Held) {
            actions.queue = Some(QueueChange::Join);
        }
    }

    /// Forwards the bytes that were read, as far as they may be forwarded now.
    fn pump(&mut self, actions: &mut Actions) {
        while self.asking == Asking::Body && !self.forwarding && actions.end.is_none() {
            let mut batch = std::mem::take(&mut self.begun);
            let followed = batch.len();
            // New bytes are forwarded together with those that are already there, in one write; no
            // bytes after a fault are forwarded.
            while !self.body.is_over()
                && batch.len() < BATCH
                && let Some(chunk) = self.ahead.pop()
            {
                batch.push(chunk);
            }
            match (batch.is_empty(), self.body.is_over()) {
                (true, true) => self.step(Asking::Sent, actions),
                (true, false) => return,
                _ => self.take(batch, followed, actions),
            }
        }
    }

    /// Takes a part of the request. Its first `followed` chunks have been checked.
    fn take(&mut self, mut batch: Vec<Bytes>, followed: usize, actions: &mut Actions) {
        for at in followed..batch.len() {
            let chunk = &batch[at];
            let taken = match self.body.follow(chunk, |content| self.incoming.content(content)) {
                Ok(taken) => taken,
                Err(fault) => return self.refuse(fault.into(), actions),
            };
            if taken < chunk.len() {
                let behind = batch[at].split_off(taken);
                self.ahead.put_back(std::iter::once(behind).chain(batch.drain(at + 1..)));
                break;
            }
        }
        batch.retain(|chunk| !chunk.is_empty());
        if self.incoming.content > self.most_body {
            return self.refuse(too_long(self.most_body), actions);
        }
        if let Some(refused) = self.incoming.doubt() {
            return self.refuse(refused, actions);
        }
        self.incoming.bytes += batch.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        let is_over = self.body.is_over();
        if self.turn == TurnPoint::Whole && (is_over || self.incoming.is_whole()) {
            if let Err(fault) = self.kept.add(batch) {
                return self.refuse(fault.into(), actions);
            }
            if is_over {
                self.step(Asking::Held, actions);
            }
            return;
        }
        self.forward(batch, actions);
    }

    fn forward(&mut self, batch: Vec<Bytes>, actions: &mut Actions) {
        self.forwarding = !batch.is_empty();
        self.sent.add(&batch);
        actions.forward = batch;
    }

    /// The request has its turn.
    fn go_on(&mut self, actions: &mut Actions) {
        if !matches!(self.asking, Asking::Queued | Asking::Held) {
            return;
        }
        self.turn = TurnPoint::None;
        self.step(Asking::Body, actions);
        let kept = std::mem::take(&mut self.kept).take();
        self.forward(kept, actions);
        self.pump(actions);
    }

    /// Says in the head of the answer how the request has waited.
    fn tell(&mut self, QueueWait { position, waited }: QueueWait) {
        if let Some(added) = &mut self.added {
            let waited = waited.as_secs_f64();
            added.add("X-Adit-Queue", &format!("position={position}, waited={waited:.1}"));
        }
    }

    fn device_ended(&mut self, actions: &mut Actions) {
        self.ahead.finished = true;
        match self.asking {
            Asking::Body => self.end_service(false, actions),
            // The FIN follows a pipelined request: the client still wants this answer.
            Asking::Queued | Asking::Held | Asking::Sent if !self.ahead.is_empty() => {
                self.end_heard = true;
            }
            // The client gives up, as it would with Ollama directly.
            Asking::Queued | Asking::Held => self.close(How::Drained, actions),
            Asking::Sent => self.end_service(true, actions),
            Asking::Ended { .. } => {}
        }
    }

    fn end_service(&mut self, whole: bool, actions: &mut Actions) {
        self.given_up = !self.answer.is_complete();
        self.sent.forget();
        self.step(Asking::Ended { whole }, actions);
        actions.finish_service = true;
    }

    fn service(&mut self, bytes: &[u8], actions: &mut Actions) {
        self.sent.forget();
        if self.answering == Answering::Whole {
            // The service sent more than an answer.
            return self.service_reset(actions);
        }
        let (held, rest) = self.answer.pass(bytes);
        let deliver = match self.added.as_mut().filter(|added| !added.is_over()) {
            Some(added) => {
                let mut passed = added.pass(self.answer, held);
                passed.extend(added.pass(self.answer, rest));
                Deliver { held: passed.into(), from: bytes.len() }
            }
            None => {
                self.answer.follow(held);
                self.answer.follow(rest);
                Deliver { held: Bytes::from_static(held), from: bytes.len() - rest.len() }
            }
        };
        if !(deliver.held.is_empty() && deliver.from == bytes.len()) {
            self.delivering = true;
            actions.deliver = Some(deliver);
        }
        // Release the queue slot once the service has finished, even if the device reads the tail
        // slowly.
        actions.release = self.answer.is_complete();
    }

    fn delivered(&mut self, actions: &mut Actions) {
        self.delivering = false;
        if self.answering == Answering::Open && self.answer.is_complete() {
            self.answering = Answering::Whole;
            if matches!(self.asking, Asking::Queued | Asking::Held) {
                // The answer is complete: nothing that is left of the request starts anything.
                actions.queue = Some(QueueChange::Leave);
                self.go_on(actions);
            }
        }
        self.end_at_limit(actions);
    }

    fn service_ended(&mut self, actions: &mut Actions) {
        // This event comes again when the byte is delivered.
        if self.added.as_mut().is_some_and(|added| added.take_kept().is_some()) {
            self.delivering = true;
            actions.deliver = Some(Deliver { held: Bytes::from_static(b"\r"), from: 0 });
            return;
        }
        if self.is_sent_again() {
            actions.again = true;
            return;
        }
        self.answering = Answering::Closed;
        // The service also closes if the application has gone.
        self.service_left = !matches!(self.asking, Asking::Ended { .. });
        actions.release = true;
        actions.finish_device = true;
    }

    fn service_reset(&mut self, actions: &mut Actions) {
        if self.is_sent_again() {
            actions.again = true;
            return;
        }
        if matches!(self.answering, Answering::Open | Answering::Whole) {
            self.service_left = !matches!(self.asking, Asking::Ended { .. });
        }
        self.close(How::Aborted, actions);
    }

    /// Ends the exchange if both directions have ended, or if nobody reads the answer.
    fn conclude(&mut self, actions: &mut Actions) {
        if actions.again || actions.end.is_some() {
            return;
        }
        let waits = matches!(self.asking, Asking::Queued | Asking::Held);
        let sent = matches!(self.asking, Asking::Sent | Asking::Ended { .. });
        match (self.answering, self.asking) {
            (Answering::Whole, Asking::Sent | Asking::Ended { whole: true }) => {
                actions.end = Some(Ending::Next(self.complete()));
            }
            (Answering::Closed, Asking::Ended { .. }) => self.close(How::Done, actions),
            // Keep forwarding what was received; only a request that still waits in the queue is
            // dropped.
            (Answering::Stopped, _) if sent || waits => self.close(How::Stopped, actions),
            (Answering::Lost, _) if sent || waits => self.close(How::Lost, actions),
            (Answering::Closed | Answering::Stopped | Answering::Lost, _) if self.draining => {
                self.close(How::Drained, actions);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
