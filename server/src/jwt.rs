//! Sign-in by a token: whose it is, judged by the keys of the provider that has signed it (RFC 7519,
//! RFC 7517).

mod claims;
mod discovery;
mod fault;
mod fetch;
mod keys;
mod provider;
mod schedule;
mod settings;

pub(crate) use self::{
    claims::{SKEW, TokenHolder, TokenPerson, texts, time},
    discovery::{Metadata, discover, document},
    fault::TokenFault,
    fetch::{ProviderTrust, plain, send},
    keys::Claims,
    provider::ProviderKeys,
    settings::{GroupRoles, JwksSource, JwtSettings, ProviderUrl},
};

use common::machine::process::unix_now;
use proto::identity::Name;
use serde::{Deserialize, Serialize};

use self::keys::{NoClaims, check_head};

/// What judges tokens: the settings, and the keys of the provider.
#[derive(Debug)]
pub(crate) struct Tokens {
    settings: JwtSettings,
    keys: ProviderKeys,
}

/// Whose tokens count, as `aditd status` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokensStatus {
    /// Who issues them.
    pub issuer: String,
    /// For whom they have to be.
    pub audience: Vec<String>,
    /// How many keys of the provider are known.
    pub keys: usize,
    /// Whether they narrow what a device may in its tunnel.
    pub tunnel: bool,
    /// Why the newest keys could not be fetched, if that failed last.
    #[serde(default)]
    pub failing: Option<String>,
}

impl Tokens {
    /// Judges tokens by these settings. The keys are fetched by [`Tokens::follow`], or when the first
    /// token comes.
    pub(crate) fn new(settings: JwtSettings) -> Self {
        let JwtSettings { issuer, jwks, trust, .. } = &settings;
        let keys = ProviderKeys::new(issuer.clone(), jwks.clone(), trust.clone());
        Self { settings, keys }
    }

    pub(crate) fn settings(&self) -> &JwtSettings {
        &self.settings
    }

    pub(crate) fn status(&self) -> TokensStatus {
        TokensStatus {
            issuer: self.settings.issuer.to_string(),
            audience: self.settings.audience.clone(),
            keys: self.keys.current().len(),
            tunnel: self.settings.tunnel,
            failing: self.keys.failing(),
        }
    }

    /// Keeps the keys fresh for as long as it is polled.
    pub(crate) async fn follow(&self) {
        self.keys.follow().await;
    }

    /// How many keys the provider has now. What is in use stays.
    ///
    /// # Errors
    /// Why they cannot be had.
    pub(crate) async fn count_keys(&self) -> std::io::Result<usize> {
        self.keys.look().await.map(|keys| keys.len())
    }

    /// Whose token it is. Waits for new keys if the provider seems to have changed them; how often
    /// they are fetched is bounded.
    ///
    /// # Errors
    /// Why the token does not count.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn judge(&self, token: &str) -> Result<TokenHolder, TokenFault> {
        let claims = self.verify(token).await?;
        claims::judge(&claims, &self.settings, unix_now())
    }

    /// The claims of an ID token (OpenID Connect Core 1.0, section 3.1.3.7): its signature, issuer,
    /// audience and times are checked. Fetches the keys first if they are not fresh.
    ///
    /// # Errors
    /// Why the token does not count.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn judge_id_token(&self, token: &str) -> Result<Claims, TokenFault> {
        self.keys.freshen().await;
        let claims = self.verify(token).await?;
        claims::check(&claims, &self.settings, unix_now())?;
        Ok(claims)
    }

    /// Whose claims these are.
    ///
    /// # Errors
    /// That they name no user.
    pub(crate) fn person(&self, claims: &Claims) -> Result<TokenPerson, TokenFault> {
        claims::person(claims, &self.settings)
    }

    /// The role of somebody in these groups; `None` if groups decide nothing.
    ///
    /// # Errors
    /// That none of them has a role.
    pub(crate) fn role_of(&self, groups: &[String]) -> Result<Option<&Name>, TokenFault> {
        claims::role_of(groups, &self.settings)
    }

    /// Whether the claims say all that the settings ask of a person.
    pub(crate) fn are_complete(&self, claims: &Claims) -> bool {
        claims::are_complete(claims, &self.settings)
    }

    async fn verify(&self, token: &str) -> Result<Claims, TokenFault> {
        // Before anybody is asked for its sake.
        check_head(token)?;
        Ok(match self.keys.current().verify(token) {
            Err(NoClaims::UnknownKey) => {
                let fetched = self.keys.fetch_for_a_token().await;
                self.keys.current().verify(token).map_err(|e| match e {
                    NoClaims::UnknownKey if !fetched => TokenFault::NoKeys,
                    e => e.into(),
                })?
            }
            verified => verified?,
        })
    }

    /// The role of the holder of a token by the settings that are in force.
    ///
    /// # Errors
    /// Why the token does not count by these settings.
    pub(crate) fn role(&self, holder: &TokenHolder) -> Result<&Name, TokenFault> {
        claims::role(holder, &self.settings)
    }
}
