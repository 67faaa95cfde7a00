//! Changes of users: the people to whom devices and keys belong.

use common::machine::process::unix_now;
use proto::{identity::Name, wire::Reason};

use super::Changes;
use crate::{
    audit::Event,
    state::register::{KnownUser, UserError},
};

/// A user who was changed.
pub(crate) struct ChangedUser {
    pub(crate) before: KnownUser,
    pub(crate) now: KnownUser,
}

impl Changes<'_> {
    fn changed(&self, before: KnownUser) -> Result<ChangedUser, UserError> {
        let now = self.state.register.find_user(before.name.as_str(), unix_now());
        let now = match now {
            // Nothing belongs to it, and nothing is said of it any more.
            Err(UserError::Unknown { .. }) => Ok(KnownUser::new(before.name.clone())),
            found => found,
        };
        Ok(ChangedUser { now: now?, before })
    }

    /// Ends the access of a user. With `by_token`, also of one whom the register does not know: the
    /// provider's tokens name it.
    pub(crate) fn revoke_user(
        &self,
        name: &str,
        reason: Option<Reason>,
        by_token: bool,
    ) -> Result<ChangedUser, UserError> {
        let user = match self.state.register.find_user(name, unix_now()) {
            Err(UserError::Unknown { text, known }) if by_token => match text.parse() {
                Ok(name) => KnownUser::new(name),
                Err(_) => return Err(UserError::Unknown { text, known }),
            },
            found => found?,
        };
        if user.revoked.is_some() {
            return Err(UserError::AlreadyRevoked(user.name));
        }
        self.state.register.revoke_user(&user.name, reason.as_ref(), unix_now())?;
        self.note(Event::UserRevoke { user: user.name.clone(), reason, uid: self.uid });
        self.changed(user)
    }

    /// Lets a revoked user in again.
    pub(crate) fn restore_user(&self, name: &str) -> Result<ChangedUser, UserError> {
        let user = self.state.register.find_user(name, unix_now())?;
        if user.revoked.is_none() {
            return Err(UserError::NotRevoked(user.name));
        }
        self.state.register.restore_user(&user.name)?;
        self.note(Event::UserRestore { user: user.name.clone(), uid: self.uid });
        self.changed(user)
    }

    /// Gives what belongs to a user another role, which exists.
    pub(crate) fn set_user_role(&self, name: &str, role: &Name) -> Result<ChangedUser, UserError> {
        let user = self.state.register.find_user(name, unix_now())?;
        self.state.register.set_user_role(&user.name, role)?;
        self.note(Event::UserRole {
            user: user.name.clone(),
            role: role.clone(),
            before: user.role.clone(),
            uid: self.uid,
        });
        self.changed(user)
    }
}
