//! Asks the provider: for a sign-in, and whether one still counts.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::machine::process::unix_now;
use proto::{
    identity::{Name, UserName},
    wire::RedirectAnswer,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::{
    answer::{self, TokenAnswer, TokenSet},
    error::OidcError,
    grant::{BrowserGrant, DeviceGrant, Grant},
    id_token::{self, Expected, IdTokenFault},
    pkce::Binding,
    settings::{Flow, OidcSettings},
};
use crate::jwt::{Claims, Metadata, ProviderUrl, Tokens, discover, send};

/// How long it is believed what a provider says of itself.
const FRESH: Duration = Duration::from_secs(600);
const DEVICE_ENDPOINT: &str = "device_authorization_endpoint";
/// RFC 8628 section 3.4.
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The provider, and what this server is there.
pub(crate) struct Provider {
    settings: OidcSettings,
    tokens: Tokens,
    metadata: Mutex<Option<(Instant, Arc<Metadata>)>>,
    failing: Mutex<Option<String>>,
}

/// Somebody who has signed in.
pub(crate) struct Person {
    /// Who that is at the provider (`sub`). It never changes, as the user's name may.
    pub(crate) subject: String,
    pub(crate) user: UserName,
    /// The role of the person's groups; `None` if groups decide nothing.
    pub(crate) role: Option<Name>,
    /// With what the provider is asked again; `None` if it has given nothing, or nothing new.
    pub(crate) refresh_token: Option<Zeroizing<String>>,
}

/// Why it is not known whether a sign-in still counts, or that it does not.
pub(crate) struct NotConfirmed {
    pub(crate) why: OidcError,
    /// The provider has replaced the refresh token before that: only this one is good for another
    /// question.
    pub(crate) refresh_token: Option<Zeroizing<String>>,
}

impl From<OidcError> for NotConfirmed {
    fn from(why: OidcError) -> Self {
        Self { why, refresh_token: None }
    }
}

/// The sign-in, as `aditd status` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OidcStatus {
    /// Who signs people in.
    pub issuer: String,
    /// How long a certificate is valid, in seconds.
    pub max_life: u64,
    /// Why the provider could not be asked, if that failed last.
    #[serde(default)]
    pub failing: Option<String>,
}

impl Provider {
    /// The provider of these settings. Nothing is asked yet.
    pub(crate) fn new(settings: OidcSettings) -> Self {
        let tokens = Tokens::new(settings.tokens.clone());
        Self { settings, tokens, metadata: Mutex::default(), failing: Mutex::default() }
    }

    pub(crate) fn settings(&self) -> &OidcSettings {
        &self.settings
    }

    pub(crate) fn issuer(&self) -> &str {
        self.settings.tokens.issuer.as_str()
    }

