//! Who makes a request: a device by its certificate, an application by its key, or a person by a
//! token.

use proto::{
    api_key::KeyPrefix,
    identity::{Certificate, DeviceId, Name, UserName},
    ollama::model::ModelPattern,
    wire::Code,
};

use super::Denied;
use crate::{
    jwt::{TokenHolder, Tokens},
    record::CallerKind,
    state::register::{Snapshot, default_role},
};

/// Who makes a request, as it has proved it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Caller<'a> {
    /// The holder of this certificate, which TLS has verified.
    Device(&'a Certificate),
    /// The holder of this secret of a key, whose hash was compared.
    Key {
        id: DeviceId,
        /// The beginning of the secret.
        prefix: &'a KeyPrefix,
    },
    /// The holder of a token that the provider has signed, which was verified.
    Token(&'a TokenHolder),
}

/// What the register says of a caller.
pub(super) struct Registered<'s> {
    pub(super) kind: CallerKind,
    pub(super) id: DeviceId,
    pub(super) name: &'s Name,
    pub(super) role: &'s Name,
    pub(super) models: Option<&'s [ModelPattern]>,
    pub(super) uid: Option<u32>,
    pub(super) user: Option<&'s UserName>,
    pub(super) has_signed_in: bool,
}

impl<'a> Caller<'a> {
    /// What the register and the settings of tokens say of it.
    ///
    /// # Errors
    /// [`Denied::Device`], [`Denied::Revoked`], [`Denied::User`], [`Denied::Key`] or [`Denied::Token`]
    /// if it may do nothing any more.
    pub(super) fn registered<'s>(
        &self,
        snapshot: &'s Snapshot,
        tokens: Option<&'s Tokens>,
    ) -> Result<Registered<'s>, Denied>
    where
        'a: 's,
    {
        match self {
            Self::Device(certificate) => {
                let id = certificate.device.ok_or(Denied::Device(Code::Revoked))?;
                let device = snapshot.judge(id, certificate.key).map_err(|code| {
                    let revocation = snapshot.revocation(id, certificate.key);
                    match revocation.filter(|_| code == Code::Revoked) {
                        Some(revocation) => Denied::Revoked(revocation),
                        None => Denied::Device(code),
                    }
                })?;
                Ok(Registered {
                    kind: CallerKind::Device,
                    id,
                    name: &device.name,
                    role: &device.role,
                    models: device.models.as_deref(),
                    uid: device.uid,
                    user: device.user.as_ref(),
                    has_signed_in: device.sign_in.is_some(),
                })
            }
            Self::Key { id, prefix } => {
                let key = snapshot.admits_key(*id, prefix).ok_or(Denied::Key)?;
                if let Some(revoked) = snapshot.revoked_user(key.user.as_ref()) {
                    return Err(Denied::User(revoked.reason.clone()));
                }
                Ok(Registered {
                    kind: CallerKind::Key,
                    id: *id,
                    name: &key.name,
                    role: &key.role,
                    models: key.models.as_deref(),
                    uid: None,
                    user: key.user.as_ref(),
                    has_signed_in: false,
                })
            }
            Self::Token(holder) => {
                let role = tokens.ok_or(Denied::NoTokens)?.role(holder)?;
                if let Some(revoked) = snapshot.revoked_user(Some(&holder.user)) {
                    return Err(Denied::User(revoked.reason.clone()));
                }
                Ok(Registered {
                    kind: CallerKind::Token,
                    id: holder.id,
                    name: &holder.name,
                    role,
                    models: None,
                    uid: None,
                    user: Some(&holder.user),
                    has_signed_in: false,
                })
            }
        }
    }

    /// Its role; the default role if it may do nothing any more.
    pub(super) fn role(&self, snapshot: &Snapshot, tokens: Option<&Tokens>) -> Name {
        self.registered(snapshot, tokens)
            .map_or_else(|_| default_role(), |caller| caller.role.clone())
    }
}
