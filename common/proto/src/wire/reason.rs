//! Why the owner of the server revoked a device, in the owner's words.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::human::misleads;

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
    /// What stands before it in the reason phrase of a close (RFC 9000 section 19.19). Without it
    /// the phrase is a sentence of the program.
    const MARK: &str = "reason: ";

    /// The reason phrase of a close with `Code::Revoked`.
    pub fn phrase(&self) -> String {
        format!("{}{}", Self::MARK, self.0)
    }

    /// The reason in the reason phrase of a close; `None` if the owner gave none, or if it cannot
    /// be shown.
    pub fn from_phrase(phrase: &[u8]) -> Option<Self> {
        std::str::from_utf8(phrase).ok()?.strip_prefix(Self::MARK)?.parse().ok()
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
    fn the_phrase_of_a_close_has_a_reason_or_the_programs_own_sentence() {
        let reason: Reason = "lost in a train".parse().expect("a reason");
        assert_eq!(Reason::from_phrase(reason.phrase().as_bytes()), Some(reason));
        for phrase in [
            &b""[..],
            b"this device was revoked: to let it in again",
            b"reason: ",
            b"reason: \x1b[2J",
            b"reason: \xff",
        ] {
            assert_eq!(Reason::from_phrase(phrase), None, "{phrase:?}");
        }
    }
}
