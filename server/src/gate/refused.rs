//! Answers that an application gets instead of the service's.

use common::transport::splice::Sending;
use proto::{
    http1::head::Fault,
    identity::Name,
    ollama::answer::{ErrorAnswer, RETRY_SOON},
    wire::Code,
};

use crate::{
    jwt::TokenFault,
    policy::{Denied, authorize, roles::default_service},
    record::{NotNow, Refusal},
};

/// How long a refusal may take to be written before the connection is dropped.
const TOLD_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The answer for the application.
    pub answer: ErrorAnswer,
    /// The reason for the record.
    pub why: Refusal,
}

impl Refused {
    pub(crate) fn new(status: u16, why: Refusal, sentence: impl Into<String>) -> Self {
        Self { answer: ErrorAnswer::new(status, sentence), why }
    }

    /// The refusal when there is no memory to read the request.
    pub(crate) fn no_memory() -> Self {
        let sentence =
            "adit: the server is reading too many long requests at once: try again in a moment";
        let mut refused = Self::new(503, Refusal::Limit("room"), sentence);
        refused.answer.retry_after = Some(1);
        refused
    }

    /// The refusal when a service can't be reached.
    pub(super) fn unreached(service: &Name, code: Code) -> Self {
        let sentence = match code {
            _ if *service == default_service() => return code.into(),
            Code::UpstreamRefused => format!(
                "adit: the service `{service}` is not running on the server: `aditd doctor` there shows where it is looked for"
            ),
            Code::UpstreamSilent => format!(
                "adit: the service `{service}` on the server does not answer: `aditd doctor` there shows where it is looked for"
            ),
            _ => return code.into(),
        };
        let refused = Self::from(code);
        Self { answer: ErrorAnswer { sentence, ..refused.answer }, ..refused }
    }

    /// Writes the last bytes to a device, within a time limit; returns whether that succeeded.
    pub(super) async fn write(send: &mut Sending, bytes: &[u8]) -> bool {
        matches!(tokio::time::timeout(TOLD_WITHIN, send.write_all(bytes)).await, Ok(Ok(())))
    }

    /// The last line of an answer that had begun, in the format of the request that begins with
    /// `line`. Ollama reports errors in the same way.
    pub(crate) fn last_line(&self, line: &[u8]) -> Vec<u8> {
        let body = self.answer.body(line);
        match body.starts_with("{\"error\":{") {
            true => format!("data: {body}\n\n").into_bytes(),
            false => format!("{body}\n").into_bytes(),
        }
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        let status = if fault == Fault::TooLong { 431 } else { 400 };
        Self::new(status, Refusal::Malformed, format!("adit: the request {fault}"))
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        let (status, why) = match &denied {
            Denied::Device(code) => return (*code).into(),
            // As [`Code::Revoked`], in other words.
            Denied::Revoked(_) => (503, Refusal::Certificate),
            Denied::Key | Denied::User(_) => (401, Refusal::Key),
            Denied::Token(TokenFault::NoKeys) => {
                let answer =
                    ErrorAnswer::new(503, denied.to_string()).retry_after(Some(RETRY_SOON));
                return Self { answer, why: Refusal::Token };
            }
            Denied::Token(TokenFault::Group(_)) => (403, Refusal::Token),
            Denied::Token(_) | Denied::NoTokens => (401, Refusal::Token),
            Denied::Role { .. } | Denied::Service { .. } | Denied::Narrowed { .. } => {
                (403, Refusal::Role)
            }
            Denied::Model { .. } | Denied::NoModel { .. } => (403, Refusal::Model),
            Denied::Granted { .. } => (403, Refusal::Authorize),
        };
        Self::new(status, why, denied.to_string())
    }
}

impl From<authorize::AuthorizeError> for Refused {
    fn from(refusal: authorize::AuthorizeError) -> Self {
        let sentence = format!("adit: {refusal}");
        match refusal {
            authorize::AuthorizeError::No(no) => {
                let answer = ErrorAnswer::new(no.status, sentence);
                let instead = Some(no.answer.clone());
                Self { answer: ErrorAnswer { instead, ..answer }, why: Refusal::Authorize }
            }
            authorize::AuthorizeError::Failed(_) => Self {
                answer: ErrorAnswer::new(503, sentence).retry_after(RETRY_SOON),
                why: Refusal::AuthorizeFailed,
            },
        }
    }
}

impl From<NotNow> for Refused {
    fn from(not_now: NotNow) -> Self {
        let NotNow { status, retry_after, sentence, limit } = not_now;
        let answer = ErrorAnswer::new(status, sentence).retry_after(retry_after);
        Self { answer, why: Refusal::Limit(limit) }
    }
}

impl From<Code> for Refused {
    /// The refusal when the service can't be reached.
    fn from(code: Code) -> Self {
        let why = match code {
            Code::Expired | Code::Revoked | Code::Held | Code::SignedOut => Refusal::Certificate,
            Code::Busy | Code::TooManyStreams => Refusal::Limit("streams"),
            _ => Refusal::Upstream,
        };
        Self { answer: code.into(), why }
    }
}

#[cfg(test)]
mod tests {
    use proto::ollama::answer::ServiceAnswer;

    use super::*;

    #[test]
    fn a_failed_authority_invites_a_retry_and_a_refusal_does_not() {
        let failed = authorize::AuthorizeError::Failed(std::io::ErrorKind::TimedOut.into());
        let told = |refusal| {
            let Refused { answer, .. } = Refused::from(refusal);
            (answer.status, answer.retry_after)
        };
        assert_eq!(told(failed), (503, Some(RETRY_SOON)));
        let answer = ServiceAnswer {
            content_type: "text/plain".into(),
            challenges: Vec::new(),
            body: Vec::new(),
        };
        let no = authorize::Refusal { status: 403, answer: answer.into() };
        assert_eq!(told(authorize::AuthorizeError::No(no.into())), (403, None));
    }

    #[test]
    fn the_error_is_the_same_within_a_stream_and_before_it() {
        for code in [Code::Expired, Code::Revoked] {
            assert_eq!(Refused::from(Denied::Device(code)), code.into(), "{code:?}");
        }
    }
}
