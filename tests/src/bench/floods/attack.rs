//! The attacks: what each sends, how fast, and what is true of it whatever the machine.

use std::time::Duration;

/// Something that is done to a server while an honest device uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attack {
    /// The first flood, to a port of the box that no program reads: what the machine itself loses.
    Elsewhere,
    /// Datagrams of random bytes.
    Strange,
    /// First packets of QUIC without a knock.
    Initials,
    /// The first packets of a device, recorded and sent again.
    Replayed,
    /// A device begins handshakes and never goes on.
    HalfOpen,
    /// A device connects again and again.
    Handshakes,
    /// A device sends the heads of requests byte by byte.
    SlowHeads,
    /// A device sends the bodies of requests byte by byte.
    SlowBodies,
    /// A device asks for long answers and never reads them.
    Unread,
    /// A device asks on as many streams as it gets.
    Streams,
}

impl Attack {
    /// All of them, in the order of the table.
    pub(super) const ALL: [Self; 10] = [
        Self::Elsewhere,
        Self::Strange,
        Self::Initials,
        Self::Replayed,
        Self::HalfOpen,
        Self::Handshakes,
        Self::SlowHeads,
        Self::SlowBodies,
        Self::Unread,
        Self::Streams,
    ];

    /// Its name on the command line and in the report.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Elsewhere => "elsewhere",
            Self::Strange => "strange",
            Self::Initials => "initials",
            Self::Replayed => "replayed",
            Self::HalfOpen => "half-open",
            Self::Handshakes => "handshakes",
            Self::SlowHeads => "slow-heads",
            Self::SlowBodies => "slow-bodies",
            Self::Unread => "unread",
            Self::Streams => "streams",
        }
    }

    /// What the table calls it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Elsewhere => "the same datagrams to a port that no program reads",
            Self::Strange => "datagrams of random bytes",
            Self::Initials => "first packets without a knock",
            Self::Replayed => "recorded first packets, again",
            Self::HalfOpen => "handshakes that do not go on, by a device",
            Self::Handshakes => "whole handshakes, by a device",
            Self::SlowHeads => "heads, byte by byte, by a device",
            Self::SlowBodies => "bodies, byte by byte, by a device",
            Self::Unread => "answers that nobody reads, by a device",
            Self::Streams => "requests on 4,096 streams, by a device",
        }
    }

    /// How many datagrams or attempts per second it tries; `None` if as many as it can.
    pub(super) fn per_second(self) -> Option<u64> {
        match self {
            Self::Elsewhere | Self::Strange | Self::Initials | Self::Replayed => Some(50_000),
            Self::HalfOpen => Some(HALF_OPEN_PER_SECOND),
            _ => None,
        }
    }

    /// Whether the one who does it must not get a single datagram back.
    pub(super) fn is_unanswered(self) -> bool {
        matches!(self, Self::Elsewhere | Self::Strange | Self::Initials | Self::Replayed)
    }
}

/// Each costs the attacker a key, and these are made before they are sent.
const HALF_OPEN_PER_SECOND: u64 = 200;

/// How many handshakes are prepared for an attack of this length.
pub(super) fn half_open(during: Duration) -> u64 {
    (during.as_secs_f64() * HALF_OPEN_PER_SECOND as f64).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_of_its_own() {
        for attack in Attack::ALL {
            let same = Attack::ALL.into_iter().filter(|other| other.id() == attack.id());
            assert_eq!(same.count(), 1, "{}", attack.id());
            assert!(!attack.title().is_empty());
        }
    }
}
