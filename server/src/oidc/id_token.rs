//! What an ID token has to say beside its signature, issuer, audience and end (OpenID Connect Core
//! 1.0, sections 3.1.3.7 and 12.2). Without a clock.

use serde_json::Value;

use crate::jwt::{Claims, SKEW, texts, time};

/// How old a token may be that the provider has just sent, in seconds.
const OLDEST: i64 = 600;

/// What the token is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) client_id: &'a str,
    /// What was sent with the request, if anything was.
    pub(super) nonce: Option<&'a str>,
    /// Who has signed in before, if somebody has.
    pub(super) subject: Option<&'a str>,
}

/// Why an ID token does not count. The text completes a sentence that begins with "the provider's
/// token".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdTokenFault {
    #[error("is missing in its answer: the scope `openid` has to be granted")]
    Missing,
    #[error("was made for another client (`azp`)")]
    Party,
    #[error("does not say when it was made (`iat`)")]
    Undated,
    #[error("is from {0} s ago: are the clocks of this server and of the provider right?")]
    Old(i64),
    #[error(
        "is from the future, by {0} s: are the clocks of this server and of the provider right?"
    )]
    Future(i64),
    #[error("is not the answer to this sign-in (`nonce`)")]
    Nonce,
    #[error("names nobody (`sub`)")]
    Nobody,
    #[error("is another person's (`sub`)")]
    Subject,
}

/// Checks the claims of a token whose signature, issuer, audience and end were checked. Returns its
/// subject. `now` is Unix time.
pub(super) fn check(
    claims: &Claims,
    expected: Expected<'_>,
    now: i64,
) -> Result<String, IdTokenFault> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    // Items 4 and 5: with several audiences the party has to be named.
    let is_ours = match claims.get("azp") {
        Some(party) => party.as_str() == Some(expected.client_id),
        None => texts(claims.get("aud")).len() == 1,
    };
    if !is_ours {
        return Err(IdTokenFault::Party);
    }
    let made = time(claims, "iat").ok_or(IdTokenFault::Undated)?;
    if made > now.saturating_add(SKEW) {
        return Err(IdTokenFault::Future(made.saturating_sub(now)));
    }
    if made < now.saturating_sub(OLDEST) {
        return Err(IdTokenFault::Old(now.saturating_sub(made)));
    }
    // A device grant has no nonce, and the answer to a refresh token need not have one.
    if expected.nonce.is_some() && text("nonce") != expected.nonce {
        return Err(IdTokenFault::Nonce);
    }
    let subject = text("sub").filter(|sub| !sub.is_empty()).ok_or(IdTokenFault::Nobody)?;
    if expected.subject.is_some_and(|expected| expected != subject) {
        return Err(IdTokenFault::Subject);
    }
    Ok(subject.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn each_claim_is_compared() {
        use IdTokenFault::{Future, Nobody, Nonce, Old, Party, Subject, Undated};
        for (change, fault) in [
            (json!({}), None),
            (json!({ "azp": "adit" }), None),
            (json!({ "azp": "other" }), Some(Party)),
            (json!({ "azp": null }), Some(Party)),
            (json!({ "aud": ["adit"] }), None),
            (json!({ "aud": ["adit", "other"] }), Some(Party)),
            (json!({ "aud": ["adit", "other"], "azp": "adit" }), None),
            (json!({ "iat": null }), Some(Undated)),
            (json!({ "iat": "now" }), Some(Undated)),
            (json!({ "iat": NOW + 60 }), None),
            (json!({ "iat": NOW + 61 }), Some(Future(61))),
            (json!({ "iat": NOW - 600 }), None),
            (json!({ "iat": NOW - 601 }), Some(Old(601))),
            (json!({ "nonce": "m" }), Some(Nonce)),
            (json!({ "nonce": null }), Some(Nonce)),
            (json!({ "sub": null }), Some(Nobody)),
            (json!({ "sub": "" }), Some(Nobody)),
            (json!({ "sub": "bob" }), Some(Subject)),
        ] {
            let mut claims = json!({ "aud": "adit", "iat": NOW, "nonce": "n", "sub": "alice" });
            for (name, value) in change.as_object().expect("an object") {
                claims[name] = value.clone();
            }
            let expected = Expected { client_id: "adit", nonce: Some("n"), subject: Some("alice") };
            let judged = check(claims.as_object().expect("an object"), expected, NOW);
            assert_eq!(judged.err(), fault, "{change}");
        }
    }

    #[test]
    fn what_was_not_sent_is_not_expected() {
        let claims = json!({ "aud": "adit", "iat": NOW, "sub": "alice" });
        let expected = Expected { client_id: "adit", nonce: None, subject: None };
        let judged = check(claims.as_object().expect("an object"), expected, NOW);
        assert_eq!(judged, Ok("alice".to_owned()));
    }
}
