//! Asks the providers that the settings name: whether people can sign in, and whether tokens count.

use std::time::Duration;

use proto::doctor::gpu_box::providers::{ProviderFound, SignInFound};

use crate::{
    jwt::{JwksSource, JwtSettings, ProviderTrust, Tokens, document},
    oidc::{Flow, OidcSettings, Provider},
};

/// How long all answers of a provider may take.
const WITHIN: Duration = Duration::from_secs(5);

/// The provider at which people sign in.
pub(super) async fn sign_in(settings: &OidcSettings) -> SignInFound {
    let examined = tokio::time::timeout(WITHIN, Provider::new(settings.clone()).examine()).await;
    let examined = examined.map_or_else(|_| Err(silent()), |it| it.map_err(|e| e.to_string()));
    let issuer = &settings.tokens.issuer;
    SignInFound {
        has_codes: examined.as_ref().map_or(settings.flow != Some(Flow::Browser), |found| found.0),
        provider: ProviderFound {
            issuer: issuer.to_string(),
            answered: examined.map(|(_, keys)| keys as u64),
            by_hand: by_hand(&document(issuer), &settings.tokens.trust),
        },
    }
}

/// The provider whose tokens count.
pub(super) async fn tokens(settings: &JwtSettings) -> ProviderFound {
    let counted = tokio::time::timeout(WITHIN, Tokens::new(settings.clone()).count_keys()).await;
    let counted = counted.map_or_else(|_| Err(silent()), |it| it.map_err(|e| e.to_string()));
    ProviderFound {
        issuer: settings.issuer.to_string(),
        answered: counted.map(|keys| keys as u64),
        by_hand: match &settings.jwks {
            JwksSource::Discovery => by_hand(&document(&settings.issuer), &settings.trust),
            JwksSource::Url(at) => by_hand(at.as_str(), &settings.trust),
            JwksSource::File(path) => format!("cat '{}'", path.display()),
        },
    }
}

fn silent() -> String {
    format!("silent for {} s", WITHIN.as_secs())
}

/// A command that asks for a document.
fn by_hand(url: &str, trust: &ProviderTrust) -> String {
    match trust.file() {
        Some(ca) => format!("curl -i --cacert '{}' '{url}'", ca.display()),
        None => format!("curl -i '{url}'"),
    }
}
