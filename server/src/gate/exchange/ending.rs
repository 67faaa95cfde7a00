//! How an exchange ends, and how it is recorded.

use proto::{http1::response::Insert, wire::Code};

use super::{Actions, Answering, Ending, Exchange, How};
use crate::{
    gate::refused::Refused,
    record::{self, Refusal},
};

impl Exchange<'_> {
    pub(super) fn refuse(&mut self, refused: Refused, actions: &mut Actions) {
        let is_ours = matches!(refused.why, Refusal::Malformed | Refusal::Limit(_));
        actions.end = Some(match is_ours {
            _ if self.is_free() => Ending::Tell(refused),
            true => Ending::Cut(Code::Aborted, record::End::Refused(refused.why)),
            false => Ending::Cut(Code::Denied, record::End::Cut),
        });
    }

    /// Whether another answer can still be sent: only whole interim responses have come so far.
    fn is_free(&self) -> bool {
        self.answer.is_between_heads()
            && !self.delivering
            && matches!(self.answering, Answering::Open)
    }

    /// Ends the answer at a limit, as soon as a last line can be added to it.
    pub(super) fn end_at_limit(&mut self, actions: &mut Actions) {
        if self.answering != Answering::Open || self.delivering {
            return;
        }
        let Some((line, refused)) = self.limit.take() else { return };
        if self.is_free() {
            return self.refuse(refused, actions);
        }
        let end = record::End::Refused(refused.why);
        actions.end = match self.answer.can_insert() {
            Insert::Chunk => {
                let mut last = format!("{:x}\r\n", line.len()).into_bytes();
                last.extend_from_slice(&line);
                last.extend_from_slice(b"\r\n0\r\n\r\n");
                Some(Ending::Last(last, end))
            }
            Insert::Plain => Some(Ending::Last(line, end)),
            Insert::Never => Some(Ending::Cut(Code::Aborted, end)),
            Insert::Later => {
                self.limit = Some((line, refused));
                None
            }
        };
    }

    pub(super) fn close(&mut self, how: How, actions: &mut Actions) {
        let end = match how {
            _ if self.answer.is_complete() => self.complete(),
            How::Aborted if self.service_left => record::End::Cut,
            _ if self.service_left && self.answer.is_whole_at_close() => record::End::Done,
            _ if self.service_left => record::End::Cut,
            How::Reset(code) if code == u64::from(Code::Aborted as u32) => record::End::Cancelled,
            How::Reset(_) | How::Lost => record::End::Cut,
            How::Stopped => record::End::Cancelled,
            _ if self.answering == Answering::Stopped || self.ahead.finished => {
                record::End::Cancelled
            }
            _ => record::End::Cut,
        };
        actions.end = Some(Ending::Close(how, end));
    }

    /// How an answer with complete framing ended. Ollama also completes the framing of an answer
    /// that it broke off because the application had gone.
    pub(super) fn complete(&self) -> record::End {
        let broken_off = self.given_up && self.ends_with_device && !self.answer.says_done();
        if broken_off { record::End::Cancelled } else { record::End::Done }
    }
}

/// The refusal of a request whose body turned out to be too long.
pub(in crate::gate) fn too_long(most: u64) -> Refused {
    Refused::new(
        413,
        Refusal::Limit("body"),
        format!("adit: the request's body is longer than {}", proto::human::size(most)),
    )
}
