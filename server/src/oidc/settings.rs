//! The settings of `[oidc]`.

use std::{fmt, path::PathBuf, time::Duration};

use zeroize::Zeroizing;

use crate::jwt::JwtSettings;

/// How long a certificate is valid whose device has signed in, unless configured otherwise.
pub(crate) const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
const SHORTEST_LIFE: Duration = Duration::from_secs(5 * 60);
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The settings of the sign-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OidcSettings {
    /// What the provider calls this server.
    pub(crate) client_id: String,
    /// `None` for a public client (RFC 6749 section 2.1).
    pub(crate) secret: Option<ClientSecret>,
    /// Where it was read from.
    pub(crate) secret_file: Option<PathBuf>,
    /// What is asked for, separated by spaces; `openid` is among it.
    pub(crate) scopes: String,
    /// How people sign in; `None` for what the provider has.
    pub(crate) flow: Option<Flow>,
    /// The longest life of a certificate.
    pub(crate) max_life: Duration,
    /// The issuer, and what its tokens have to say.
    pub(crate) tokens: JwtSettings,
}

/// How a person signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flow {
    /// With a code that is typed at any browser (RFC 8628).
    Device,
    /// With a browser of the device itself (RFC 8252, RFC 7636).
    Browser,
}

/// The secret that proves who this server is. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClientSecret(Zeroizing<String>);

impl ClientSecret {
    pub(crate) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(…)")
    }
}

/// Checks a longest life.
///
/// # Errors
/// Between which times it has to be.
pub(crate) fn max_life(life: Duration) -> Result<Duration, &'static str> {
    if (SHORTEST_LIFE..=LONGEST_LIFE).contains(&life) {
        Ok(life)
    } else {
        Err("`max_life` is between 5m and 30d, for example \"24h\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_has_bounds_and_a_secret_is_not_shown() {
        let minutes = |minutes: u64| max_life(Duration::from_secs(minutes * 60)).is_ok();
        assert_eq!(
            [4, 5, 24 * 60, 30 * 24 * 60, 30 * 24 * 60 + 1].map(minutes),
            [false, true, true, true, false]
        );
        let secret = ClientSecret::new("s3cret".to_owned().into());
        assert!(!format!("{secret:?}").contains("s3cret"));
    }
}
