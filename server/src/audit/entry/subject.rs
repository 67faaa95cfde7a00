//! Whom a line is about.

use std::net::SocketAddr;

use proto::identity::{DeviceId, Name, UserName};
use serde::Serialize;

use crate::record::{Asker, CallerKind};

/// A device or a key, as each line about it names it.
#[derive(Debug, Clone, Serialize)]
pub struct Subject {
    pub device: Name,
    pub device_id: DeviceId,
    /// The user of this machine who enrolled it over SSH.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_uid: Option<u32>,
    /// It is a key, not a device.
    #[serde(rename = "key", skip_serializing_if = "std::ops::Not::not")]
    pub is_key: bool,
    /// It is a person with a token, not a device.
    #[serde(rename = "token", skip_serializing_if = "std::ops::Not::not")]
    pub is_token: bool,
    /// The person to whom it belongs, if that is known, or whose token it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// `sso` if the person had to sign in at the provider to enroll it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrolled: Option<EnrolledWith>,
}

/// With what a device was enrolled, if lines about it say so.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnrolledWith {
    /// A sign-in at the provider.
    Sso,
}

impl From<&Asker> for Subject {
    fn from(asker: &Asker) -> Self {
        Self {
            device: asker.name.clone(),
            device_id: asker.id,
            device_uid: asker.uid,
            is_key: asker.kind == CallerKind::Key,
            is_token: asker.kind == CallerKind::Token,
            user: asker.user.clone(),
            enrolled: asker.has_signed_in.then_some(EnrolledWith::Sso),
        }
    }
}

/// The other end of a session.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SessionPeer {
    #[serde(flatten)]
    device: Subject,
    carrier: &'static str,
    remote: SocketAddr,
}

impl From<&Asker> for SessionPeer {
    fn from(asker: &Asker) -> Self {
        Self { device: asker.into(), carrier: asker.carrier.as_str(), remote: asker.remote }
    }
}
