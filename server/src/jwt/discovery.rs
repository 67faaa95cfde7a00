//! What a provider says of itself (OpenID Connect Discovery 1.0, section 3).

use std::io;

use serde::Deserialize;

use super::{
    fetch::{ProviderTrust, plain},
    settings::ProviderUrl,
};

/// What a provider says of itself. Only what is used is checked.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Metadata {
    issuer: String,
    pub(super) jwks_uri: String,
    #[serde(default)]
    pub(crate) authorization_endpoint: Option<String>,
    #[serde(default)]
    pub(crate) token_endpoint: Option<String>,
    #[serde(default)]
    pub(crate) userinfo_endpoint: Option<String>,
    /// RFC 8628 section 4.
    #[serde(default)]
    pub(crate) device_authorization_endpoint: Option<String>,
    /// How a client proves who it is; `client_secret_basic` if the provider says nothing.
    #[serde(default)]
    pub(crate) token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// Where a provider says that (section 4).
pub(crate) fn document(issuer: &ProviderUrl) -> String {
    format!("{}/.well-known/openid-configuration", issuer.as_str().trim_end_matches('/'))
}

/// Asks a provider what it says of itself.
///
/// # Errors
/// Why there is no document, or that it is another issuer's (section 4.3).
pub(crate) async fn discover(issuer: &ProviderUrl, trust: &ProviderTrust) -> io::Result<Metadata> {
    let at = document(issuer);
    let at = at.parse::<ProviderUrl>().map_err(io::Error::other)?;
    let found: Metadata = trust.get_json(at.url()).await?;
    if found.issuer != issuer.as_str() {
        return Err(io::Error::other(format!(
            "`{at}` says that its issuer is `{}`: write `issuer` exactly so",
            plain(&found.issuer)
        )));
    }
    Ok(found)
}
