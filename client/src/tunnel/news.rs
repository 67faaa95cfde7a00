//! Decides which reasons for having no tunnel are logged. It names no clock and no socket.

use crate::dial::DialError;

/// A reason that differs from the logged one is logged when it has been the same for so many
/// attempts: while a network comes and goes, the reasons alternate.
const STAYS: u32 = 4;

/// What has been logged since the last session.
#[derive(Debug, Default)]
pub(crate) struct News {
    told: Option<DialError>,
    /// Another reason, and how many attempts in a row have failed for it.
    other: Option<(DialError, u32)>,
}

impl News {
    /// Whether to log that there is no tunnel for this reason. The first one is logged at once, and so
    /// are a refusal of the server and a key that cannot be used: a token that hangs needs long for each
    /// attempt.
    pub(crate) fn is_news(&mut self, why: &DialError) -> bool {
        if self.told.as_ref().is_some_and(|told| told.is_same_news(why)) {
            self.other = None;
            return false;
        }
        let times = match self.other.take() {
            Some((other, times)) if other.is_same_news(why) => times + 1,
            _ => 1,
        };
        let is_urgent = why.is_final() || matches!(why, DialError::Key(_));
        if self.told.is_none() || is_urgent || times >= STAYS {
            self.told = Some(why.clone());
            return true;
        }
        self.other = Some((why.clone(), times));
        false
    }

    /// A session has begun: whatever comes after it is new.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::Revocation;

    use super::*;
    use crate::device_key::KeyError;

    fn silent() -> DialError {
        DialError::NoAnswer("gpu:1".to_owned())
    }

    fn lookup() -> DialError {
        DialError::Resolve { name: "gpu".to_owned(), why: "no".to_owned() }
    }

    fn told(reasons: &[DialError]) -> Vec<usize> {
        let mut news = News::default();
        let told = reasons.iter().enumerate().filter(|(_, why)| news.is_news(why));
        told.map(|(i, _)| i).collect()
    }

    #[test]
    fn reasons_that_alternate_are_told_once() {
        let reasons: Vec<_> =
            (0..40).map(|i| if i % 3 == 0 { silent() } else { lookup() }).collect();
        assert_eq!(told(&reasons), [0]);
    }

    #[test]
    fn another_reason_is_told_when_it_stays() {
        let mut reasons = vec![silent(); 3];
        reasons.extend(vec![lookup(); 10]);
        reasons.extend(vec![silent(); 10]);
        assert_eq!(told(&reasons), [0, 6, 16]);
    }

    #[test]
    fn a_refusal_is_told_at_once_and_everything_after_a_session() {
        let refused = DialError::Revoked(Revocation::default());
        assert_eq!(told(&[silent(), refused.clone(), refused]), [0, 1]);
        let key = DialError::Key(KeyError::passing("the token is not there", "plug it in"));
        assert_eq!(told(&[silent(), key.clone(), key]), [0, 1]);
        let mut news = News::default();
        assert!(news.is_news(&silent()) && !news.is_news(&silent()));
        news.forget();
        assert!(news.is_news(&silent()));
    }
}
