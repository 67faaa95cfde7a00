//! What `authorize` is asked.

use hyper::header::{HeaderName, HeaderValue};
use proto::{
    http1::fields,
    identity::{DeviceId, Name, UserName},
};
use serde::{Deserialize, Serialize};

use crate::record::{Asker, CallerKind};

/// When the service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum At {
    /// When a device enrolls.
    Enroll,
    /// Before each request.
    Request,
}

/// How a device came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// By the code of an invitation.
    Code,
    /// Over SSH, by a user of this machine.
    Ssh,
    /// With a sign-in at the provider.
    Sso,
    /// It is a key, and no device.
    Key,
    /// It is a person with a token, and no device.
    Token,
}

impl How {
    /// How the caller of a request came to be known.
    pub fn of(asker: &Asker) -> Self {
        match (asker.kind, asker.uid) {
            (CallerKind::Key, _) => Self::Key,
            (CallerKind::Token, _) => Self::Token,
            (CallerKind::Device, _) if asker.has_signed_in => Self::Sso,
            (CallerKind::Device, Some(_)) => Self::Ssh,
            (CallerKind::Device, None) => Self::Code,
        }
    }
}

/// Header fields of an application's request. `Debug` shows none of their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Fields(Vec<(HeaderName, HeaderValue)>);

impl Fields {
    /// The fields of these names in a head that was parsed. A value that no field may have is left
    /// out.
    pub fn of(head: &[u8], names: &[HeaderName]) -> Self {
        let named = names.iter().flat_map(|name| {
            fields::values(head, name.as_str()).filter_map(move |value| {
                let mut value = HeaderValue::from_bytes(value).ok()?;
                value.set_sensitive(true);
                Some((name.clone(), value))
            })
        });
        Self(named.collect())
    }

    /// Name and value of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }

    fn len(&self) -> usize {
        self.0.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
    }
}

/// The question, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Question {
    pub at: At,
    pub device: Name,
    /// The device's id, if it has one already.
    pub device_id: Option<DeviceId>,
    /// The user of this machine who enrolls or has enrolled it over SSH.
    pub device_uid: Option<u32>,
    /// How the device enrolls or has enrolled, or that it is a key, over HTTPS.
    pub enrolled: How,
    /// Whether it is a key, over HTTPS, and no device.
    pub key: bool,
    /// Whether it is a person with a token, over HTTPS, and no device.
    pub token: bool,
    /// The person to whom it belongs, if that was said.
    pub user: Option<UserName>,
    pub role: Name,
    /// The service that the request is for.
    pub service: Option<Name>,
    pub method: Option<Box<str>>,
    /// The request's path, without its query.
    pub path: Option<Box<str>>,
    /// Path and query, as the application has sent them.
    pub uri: Option<Box<str>>,
    /// The model that the request names.
    pub model: Option<String>,
    /// All models, if the request names several.
    pub models: Vec<String>,
    /// The header fields that `authorize_headers` names, as the application has sent them. They are
    /// header fields of the question, too.
    #[serde(skip)]
    pub fields: Fields,
}

impl Question {
    /// The question whether a device may enroll.
    pub fn enrolling(
        device: Name,
        enrolled: How,
        device_uid: Option<u32>,
        user: Option<UserName>,
        role: Name,
    ) -> Self {
        Self {
            at: At::Enroll,
            device,
            device_id: None,
            device_uid,
            enrolled,
            key: false,
            token: false,
            user,
            role,
            service: None,
            method: None,
            path: None,
            uri: None,
            model: None,
            models: Vec::new(),
            fields: Fields::default(),
        }
    }

    /// How many bytes of the question the application has written.
    pub(super) fn written(&self) -> usize {
        let Self { method, path, uri, model, fields, .. } = self;
        let texts = [method.as_deref(), path.as_deref(), uri.as_deref(), model.as_deref()];
        let models = self.models.iter().map(String::as_str);
        let own: usize = texts.into_iter().flatten().chain(models).map(str::len).sum();
        own + fields.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::CarrierKind;

    #[test]
    fn it_is_told_how_a_caller_came_to_be_known() {
        use CallerKind::{Device, Key, Token};
        for (kind, uid, has_signed_in, how) in [
            (Device, None, false, How::Code),
            (Device, Some(1000), false, How::Ssh),
            (Device, None, true, How::Sso),
            (Key, None, false, How::Key),
            (Token, None, false, How::Token),
        ] {
            let asker = Asker {
                id: 1.into(),
                name: "laptop".parse().expect("a name"),
                uid,
                kind,
                user: None,
                has_signed_in,
                remote: ([127, 0, 0, 1], 1).into(),
                carrier: CarrierKind::Udp,
            };
            assert_eq!(How::of(&asker), how);
        }
        assert_eq!(serde_json::to_value(How::Sso).expect("JSON"), "sso");
    }

    #[test]
    fn only_the_named_fields_are_taken_and_their_values_are_never_shown() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nAUTHORIZATION: Bearer s3cret\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n";
        let names = [HeaderName::from_static("authorization"), HeaderName::from_static("cookie")];
        let fields = Fields::of(head, &names);
        let all: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        assert_eq!(
            all,
            [("authorization", &b"Bearer s3cret"[..]), ("cookie", b"a=1"), ("cookie", b"b=2")]
        );
        assert!(!format!("{fields:?}").contains("s3cret"), "{fields:?}");
        assert!(Fields::of(head, &[]).iter().next().is_none());
    }
}