    pub(crate) fn status(&self) -> OidcStatus {
        OidcStatus {
            issuer: self.issuer().to_owned(),
            max_life: self.settings.max_life.as_secs(),
            failing: self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Begins a sign-in. `redirect_port` is where the device waits for a browser, if it has one.
    ///
    /// # Errors
    /// Why there can be none.
    ///
    /// # Cancel safety
    /// Cancel safe: a code that nobody has seen ends by itself.
    pub(crate) async fn begin(&self, redirect_port: Option<u16>) -> Result<Grant, OidcError> {
        let begun = self.begin_grant(redirect_port).await;
        if let Err(why) = &begun {
            self.note_failure(why);
        }
        begun
    }

    /// Asks the provider anew what it offers, and for its keys: whether people can sign in there with a
    /// code for any browser, and how many keys it has. Nobody signs in for that.
    ///
    /// # Errors
    /// Why nobody can sign in there.
    pub(crate) async fn examine(&self) -> Result<(bool, usize), OidcError> {
        let tokens = &self.settings.tokens;
        let metadata = discover(&tokens.issuer, &tokens.trust).await.map_err(unavailable)?;
        self.endpoint(metadata.token_endpoint.as_deref(), "token_endpoint")?;
        let (at, name) = self.grant_endpoint(&metadata)?;
        self.endpoint(at, name)?;
        let keys = self.tokens.count_keys().await.map_err(unavailable)?;
        Ok((name == DEVICE_ENDPOINT, keys))
    }

    /// Where a sign-in begins, as the provider says, and the name of that endpoint.
    fn grant_endpoint<'m>(
        &self,
        metadata: &'m Metadata,
    ) -> Result<(Option<&'m str>, &'static str), OidcError> {
        let device = metadata.device_authorization_endpoint.as_deref();
        match (device, self.settings.flow) {
            (Some(at), None | Some(Flow::Device)) => Ok((Some(at), DEVICE_ENDPOINT)),
            (None, Some(Flow::Device)) => {
                let why = "it has no device grant, which `flow = \"device\"` needs";
                Err(OidcError::Misconfigured(why.to_owned()))
            }
            _ => Ok((metadata.authorization_endpoint.as_deref(), "authorization_endpoint")),
        }
    }

    async fn begin_grant(&self, redirect_port: Option<u16>) -> Result<Grant, OidcError> {
        let OidcSettings { client_id, scopes, .. } = &self.settings;
        let metadata = self.metadata().await?;
        let (at, name) = self.grant_endpoint(&metadata)?;
        let at = self.endpoint(at, name)?;
        if name == DEVICE_ENDPOINT {
            let form = [("scope", scopes.as_str())];
            let (status, body) = self.ask(&metadata, &at, &form).await?;
            let issuer = &self.settings.tokens.issuer;
            return answer::device(issuer, status, &body).map(DeviceGrant::new).map(Grant::Device);
        }
        let binding = Binding::new(redirect_port.ok_or(OidcError::NoBrowser)?);
        let url = binding.url(at.url(), client_id, scopes);
        Ok(Grant::Browser(BrowserGrant::new(binding, url)))
    }

    /// Waits until the person has signed in with the code.
    ///
    /// # Errors
    /// Why nobody is signed in. While the provider is down, it is asked again until the code ends.
    ///
    /// # Cancel safety
    /// Not cancel safe: a sign-in whose answer is dropped is lost.
    pub(crate) async fn wait(&self, grant: DeviceGrant) -> Result<Person, OidcError> {
        let mut polling = grant.polling;
        let mut last = OidcError::CodeExpired;
        loop {
            let Some(pause) = polling.pause(grant.begun.elapsed()) else { return Err(last) };
            tokio::time::sleep(pause).await;
            let form = [("grant_type", DEVICE_GRANT), ("device_code", grant.code().as_str())];
            match self.token(&form).await {
                TokenAnswer::Pending => {
                    polling.pending();
                    last = OidcError::CodeExpired;
                }
                TokenAnswer::SlowDown => polling.slow_down(),
                TokenAnswer::Refused(why @ OidcError::Unavailable(_)) => {
                    polling.failed();
                    last = why;
                }
                TokenAnswer::Refused(why) => return Err(why),
                TokenAnswer::Granted(tokens) => return self.person(tokens, None, None).await,
            }
        }
    }

    /// Ends a sign-in with what the browser has brought to the device.
    ///
    /// # Errors
    /// Why nobody is signed in.
    pub(crate) async fn redeem(
        &self,
        grant: BrowserGrant,
        brought: RedirectAnswer,
    ) -> Result<Person, OidcError> {
        let (code, iss) = match brought {
            RedirectAnswer::Code { code, iss } => (Zeroizing::new(code), iss),
            RedirectAnswer::Error { error, description } => {
                return Err(answer::redirected(&error, description.as_deref()));
            }
        };
        // RFC 9207 section 2.4.
        if iss.is_some_and(|iss| iss != self.issuer()) {
            return Err(OidcError::Misconfigured("the answer is another provider's".to_owned()));
        }
        let Binding { nonce, verifier, redirect_uri, .. } = &grant.binding;
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
            ("redirect_uri", redirect_uri.as_str()),
            ("code_verifier", verifier.as_str()),
        ];
        match self.token(&form).await {
            TokenAnswer::Granted(tokens) => self.person(tokens, Some(nonce), None).await,
            TokenAnswer::Refused(why) => Err(why),
            TokenAnswer::Pending | TokenAnswer::SlowDown => {
                Err(OidcError::Unavailable("its answer cannot be read".to_owned()))
            }
        }
    }

