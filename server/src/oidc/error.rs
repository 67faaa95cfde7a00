//! Why somebody is not signed in.

use common::machine::report::{Exit, Failure};

use super::id_token::IdTokenFault;
use crate::jwt::TokenFault;

/// Why somebody is not signed in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OidcError {
    /// It may pass.
    #[error("the provider cannot be asked now: {0}")]
    Unavailable(String),
    /// The provider does not accept what this server says; its owner has to correct that.
    #[error("the provider refuses this server: {0}")]
    Misconfigured(String),
    #[error("the sign-in was refused at the provider")]
    Denied,
    #[error("nobody has signed in while the code was valid")]
    CodeExpired,
    /// The answer to a refresh token (RFC 6749 section 5.2, `invalid_grant`).
    #[error("the provider says that the sign-in has ended{0}")]
    Ended(String),
    #[error("the provider's token {0}")]
    Token(TokenFault),
    #[error("the provider's token {0}")]
    IdToken(#[from] IdTokenFault),
    #[error("the groups in `{0}` have no role here")]
    Group(String),
    /// The provider has no device grant, and the device no browser.
    #[error("this provider needs a browser on the same computer")]
    NoBrowser,
}

impl From<TokenFault> for OidcError {
    fn from(fault: TokenFault) -> Self {
        match fault {
            TokenFault::NoKeys => Self::Unavailable("its keys cannot be fetched".to_owned()),
            TokenFault::Group(claim) => Self::Group(claim),
            fault => Self::Token(fault),
        }
    }
}

impl OidcError {
    /// Whether the provider has said that this person may not go on. Otherwise it may pass, or the
    /// owner of the server has to correct something: what runs goes on meanwhile.
    pub(crate) fn ends_the_sign_in(&self) -> bool {
        match self {
            Self::Denied | Self::Ended(_) | Self::Group(_) => true,
            Self::Token(fault) => matches!(fault, TokenFault::User(_) | TokenFault::Unverified),
            Self::IdToken(fault) => *fault == IdTokenFault::Subject,
            Self::Unavailable(_) | Self::Misconfigured(_) | Self::CodeExpired | Self::NoBrowser => {
                false
            }
        }
    }

    /// Whether nobody can be signed in or renewed until the provider, or the owner of the server,
    /// corrects something.
    pub(crate) fn is_of_the_provider(&self) -> bool {
        !self.ends_the_sign_in() && !matches!(self, Self::CodeExpired | Self::NoBrowser)
    }

    /// What the person at the device is told.
    pub(crate) fn failure(&self) -> Failure {
        let failure = Failure::new("not signed in").source(self.clone());
        match self {
            Self::Unavailable(_) => {
                failure.hint("run the same command again in a moment; `aditd status` on the server says more")
            }
            Self::Misconfigured(_) | Self::Token(_) | Self::IdToken(_) => failure
                .hint("the owner of the server checks `[oidc]` in its configuration, and this client at the provider"),
            Self::Denied | Self::CodeExpired | Self::Ended(_) => {
                failure.hint("to try again, run the same command")
            }
            Self::Group(_) => failure
                .hint("ask for one of the groups that the owner of the server has named in `roles`, below `[oidc]`")
                .exit(Exit::NotAllowed),
            Self::NoBrowser => failure
                .hint("run `adit enroll --sso` on a computer with a browser, and without --no-browser"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_no_of_the_provider_ends_a_sign_in() {
        for (error, ends, is_of_the_provider) in [
            (OidcError::Unavailable("x".into()), false, true),
            (OidcError::Misconfigured("x".into()), false, true),
            (OidcError::Denied, true, false),
            (OidcError::CodeExpired, false, false),
            (OidcError::NoBrowser, false, false),
            (OidcError::Ended(String::new()), true, false),
            (OidcError::Group("groups".into()), true, false),
            (TokenFault::NoKeys.into(), false, true),
            (TokenFault::Signature.into(), false, true),
            (TokenFault::Expired(5).into(), false, true),
            (TokenFault::Unverified.into(), true, false),
            (TokenFault::User("email".into()).into(), true, false),
            (IdTokenFault::Subject.into(), true, false),
            (IdTokenFault::Nonce.into(), false, true),
        ] {
            assert_eq!(error.ends_the_sign_in(), ends, "{error}");
            assert_eq!(error.is_of_the_provider(), is_of_the_provider, "{error}");
            assert!(!error.failure().hints().is_empty(), "{error}");
        }
    }
}
