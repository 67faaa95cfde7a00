//! Why a device, key or token may not make a request, in words for the person who made it.

use proto::{
    identity::Name,
    wire::{Code, Reason, Revocation},
};

use crate::{jwt::TokenFault, record::CallerKind};

/// What an application is told whose key is not, or no longer, valid.
pub(crate) const INVALID_KEY: &str =
    "this key is not valid: it may have ended, or it was revoked or replaced";

/// What an application is told whose key or token is that of a revoked user.
const USER_REVOKED: &str = "the owner of the server has revoked this user";

/// Why a device may not make a request, in words for the person who made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// It is not enrolled, or no longer.
    #[error("adit: {}", .0.sentence())]
    Device(Code),
    /// Its owner has revoked it, or its user.
    #[error("adit: {}", .0.sentence("NAME"))]
    Revoked(Revocation),
    /// Its key has ended, or was revoked or replaced.
    #[error("adit: {INVALID_KEY}")]
    Key,
    /// The owner has revoked the user to whom its key belongs, or whose token it is.
    #[error("adit: {USER_REVOKED}{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    User(Option<Reason>),
    /// The server does not accept tokens, or no longer.
    #[error(
        "adit: this server does not accept tokens: its owner can set `[jwt]` in the configuration"
    )]
    NoTokens,
    /// Its token does not count.
    #[error("adit: the token {0}")]
    Token(#[from] TokenFault),
    /// The token of a request in a tunnel does not allow what its device may.
    #[error("adit: the token of this request has the role `{role}`, which may not {request}")]
    Narrowed {
        role: Name,
        /// The method and path.
        request: String,
    },
    /// Its role has no such route.
    #[error("adit: {kind} `{device}` has the role `{role}`, which may not {request}; {cure}")]
    Role {
        kind: CallerKind,
        device: Name,
        role: Name,
        /// The method and path.
        request: String,
        /// What the owner can do.
        cure: String,
    },
    /// `authorize` has granted a role that does not exist.
    #[error(
        "adit: the server's own rules (`authorize`) grant the role `{role}`, which is not in the server's configuration"
    )]
    Granted { role: Name },
    /// Its role may not use the service.
    #[error(
        "adit: {kind} `{device}` has the role `{role}`, which may not use the service `{service}`, only {services}; the owner of the server \
         can change that: `services` of `[roles.{role}]` in the configuration"
    )]
    Service {
        kind: CallerKind,
        device: Name,
        role: Name,
        service: Name,
        /// The services that it may use.
        services: String,
    },
    /// It may not use the model.
    #[error(
        "adit: {kind} `{device}` (role `{role}`) may not use the model `{model}`, only {models}; the owner of the server can change \
         that: {cure}"
    )]
    Model {
        kind: CallerKind,
        device: Name,
        role: Name,
        model: String,
        /// The models that it may use.
        models: String,
        /// The setting that the owner can change.
        cure: String,
    },
    /// It may use only some models, and the request's model is unknown.
    #[error(
        "adit: {kind} `{device}` (role `{role}`) may use only {models}, and this request {why}; the owner of the server can change \
         that: {cure}"
    )]
    NoModel {
        kind: CallerKind,
        device: Name,
        role: Name,
        /// The models that it may use.
        models: String,
        /// Why the model is unknown.
        why: &'static str,
        /// The setting that the owner can change.
        cure: String,
    },
}
