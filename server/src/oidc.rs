//! Sign-in at an OpenID Provider: the server asks the provider, with its own client secret, and the
//! person signs in at a browser.
//!
//! Written on `reqwest` and `jsonwebtoken`, which judge tokens already: the crate `openidconnect`
//! would bring RustCrypto's `rsa`, `p256` and `ed25519-dalek` beside aws-lc-rs, and no device grant
//! that knows its `slow_down` without a clock of its own.

mod answer;
mod error;
mod grant;
mod id_token;
mod pkce;
mod polling;
mod provider;
mod settings;

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) use self::{
    error::OidcError,
    grant::{BrowserGrant, Grant},
    provider::{NotConfirmed, OidcStatus, Person, Provider},
    settings::{ClientSecret, Flow, MAX_LIFE, OidcSettings, max_life},
};

/// How many people may be signing in at once.
const MOST_SIGN_INS: usize = 64;

/// The provider by the settings that are in force.
pub(crate) struct SignIns {
    provider: RwLock<Option<Arc<Provider>>>,
    slots: Semaphore,
}

impl SignIns {
    pub(crate) fn new(settings: Option<OidcSettings>) -> Self {
        let provider = settings.map(Provider::new).map(Arc::new);
        Self { provider: RwLock::new(provider), slots: Semaphore::new(MOST_SIGN_INS) }
    }

    /// The provider; `None` if none is configured.
    pub(crate) fn provider(&self) -> Option<Arc<Provider>> {
        self.provider.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other settings in force. Unchanged ones keep what is known of the provider.
    pub(crate) fn set(&self, settings: Option<OidcSettings>) {
        let now = self.provider();
        if now.as_ref().map(|now| now.settings()) != settings.as_ref() {
            let made = settings.map(Provider::new).map(Arc::new);
            *self.provider.write().unwrap_or_else(PoisonError::into_inner) = made;
        }
    }

    /// The right of one person to sign in now; `None` while too many do.
    pub(crate) fn slot(&self) -> Option<SemaphorePermit<'_>> {
        self.slots.try_acquire().ok()
    }
}
