//! The checks of providers: the one at which people sign in (`[oidc]`), and the one whose tokens count
//! (`[jwt]`).

use serde::{Deserialize, Serialize};

use super::BoxFound;
use crate::{
    doctor::{Judgement, bad, ok},
    human,
};

/// A provider, as it answers now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProviderFound {
    /// Its issuer.
    pub issuer: String,
    /// How many keys it has for tokens; or why it cannot be used.
    pub answered: Result<u64, String>,
    /// A command that asks it by hand.
    pub by_hand: String,
}

/// The provider at which people sign in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignInFound {
    pub provider: ProviderFound,
    /// Whether people sign in with a code that is typed at any browser; otherwise a browser on their
    /// own computer is needed.
    pub has_codes: bool,
}

pub(super) fn sign_in(found: &BoxFound) -> Option<Judgement> {
    let SignInFound { provider, has_codes } = found.sign_in.as_ref()?;
    let ProviderFound { issuer, answered, by_hand } = provider;
    let how = match has_codes {
        true => "people sign in with a code, in any browser",
        false => "people sign in with a browser on their own computer",
    };
    Some(match answered {
        Err(why) => bad(format!(
            "{issuer} cannot be used ({why}): nobody can sign in, and no certificate of those who have is renewed"
        ))
        .cure_by("ask it by hand", by_hand.clone()),
        Ok(_) => ok(format!("{issuer}: {how}")),
    })
}

pub(super) fn tokens(found: &BoxFound) -> Option<Judgement> {
    let ProviderFound { issuer, answered, by_hand } = found.tokens.as_ref()?;
    Some(match answered {
        Err(why) => bad(format!(
            "the keys of {issuer} cannot be had ({why}): tokens that it signs with another key get 503"
        ))
        .cure_by("ask by hand", by_hand.clone()),
        Ok(0) => bad(format!("{issuer} has no key for signing tokens: none of its tokens counts"))
            .cure_by("see what it answers", by_hand.clone()),
        Ok(keys) => ok(format!("{issuer} has {}", human::count(*keys, "key"))),
    })
}
