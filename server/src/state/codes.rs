//! Makes the codes of `aditd invite` and of the API: one for a device, or one that opens sign-ins.

use std::time::Duration;

use proto::{
    identity::{Name, UserName},
    invitation::{Invitation, Secret},
};

use super::{
    State,
    register::{DeviceError, Invited, default_role},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a code lasts if nothing is said, and at the most.
const LIFE: (Duration, Duration) = (Duration::from_secs(600), DAY.saturating_mul(7));
/// The same of a code that opens sign-ins.
const LIFE_OF_SIGN_IN: (Duration, Duration) = (DAY.saturating_mul(30), DAY.saturating_mul(365));
/// The name of a code that opens sign-ins, if none is chosen.
pub(crate) const SIGN_IN: &str = "sso";

/// For what a code is made.
#[derive(Debug, Clone)]
pub(crate) enum Opens {
    /// One device is enrolled, with this role, as one of this person.
    Enrollment { role: Name, user: Option<UserName> },
    /// People sign in. Whoever does has the role and the name that the provider tells.
    SignIn,
}

/// A code that was made.
pub(crate) struct MadeCode {
    /// What the code says. It is a secret.
    pub(crate) invitation: Invitation,
    pub(crate) invited: Invited,
    /// Whether an older invitation of the name was withdrawn.
    pub(crate) withdrew: bool,
}

impl Opens {
    /// How long a code lasts for which `wanted` was asked.
    ///
    /// # Errors
    /// Between which times that has to be.
    pub(crate) fn life(&self, wanted: Option<Duration>) -> Result<Duration, &'static str> {
        let ((default, longest), range) = match self {
            Self::Enrollment { .. } => (LIFE, "an invitation lasts from one second to seven days"),
            Self::SignIn => {
                (LIFE_OF_SIGN_IN, "a code for signing in lasts from one second to 365 days")
            }
        };
        let life = wanted.unwrap_or(default);
        if life.as_secs() == 0 || life > longest { Err(range) } else { Ok(life) }
    }
}

impl State {
    /// Makes a code. An older one of the same name is withdrawn. Blocks.
    ///
    /// # Errors
    /// As [`super::register::Register::add_invitation`].
    pub(crate) fn make_code(
        &self,
        name: Name,
        opens: Opens,
        life: Duration,
        addresses: Vec<String>,
        now: i64,
    ) -> Result<MadeCode, DeviceError> {
        let sso = matches!(opens, Opens::SignIn);
        let (role, user) = match opens {
            Opens::Enrollment { role, user } => (role, user),
            Opens::SignIn => (default_role(), None),
        };
        let expires = now.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
        // Both are of the same moment: a code and its row name one CA.
        let authorities = self.authorities.get();
        let ca = authorities.current().number;
        let invitation = Invitation {
            addresses,
            ca: authorities.signing().key_hash(),
            expires,
            secret: Secret::generate(),
            sign_in: sso,
        };
        let invited = Invited { name, role, user, sso, expires };
        let withdrew = self.register.add_invitation(&invited, &invitation.secret, ca, now)?;
        Ok(MadeCode { invitation, invited, withdrew })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_code_has_its_own_bounds() {
        let of_device = || Opens::Enrollment { role: default_role(), user: None };
        for (opens, wanted, expected) in [
            (of_device(), None, Some(600)),
            (of_device(), Some(Duration::from_millis(900)), None),
            (of_device(), Some(7 * DAY), Some(7 * 86_400)),
            (of_device(), Some(8 * DAY), None),
            (Opens::SignIn, None, Some(30 * 86_400)),
            (Opens::SignIn, Some(365 * DAY), Some(365 * 86_400)),
            (Opens::SignIn, Some(366 * DAY), None),
            (Opens::SignIn, Some(Duration::ZERO), None),
        ] {
            let life = opens.life(wanted).ok();
            assert_eq!(life, expected.map(Duration::from_secs), "{opens:?} {wanted:?}");
        }
    }
}
