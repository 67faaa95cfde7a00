//! What both ends say while a person signs in at the provider, between the request to enroll and its
//! answer.

use serde::{Deserialize, Serialize};

use crate::identity::Name;

/// What a device sends with a code that opens a sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignInRequest {
    /// What the device wants to be called.
    pub device: Name,
    /// The TCP port of 127.0.0.1 at which the device waits for the browser (RFC 8252 section 7.3).
    /// Absent if it has no browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_port: Option<u16>,
}

/// What the person has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignInStep {
    /// Open this page in any browser, and type the code there (RFC 8628 section 3.3).
    Device {
        url: String,
        /// A page that has the code already, if the provider has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        complete_url: Option<String>,
        code: String,
        /// How long the code is valid, in seconds.
        expires_in: u64,
    },
    /// Open this page in a browser of this computer, which is sent back to the device's port (RFC
    /// 8252). The device answers with a [`RedirectAnswer`].
    Browser {
        url: String,
        /// What the browser has to bring back (RFC 6749 section 10.12).
        state: String,
        /// How long the server waits, in seconds.
        expires_in: u64,
    },
}

/// What the browser has brought to the device's port. The device has compared the state.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectAnswer {
    /// The person has signed in.
    Code {
        /// The authorization code (RFC 6749 section 4.1.2). Without the server's code verifier (RFC
        /// 7636) it is worth nothing.
        code: String,
        /// Who has issued it, if the provider says so (RFC 9207).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        iss: Option<String>,
    },
    /// The provider has sent an error (RFC 6749 section 4.1.2.1).
    Error {
        error: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<String>,
    },
}
