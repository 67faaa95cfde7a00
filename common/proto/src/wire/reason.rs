//! What the owner of the server revoked, and why, in the owner's words.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{human::misleads, identity::UserName, wire::Code};

/// The owner's reason for a revocation: 1 to [`Reason::LONGEST`] characters, none of which a
/// terminal would obey or hide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(String);

/// A text that cannot be a [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReason {
    #[error("a reason can't be empty")]
    Empty,
    #[error("a reason has at most {} characters", Reason::LONGEST)]
    TooLong,
    #[error("a reason is one line without control characters")]
    Control,
}

impl Reason {
    /// The longest reason, in characters. As the reason phrase of a close it fits into one packet.
    pub const LONGEST: usize = 200;
}

/// That a device may do nothing any more: by itself, or with all that belongs to its user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocation {
    /// The user who was revoked; `None` if the device was.
    pub user: Option<UserName>,
    /// Why, if the owner gave a reason.
    pub reason: Option<Reason>,
}

impl Revocation {
    /// What stands before the user and before the reason in the reason phrase of a close (RFC 9000
    /// section 19.19). Without them the phrase is a sentence of the program.
    const USER: &str = "user: ";
    const REASON: &str = "reason: ";

    /// The reason phrase of a close with [`Code::Revoked`]: a line for the user, and one for the
    /// reason. `None` if there is neither.
    pub fn phrase(&self) -> Option<String> {
        let user = self.user.as_ref().map(|user| format!("{}{user}", Self::USER));
        let reason = self.reason.as_ref().map(|reason| format!("{}{reason}", Self::REASON));
        let lines: Vec<_> = user.into_iter().chain(reason).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// What the reason phrase of a close says. What cannot be shown is left out.
    pub fn from_phrase(phrase: &[u8]) -> Self {
        let text = std::str::from_utf8(phrase).unwrap_or_default();
        let line = |mark| text.split('\n').find_map(|line| line.strip_prefix(mark));
        Self {
            user: line(Self::USER).and_then(|user| user.parse().ok()),
            reason: line(Self::REASON).and_then(|reason| reason.parse().ok()),
        }
    }

    /// How the owner lets `device` in again.
    pub fn cure(&self, device: &str) -> String {
        match &self.user {
            None => {
                format!("to let it in again: run `aditd device restore {device}` on the server")
            }
            Some(user) => {
                format!("to let this user in again: run `aditd user restore {user}` on the server")
            }
        }
    }

    /// What happened to `device` and what to do, in words for the person there.
    pub fn sentence(&self, device: &str) -> String {
        format!("{self}: {}", self.cure(device))
    }
}

/// What happened.
impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            None => f.write_str(Code::Revoked.what())?,
            Some(user) => write!(f, "the user `{user}`, to whom this device belongs, was revoked")?,
        }
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

impl FromStr for Reason {
    type Err = BadReason;

    fn from_str(text: &str) -> Result<Self, BadReason> {
        let text = text.trim();
        match text.chars().count() {
            0 => Err(BadReason::Empty),
            Self::LONGEST.. if text.chars().count() > Self::LONGEST => Err(BadReason::TooLong),
            _ if text.chars().any(misleads) => Err(BadReason::Control),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Reason {
    type Error = BadReason;

    fn try_from(text: String) -> Result<Self, BadReason> {
        text.parse()
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_short_line_that_a_terminal_shows_as_it_is() {
        for (text, expected) in [
            ("left the team", Ok("left the team")),
            (" verloren, am 3. März ", Ok("verloren, am 3. März")),
            ("", Err(BadReason::Empty)),
            (" \t", Err(BadReason::Empty)),
            ("two\nlines", Err(BadReason::Control)),
            ("\u{1b}[2J", Err(BadReason::Control)),
            ("\u{202e}evil", Err(BadReason::Control)),
        ] {
            let parsed = text.parse::<Reason>().map(String::from);
            assert_eq!(parsed, expected.map(str::to_owned), "{text:?}");
        }
        let longest = "漢".repeat(Reason::LONGEST);
        assert!(longest.parse::<Reason>().is_ok());
        assert_eq!(format!("{longest}x").parse::<Reason>(), Err(BadReason::TooLong));
    }

    #[test]
    fn the_phrase_of_a_close_has_the_user_and_the_reason_or_the_programs_own_sentence() {
        let reason: Option<Reason> = Some("lost in a train".parse().expect("a reason"));
        let user: Option<UserName> = Some("alice@example.com".parse().expect("a name"));
        for (user, reason, phrase) in [
            (None, None, None),
            (None, reason.clone(), Some("reason: lost in a train")),
            (user.clone(), None, Some("user: alice@example.com")),
            (user, reason, Some("user: alice@example.com\nreason: lost in a train")),
        ] {
            let revocation = Revocation { user, reason };
            assert_eq!(revocation.phrase().as_deref(), phrase);
            let read = Revocation::from_phrase(phrase.unwrap_or_default().as_bytes());
            assert_eq!(read, revocation, "{phrase:?}");
        }
        for phrase in [
            &b"this device was revoked: to let it in again"[..],
            b"reason: ",
            b"reason: \x1b[2J",
            b"reason: \xff",
            b"user: ",
            b"user: `reboot`",
            b"user: alice\r",
        ] {
            assert_eq!(Revocation::from_phrase(phrase), Revocation::default(), "{phrase:?}");
        }
    }

    #[test]
    fn the_cure_undoes_what_was_revoked() {
        let mut revocation = Revocation::default();
        let told = revocation.sentence("laptop");
        assert!(told.contains("this device was revoked: "), "{told}");
        assert!(told.contains("`aditd device restore laptop`"), "{told}");
        revocation.user = Some("alice".parse().expect("a name"));
        revocation.reason = Some("left".parse().expect("a reason"));
        let told = revocation.sentence("laptop");
        assert!(told.contains("`alice`") && told.contains("was revoked (left): "), "{told}");
        assert!(told.contains("`aditd user restore alice`"), "{told}");
        assert!(!told.contains("device restore"), "{told}");
    }
}
