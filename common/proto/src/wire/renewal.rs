//! What a device gets when it renews its certificate.

use serde::{Deserialize, Serialize};

use crate::knock::KnockKey;

/// The answer to [`super::StreamHead::Renew`].
#[derive(Debug, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// The new certificate, DER in base64.
    pub certificate: String,
    /// As [`super::Hello::epoch`], as of now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Present if another CA than the one that the session began with has signed the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_ca: Option<NewCa>,
}

/// What a device stores together with the first certificate of a new CA, in place of what it had: all
/// of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCa {
    /// The CA's certificate, DER in base64.
    pub ca: String,
    /// The key for this device's knocks. It goes with the CA: by the knock the server knows which
    /// certificate of its own it has to show.
    #[serde(rename = "door_key")]
    pub knock_key: KnockKey,
}
