//! A sign-in that is under way.

use std::time::{Duration, Instant};

use proto::wire::SignInStep;
use zeroize::Zeroizing;

use super::{
    answer::{DeviceAnswer, LONGEST_WAIT},
    pkce::Binding,
    polling::Polling,
};

/// A sign-in that is under way, by one of the two ways.
pub(crate) enum Grant {
    Device(DeviceGrant),
    Browser(BrowserGrant),
}

/// A person types a code at any browser (RFC 8628).
pub(crate) struct DeviceGrant {
    pub(super) answer: DeviceAnswer,
    pub(super) polling: Polling,
    pub(super) begun: Instant,
}

/// A browser of the device is sent back to it (RFC 8252).
pub(crate) struct BrowserGrant {
    pub(super) binding: Binding,
    url: String,
}

impl DeviceGrant {
    pub(super) fn new(answer: DeviceAnswer) -> Self {
        let seconds = Duration::from_secs;
        let polling =
            Polling::new(seconds(answer.interval), seconds(answer.expires_in), Duration::ZERO);
        Self { answer, polling, begun: Instant::now() }
    }

    /// What the person has to do.
    pub(crate) fn step(&self) -> SignInStep {
        SignInStep::Device {
            url: self.answer.url.clone(),
            complete_url: self.answer.complete_url.clone(),
            code: self.answer.user_code.clone(),
            expires_in: self.answer.expires_in,
        }
    }

    pub(super) fn code(&self) -> &Zeroizing<String> {
        &self.answer.device_code
    }
}

impl BrowserGrant {
    /// How long the browser may take.
    pub(crate) const WITHIN: Duration = Duration::from_secs(LONGEST_WAIT);

    pub(super) fn new(binding: Binding, url: String) -> Self {
        Self { binding, url }
    }

    /// What the person has to do.
    pub(crate) fn step(&self) -> SignInStep {
        SignInStep::Browser {
            url: self.url.clone(),
            state: self.binding.state.clone(),
            expires_in: LONGEST_WAIT,
        }
    }
}
