//! Why a token does not count, in words for the person who has sent it.

/// Why a token does not count. The text completes a sentence that begins with "the token".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenFault {
    #[error("is not a JWT, or its head has a field that is not known here")]
    Malformed,
    #[error("is longer than 16 KiB")]
    TooLong,
    #[error("is signed with the algorithm `{0}`; only RS256, ES256 and EdDSA count")]
    Algorithm(String),
    #[error("was not signed by a key of the provider")]
    Signature,
    /// Nothing can be said of it.
    #[error("cannot be checked now: the keys of the provider cannot be fetched")]
    NoKeys,
    #[error("is of another issuer than `{0}`")]
    Issuer(String),
    #[error("is not for `{0}`: that is what its claim `aud` has to name")]
    Audience(String),
    #[error("has no claim `exp` that says when it ends")]
    Endless,
    #[error("ended {0} s ago: get a new one")]
    Expired(i64),
    #[error(
        "is not valid yet: it begins in {0} s; are the clocks of this server and of the provider right?"
    )]
    Early(i64),
    #[error(
        "has no user's name in its claim `{0}`: it needs one of letters, digits, `.`, `_`, `-`, `+` and `@`; the owner can name another claim as `user_claim`"
    )]
    User(String),
    #[error("has an e-mail address that the provider has not verified (`email_verified`)")]
    Unverified,
    #[error(
        "names no group in its claim `{0}` that has a role: the owner gives roles to groups in `roles` below `[jwt]`"
    )]
    Group(String),
}

impl TokenFault {
    /// Whether such tokens come from somebody who has no account at the provider.
    pub(crate) fn is_forged(&self) -> bool {
        matches!(self, Self::Malformed | Self::TooLong | Self::Algorithm(_) | Self::Signature)
    }
}
