//! Which requests are sent again when their session has ended before a byte of their answer came.
//! Names no clock and no socket.

use common::transport::splice::{Kept, SpliceEnd};
use proto::wire::Code;
use quinn::ConnectionError;

use crate::dial::DialError;

/// A request is sent again at most so often: one that ends the server each time must not go on for
/// ever.
const MOST_TIMES: u32 = 3;

/// A request whose stream has ended before a byte of its answer came.
pub(crate) struct Unanswered<'a, K = Kept> {
    /// How the stream ended.
    pub(crate) end: &'a SpliceEnd,
    /// All of the request that has been read, if it may be sent again.
    pub(crate) kept: Option<K>,
    /// How often it has been sent again.
    pub(crate) times: u32,
    /// Whether this program is to stop.
    pub(crate) is_stopping: bool,
}

/// The request that is sent again, if it is: nothing works on it any more, and sending it twice is
/// safe.
pub(crate) fn sent_again<K>(request: Unanswered<'_, K>) -> Option<K> {
    let is_so = !request.is_stopping && request.times < MOST_TIMES && is_session_over(request.end);
    request.kept.filter(|_| is_so)
}

/// Whether the server does nothing more for the stream that ended so, for certain: with its session
/// its connection to the service has ended. Silence is not certain.
fn is_session_over(end: &SpliceEnd) -> bool {
    match end {
        // It took leave of a stream on which it had not begun anything.
        SpliceEnd::Done => true,
        SpliceEnd::Reset(code) => code.into_inner() == u64::from(Code::ShuttingDown as u32),
        // Here only a session is closed that another has taken the place of.
        SpliceEnd::Lost(ConnectionError::LocallyClosed) => true,
        SpliceEnd::Lost(e) => matches!(
            DialError::from_connection(e, ""),
            // A second `adit up` with this certificate brings a refusal, and that is told.
            DialError::Restarted | DialError::Refused(Code::ShuttingDown | Code::Superseded)
        ),
        SpliceEnd::Drained | SpliceEnd::Aborted | SpliceEnd::GivenUp => false,
    }
}

#[cfg(test)]
mod tests {
    use quinn::{ApplicationClose, VarInt};

    use super::*;

    fn closed(code: Code) -> SpliceEnd {
        let error_code = VarInt::from_u32(code as u32);
        let reason = Default::default();
        SpliceEnd::Lost(ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }))
    }

    fn is_sent_again(end: &SpliceEnd) -> bool {
        let request = Unanswered { end, kept: Some(()), times: 0, is_stopping: false };
        sent_again(request).is_some()
    }

    #[test]
    fn a_request_is_sent_again_when_its_session_is_over_for_certain() {
        for end in [
            SpliceEnd::Lost(ConnectionError::Reset),
            SpliceEnd::Lost(ConnectionError::LocallyClosed),
            closed(Code::ShuttingDown),
            closed(Code::Superseded),
            SpliceEnd::Reset(VarInt::from_u32(Code::ShuttingDown as u32)),
            SpliceEnd::Done,
        ] {
            assert!(is_sent_again(&end), "{end:?}");
        }
        for end in [
            SpliceEnd::Lost(ConnectionError::TimedOut),
            SpliceEnd::Lost(ConnectionError::VersionMismatch),
            closed(Code::Revoked),
            closed(Code::Protocol),
            closed(Code::Busy),
            closed(Code::Done),
            SpliceEnd::Reset(VarInt::from_u32(Code::Cut as u32)),
            SpliceEnd::Reset(VarInt::from_u32(Code::Aborted as u32)),
            SpliceEnd::Reset(VarInt::from_u32(Code::Denied as u32)),
            SpliceEnd::GivenUp,
            SpliceEnd::Drained,
            SpliceEnd::Aborted,
        ] {
            assert!(!is_sent_again(&end), "{end:?}");
        }
    }

    #[test]
    fn nothing_is_sent_again_that_may_not_or_too_often_or_by_a_program_that_stops() {
        let end = &SpliceEnd::Lost(ConnectionError::Reset);
        let first = || Unanswered { end, kept: Some(()), times: 0, is_stopping: false };
        assert!(sent_again(first()).is_some());
        assert!(sent_again(Unanswered { kept: None::<()>, ..first() }).is_none());
        assert!(sent_again(Unanswered { is_stopping: true, ..first() }).is_none());
        assert!(sent_again(Unanswered { times: MOST_TIMES - 1, ..first() }).is_some());
        assert!(sent_again(Unanswered { times: MOST_TIMES, ..first() }).is_none());
    }
}
