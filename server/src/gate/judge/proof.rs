//! How long the proof of who makes a request lasts. No request begins after the end of a certificate,
//! a key or a token. The end of a key or a token cuts an answer that runs, as a revocation does. The
//! end of a certificate does not: devices renew theirs, and the server's side of that may be down.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use common::machine::process::{unix_millis, unix_now};
use proto::wire::Code;

use crate::{
    gate::StreamContext,
    jwt::TokenHolder,
    policy::{Caller, Denied, Policy},
};

/// The wall clock may be set, and a timer does not follow it: the time is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The end of a key or a token.
struct ProofEnd<'a> {
    /// The last second in which it counts, in Unix time.
    last: i64,
    /// The token, if it is one.
    token: Option<&'a TokenHolder>,
}

impl ProofEnd<'_> {
    fn denied(&self) -> Denied {
        self.token.map_or(Denied::Key, |holder| holder.expired(unix_now()).into())
    }
}

impl StreamContext<'_> {
    /// Whether a request may begin, or go on to the service, now. `narrowed` is the holder of the
    /// token that it brought in a tunnel.
    ///
    /// # Errors
    /// What has ended.
    pub(super) fn is_in_time(
        &self,
        policy: &Policy,
        narrowed: Option<&TokenHolder>,
    ) -> Result<(), Denied> {
        if self.not_after.load(Relaxed) < unix_now() {
            return Err(Denied::Device(Code::Expired));
        }
        match self.proof_end(policy, narrowed) {
            Some(end) if left(end.last, unix_millis()).is_none() => Err(end.denied()),
            _ => Ok(()),
        }
    }

    /// Ends when the key or the token of a request has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn out_of_time(
        &self,
        policy: &Policy,
        narrowed: Option<&TokenHolder>,
    ) -> Denied {
        // Another end of a key is a change of the rules, after which this begins anew.
        let Some(end) = self.proof_end(policy, narrowed) else {
            return std::future::pending().await;
        };
        while let Some(left) = left(end.last, unix_millis()) {
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
        end.denied()
    }

    /// What ends first, if anything does.
    fn proof_end<'s>(
        &'s self,
        policy: &Policy,
        narrowed: Option<&'s TokenHolder>,
    ) -> Option<ProofEnd<'s>> {
        let own = match self.caller {
            Caller::Token(holder) => Some(holder),
            _ => None,
        };
        let key = match self.caller {
            Caller::Key { id, prefix } => policy.snapshot().last_second_of_key(id, prefix),
            _ => None,
        };
        let narrowed = narrowed.filter(|_| policy.narrowing_tokens().is_some());
        let tokens = own.into_iter().chain(narrowed);
        let tokens = tokens.map(|holder| ProofEnd { last: holder.not_after, token: Some(holder) });
        let key = key.map(|last| ProofEnd { last, token: None });
        tokens.chain(key).min_by_key(|end| end.last)
    }
}

/// How long what counts in its `last` second, in Unix time, still counts at `now`, in Unix
/// milliseconds; `None` if it does not any more.
fn left(last: i64, now: i64) -> Option<Duration> {
    let end = last.saturating_add(1).saturating_mul(1000);
    let left = u64::try_from(end.saturating_sub(now)).ok().filter(|left| *left > 0)?;
    Some(Duration::from_millis(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_counts_in_all_of_its_last_second() {
        for (last, now, expected) in [
            (10, 9_000, Some(2_000)),
            (10, 10_000, Some(1_000)),
            (10, 10_999, Some(1)),
            (10, 11_000, None),
            (10, i64::MAX, None),
            (0, 1, Some(999)),
            (0, 1_000, None),
            (i64::MIN, 1, None),
            (i64::MAX, 0, Some(i64::MAX as u64)),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(left(last, now), expected, "{last} at {now}");
        }
    }
}
