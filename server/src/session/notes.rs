//! The lines of the audit log about a session and its streams.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use common::transport::splice::{ByteCounters, SpliceEnd};
use proto::{identity::Name, wire::Code};
use quinn::ConnectionError;

use super::Session;
use crate::{
    audit::{
        Event,
        entry::{SessionPeer, ms},
    },
    record::{Asker, CallerKind, CarrierKind},
    running::sessions::Earlier,
};

impl Session {
    /// How a stream ended; and why, if it did not end by itself.
    pub(super) fn end_of(&self, end: SpliceEnd) -> (&'static str, Option<&'static str>) {
        match end {
            SpliceEnd::Done => ("done", None),
            SpliceEnd::Drained => ("cut", Some(Code::ShuttingDown.as_str())),
            SpliceEnd::Aborted => ("aborted", None),
            SpliceEnd::Reset(_) | SpliceEnd::GivenUp => ("cancelled", None),
            SpliceEnd::Lost(reason) => ("cut", Some(self.why_ended(&reason))),
        }
    }

    /// Why the session has ended, in one word.
    pub(super) fn why_ended(&self, reason: &ConnectionError) -> &'static str {
        match reason {
            ConnectionError::LocallyClosed => {
                self.guard.traffic.ended().unwrap_or(Code::ShuttingDown).as_str()
            }
            ConnectionError::ApplicationClosed(close) => {
                Code::from_number(close.error_code.into_inner()).map_or("unknown", Code::as_str)
            }
            ConnectionError::TimedOut => "silent",
            ConnectionError::Reset => "reset",
            _ => Code::Protocol.as_str(),
        }
    }

    /// The device, and the address that its packets come from now.
    pub(super) fn asker(&self) -> Asker {
        let remote = self.connection.remote_address();
        // It may have another name or user since.
        let now = self.server.policy.admit(&self.peer).unwrap_or_else(|_| self.device.clone());
        Asker {
            id: now.id,
            name: now.name,
            uid: now.uid,
            kind: CallerKind::Device,
            user: now.user,
            has_signed_in: now.has_signed_in,
            remote,
            carrier: CarrierKind::of(remote),
        }
    }

    /// Notes that the session has begun.
    pub(super) fn note_begin(&self) {
        let who = SessionPeer::from(&self.asker());
        if let Some(Earlier { remote, was_alive }) = self.guard.earlier {
            self.note(Event::TakenOver { who: who.clone(), before: remote, was_alive });
        }
        self.note(Event::Connect { who });
    }

    /// Notes that the session has ended.
    pub(super) fn note_end(&self, reason: &ConnectionError, lasted: Duration) {
        let (sent, received) = self.guard.traffic.bytes();
        self.note(Event::Disconnect {
            who: SessionPeer::from(&self.asker()),
            why: self.why_ended(reason),
            bytes_in: received,
            bytes_out: sent,
            total_ms: ms(lasted),
        });
    }

    /// Notes that a stream to a `tcp` service has ended.
    pub(super) fn note_stream(
        &self,
        service: &Name,
        meter: &ByteCounters,
        lasted: Duration,
        (end, why): (&'static str, Option<&'static str>),
    ) {
        self.note(Event::Stream {
            who: SessionPeer::from(&self.asker()),
            service: service.clone(),
            bytes_in: meter.received.load(Relaxed),
            bytes_out: meter.sent.load(Relaxed),
            total_ms: ms(lasted),
            end,
            why,
        });
    }

    fn note(&self, event: Event) {
        self.server.accounting.audit.note(event);
    }
}