    /// Asks whether the sign-in of `subject` still counts, and in which groups that person is now
    /// (RFC 6749 section 6, OpenID Connect Core 1.0, section 12).
    ///
    /// # Errors
    /// Why it does not, or why that is not known. A new refresh token is kept in either case.
    ///
    /// # Cancel safety
    /// Not cancel safe: the provider may have replaced the refresh token.
    pub(crate) async fn refresh(
        &self,
        subject: &str,
        refresh_token: &Zeroizing<String>,
    ) -> Result<Person, NotConfirmed> {
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.as_str())];
        match self.token(&form).await {
            TokenAnswer::Granted(tokens) => {
                let refresh_token = tokens.refresh_token.clone();
                let person = self.person(tokens, None, Some(subject)).await;
                person.map_err(|why| NotConfirmed { why, refresh_token })
            }
            TokenAnswer::Refused(why) => Err(why.into()),
            TokenAnswer::Pending | TokenAnswer::SlowDown => {
                Err(OidcError::Unavailable("its answer cannot be read".to_owned()).into())
            }
        }
    }

    /// Whose tokens these are. That is the end of each question, so only here the provider is known to
    /// be of use again.
    async fn person(
        &self,
        tokens: TokenSet,
        nonce: Option<&str>,
        subject: Option<&str>,
    ) -> Result<Person, OidcError> {
        let person = self.judge(tokens, nonce, subject).await;
        match &person {
            Ok(_) => self.note(None),
            Err(why) => self.note_failure(why),
        }
        person
    }

    async fn judge(
        &self,
        tokens: TokenSet,
        nonce: Option<&str>,
        subject: Option<&str>,
    ) -> Result<Person, OidcError> {
        let expected = Expected { client_id: &self.settings.client_id, nonce, subject };
        let (subject, claims) = match &tokens.id_token {
            Some(token) => {
                let mut claims = self.tokens.judge_id_token(token).await?;
                let subject = id_token::check(&claims, expected, unix_now())?;
                if !self.tokens.are_complete(&claims)
                    && let Some(more) = self.userinfo(&tokens, &subject).await?
                {
                    // The signed claims count where both have one.
                    let mut all = more;
                    all.append(&mut claims);
                    claims = all;
                }
                (subject, claims)
            }
            // The answer to a refresh token need not have one (section 12.2).
            None => {
                let subject = subject.ok_or(IdTokenFault::Missing)?;
                let claims = self.userinfo(&tokens, subject).await?;
                (subject.to_owned(), claims.ok_or(IdTokenFault::Missing)?)
            }
        };
        let person = self.tokens.person(&claims)?;
        let role = self.tokens.role_of(&person.groups)?.cloned();
        Ok(Person { subject, user: person.user, role, refresh_token: tokens.refresh_token })
    }

    /// What the provider says of a person beside the ID token (OpenID Connect Core 1.0, section
    /// 5.3); `None` if it has no such endpoint.
    async fn userinfo(
        &self,
        tokens: &TokenSet,
        subject: &str,
    ) -> Result<Option<Claims>, OidcError> {
        let metadata = self.metadata().await?;
        let Some(at) = metadata.userinfo_endpoint.as_deref() else { return Ok(None) };
        let at = self.endpoint(Some(at), "userinfo_endpoint")?;
        let client = self.settings.tokens.trust.client(at.url()).map_err(unavailable)?;
        let asked = client.get(at.url().clone()).bearer_auth(tokens.access_token.as_str());
        let (status, body) = send(asked).await.map_err(unavailable)?;
        let claims = serde_json::from_slice::<Claims>(&body);
        let claims = claims.ok().filter(|_| status == 200).ok_or_else(|| {
            OidcError::Unavailable(format!(
                "`{at}` answered with the status {status}, or without JSON"
            ))
        })?;
        // Section 5.3.2: it has to be the same person.
        if claims.get("sub").and_then(Value::as_str) != Some(subject) {
            return Err(IdTokenFault::Subject.into());
        }
        Ok(Some(claims))
    }

    async fn token(&self, form: &[(&str, &str)]) -> TokenAnswer {
        let asked = async {
            let metadata = self.metadata().await?;
            let at = self.endpoint(metadata.token_endpoint.as_deref(), "token_endpoint")?;
            self.ask(&metadata, &at, form).await
        };
        let answer = match asked.await {
            Ok((status, body)) => answer::token(status, &body),
            Err(why) => TokenAnswer::Refused(why),
        };
        if let TokenAnswer::Refused(why) = &answer {
            self.note_failure(why);
        }
        answer
    }

    /// Sends a form to an endpoint, as this server.
    async fn ask(
        &self,
        metadata: &Metadata,
        at: &ProviderUrl,
        form: &[(&str, &str)],
    ) -> Result<(u16, Zeroizing<Vec<u8>>), OidcError> {
        let client = self.settings.tokens.trust.client(at.url()).map_err(unavailable)?;
        let methods = metadata.token_endpoint_auth_methods_supported.as_deref();
        let asked = self.settings.authenticated(client.post(at.url().clone()), methods, form);
        let (status, body) = send(asked).await.map_err(unavailable)?;
        Ok((status, body.into()))
    }

    /// An endpoint that the provider names.
    fn endpoint(&self, at: Option<&str>, name: &str) -> Result<ProviderUrl, OidcError> {
        let at = at.ok_or_else(|| OidcError::Misconfigured(format!("it names no `{name}`")))?;
        self.settings.tokens.issuer.named(at).map_err(OidcError::Misconfigured)
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, OidcError> {
        let known = || self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, metadata)) = &*known()
            && at.elapsed() < FRESH
        {
            return Ok(metadata.clone());
        }
        let tokens = &self.settings.tokens;
        let found = discover(&tokens.issuer, &tokens.trust).await.map_err(unavailable)?;
        let found = Arc::new(found);
        *known() = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    fn note_failure(&self, error: &OidcError) {
        if error.is_of_the_provider() {
            self.note(Some(error.to_string()));
        }
    }

    /// Notes why the provider cannot be asked, or that it can, and logs when that changes.
    fn note(&self, why: Option<String>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match &why {
            Some(why) if failing.as_ref() != Some(why) => warn!("{}: {why}", self.issuer()),
            None if failing.is_some() => info!("{} can be asked again", self.issuer()),
            _ => {}
        }
        *failing = why;
    }
}

fn unavailable(e: std::io::Error) -> OidcError {
    OidcError::Unavailable(e.to_string())
}

#[cfg(test)]
mod tests;
