//! The message when two clocks disagree: whose clock is wrong, and both times.

use std::fmt;

use common::{machine::process::unix_now, transport::tls::CertificateTime};
use proto::{
    clock::{self, WrongClock, shown},
    identity::CLOCK_SLACK,
};

/// Two clocks that disagree. Times are in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    here: i64,
    there: There,
}

/// What is known about the server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    /// It shows this time now, and the server itself says that it is wrong.
    Admitted(i64),
    /// It shows this time now.
    Shows(i64),
    /// It showed this time when the server made its certificate, which is not valid yet.
    Showed(i64),
    /// The server's certificate expired at this time.
    Ended(i64),
    /// Nothing.
    Unknown,
}

impl Clocks {
    fn now(there: There) -> Self {
        Self { here: unix_now(), there }
    }

    /// The server has said that its clock is wrong; `there` is the time that it shows.
    pub(crate) fn admitted(there: Option<i64>) -> Self {
        Self::now(there.map_or(There::Unknown, There::Admitted))
    }

    /// The server has just issued a certificate that is valid from `not_before`.
    pub(crate) fn issued(not_before: i64) -> Self {
        Self::now(There::Shows(not_before.saturating_add(CLOCK_SLACK)))
    }

    /// The server's certificate is not valid by this computer's clock.
    pub(crate) fn certificate(time: Option<CertificateTime>) -> Self {
        Self::now(match time {
            Some(CertificateTime::Begins(at)) => There::Showed(at.saturating_add(CLOCK_SLACK)),
            Some(CertificateTime::Ended(at)) => There::Ended(at),
            None => There::Unknown,
        })
    }

    /// Whose clock is wrong.
    pub(crate) fn wrong(&self) -> WrongClock {
        let is_old = |at| at < clock::RELEASED;
        match self.there {
            There::Admitted(_) => WrongClock::There,
            _ if is_old(self.here) => WrongClock::Here,
            There::Shows(at) | There::Ended(at) if is_old(at) => WrongClock::There,
            _ => WrongClock::One,
        }
    }

    /// How to cure it.
    pub(crate) fn hint(&self) -> &'static str {
        match self.wrong() {
            WrongClock::Here => "set this computer's clock: `sudo timedatectl set-ntp true`",
            WrongClock::There => "set the clock on the server: `sudo timedatectl set-ntp true`",
            WrongClock::One => {
                "run `timedatectl` on both computers; on the one whose clock is wrong: `sudo timedatectl set-ntp true`"
            }
        }
    }
}

/// What this computer's clock and the server's show, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BothTimes {
    here: i64,
    there: Option<i64>,
}

impl BothTimes {
    /// The time of this computer now, and what the server has just said, if it has.
    pub(crate) fn now(there: Option<i64>) -> Self {
        Self { here: unix_now(), there }
    }
}

impl fmt::Display for BothTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this computer's clock shows {}", shown(self.here))?;
        match self.there {
            Some(there) => write!(f, ", the server's {}", shown(there)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Clocks {}

impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.wrong() {
            WrongClock::Here => "this computer's clock is wrong",
            WrongClock::There => "the server's clock is wrong",
            WrongClock::One => "this computer's clock or the server's is wrong",
        })?;
        write!(f, ": this computer's shows {}", shown(self.here))?;
        match self.there {
            There::Admitted(at) | There::Shows(at) => write!(f, ", the server's {}", shown(at)),
            There::Showed(at) => {
                write!(f, ", the server's showed {} when it made its certificate", shown(at))
            }
            There::Ended(at) => {
                write!(f, ", and the server's certificate expired at {}", shown(at))
            }
            There::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_clock_is_wrong_is_said_with_both_times() {
        let now = clock::RELEASED + 86_400;
        for (here, there, wrong, times) in [
            (
                now,
                There::Admitted(7),
                WrongClock::There,
                "2026-11-02T00:00:00Z, the server's 1970-01-01T00:00:07Z",
            ),
            (
                7,
                There::Shows(now),
                WrongClock::Here,
                "1970-01-01T00:00:07Z, the server's 2026-11-02T00:00:00Z",
            ),
            (now, There::Shows(7), WrongClock::There, "the server's 1970-01-01T00:00:07Z"),
            (now, There::Shows(2 * now), WrongClock::One, "2026-11-02T00:00:00Z, the server's 20"),
            (7, There::Showed(now), WrongClock::Here, "showed 2026-11-02T00:00:00Z"),
            (now, There::Showed(2 * now), WrongClock::One, "the server's showed 20"),
            (now, There::Ended(7), WrongClock::There, "expired at 1970-01-01T00:00:07Z"),
            (2 * now, There::Ended(now), WrongClock::One, "expired at 2026-11-02T00:00:00Z"),
            (7, There::Unknown, WrongClock::Here, "shows 1970-01-01T00:00:07Z"),
        ] {
            let clocks = Clocks { here, there };
            assert_eq!(clocks.wrong(), wrong, "{clocks}");
            assert!(clocks.to_string().contains(times), "{clocks}");
        }
    }
}
