//! The settings of `[oidc]`.

use std::{fmt, path::PathBuf, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::RequestBuilder;
use zeroize::Zeroizing;

use crate::jwt::JwtSettings;

/// How long a certificate is valid whose device has signed in, unless configured otherwise.
pub(crate) const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
const SHORTEST_LIFE: Duration = Duration::from_secs(5 * 60);
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is encoded in a client's name and secret (RFC 6749 section 2.3.1).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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

impl OidcSettings {
    /// The request with this form, and with what proves who this server is, in one way only (RFC 6749
    /// section 2.3; OpenID Connect Core 1.0, section 9). `methods`: those that the provider names.
    pub(super) fn authenticated(
        &self,
        request: RequestBuilder,
        methods: Option<&[String]>,
        form: &[(&str, &str)],
    ) -> RequestBuilder {
        let mut form = form.to_vec();
        let is_basic = methods.is_none_or(|all| all.iter().any(|way| way == "client_secret_basic"));
        if let Some(secret) = self.secret.as_ref().filter(|_| is_basic) {
            let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
            let secret = Zeroizing::new(encoded(secret.expose()));
            let request = request.basic_auth(encoded(&self.client_id), Some(secret.as_str()));
            return request.form(&form);
        }
        form.push(("client_id", &self.client_id));
        form.extend(self.secret.as_ref().map(|secret| ("client_secret", secret.expose())));
        request.form(&form)
    }
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

    fn expose(&self) -> &str {
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
    use crate::jwt::JwksSource;

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
    #[test]
    fn a_client_proves_who_it_is_in_one_way_only() {
        let settings = |secret: Option<&str>| OidcSettings {
            client_id: "a:b".into(),
            secret: secret.map(|secret| ClientSecret::new(secret.to_owned().into())),
            secret_file: None,
            scopes: "openid".into(),
            flow: None,
            max_life: MAX_LIFE,
            tokens: JwtSettings {
                issuer: "https://a.example".parse().expect("an issuer"),
                audience: Vec::new(),
                jwks: JwksSource::Discovery,
                user_claim: "email".into(),
                groups_claim: "groups".into(),
                roles: None,
                default_role: "infer".parse().expect("a role"),
                tunnel: false,
                trust: Default::default(),
            },
        };
        let (basic, post) = ("client_secret_basic", "client_secret_post");
        // The name and the secret are `a%3Ab` and `s%20t`, then base64.
        let proof = Some("Basic YSUzQWI6cyUyMHQ=");
        for (secret, methods, header, body) in [
            (None, None, None, "scope=x&client_id=a%3Ab"),
            (None, Some(&[basic][..]), None, "scope=x&client_id=a%3Ab"),
            (Some("s t"), None, proof, "scope=x"),
            (Some("s t"), Some(&[post, basic][..]), proof, "scope=x"),
            (Some("s t"), Some(&[post][..]), None, "scope=x&client_id=a%3Ab&client_secret=s+t"),
        ] {
            let methods =
                methods.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
            let request = reqwest::Client::new().post("https://a.example/token");
            let form = [("scope", "x")];
            let request = settings(secret).authenticated(request, methods.as_deref(), &form);
            let request = request.build().expect("a request");
            let sent = request.headers().get("authorization");
            assert_eq!(sent.map(|sent| sent.to_str().expect("text")), header, "{methods:?}");
            let sent = request.body().and_then(|body| body.as_bytes());
            assert_eq!(sent, Some(body.as_bytes()), "{methods:?}");
        }
    }
}
