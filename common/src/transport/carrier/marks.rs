//! Decides whether packets carry ECN marks (RFC 3168). Some networks silently drop packets with
//! marks. It names no clock and no socket.

use std::{
    collections::{HashSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// A first packet that is not answered within this time may have been dropped because of its mark.
/// It is just less than QUIC's first probe time-out (RFC 9002 section 6.2.2), so that the probe is
/// sent without a mark.
const UNANSWERED: Duration = Duration::from_millis(900);
/// A packet that arrives within this time after one was sent without a mark may be the answer to
/// it.
const ANSWERED: Duration = Duration::from_millis(700);
/// If the answer to a packet without a mark comes later than this after the first packet, the path may
/// have been dead until then, and the marks are not to blame.
const CERTAIN: Duration = Duration::from_secs(2);
/// The most addresses that are remembered.
const REMEMBERED: usize = 4096;

/// Whether a carrier sends marks. Until the first answer it alternates between marks and none; then
/// it keeps the choice that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// Nothing has arrived yet.
    Untried {
        /// When the first packet was sent.
        first: Option<Instant>,
        /// When the last one without a mark was sent.
        unmarked: Option<Instant>,
    },
    /// With marks.
    With,
    /// Without them: packets with marks were not answered.
    Without,
    /// Without them: nothing was answered for a while, and then a packet without a mark was.
    Unsure,
}

impl Marks {
    /// Nothing has been sent yet.
    pub const NEW: Self = Self::Untried { first: None, unmarked: None };

    /// Whether a packet that is sent now carries a mark, if QUIC wants one.
    pub(super) fn send(&mut self, now: Instant, wanted: bool) -> bool {
        match self {
            Self::Untried { first, unmarked } => {
                let tried = now.saturating_duration_since(*first.get_or_insert(now));
                let marked =
                    wanted && (tried.as_millis() / UNANSWERED.as_millis()).is_multiple_of(2);
                if !marked {
                    *unmarked = Some(now);
                }
                marked
            }
            Self::With => wanted,
            Self::Without | Self::Unsure => false,
        }
    }

    /// A packet has arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        if let Self::Untried { first, unmarked } = self {
            let answered = unmarked.is_some_and(|sent| now - sent < ANSWERED);
            let certain = first.is_some_and(|first| now - first < CERTAIN);
            *self = match (answered, certain) {
                (false, _) => Self::With,
                (true, true) => Self::Without,
                (true, false) => Self::Unsure,
            };
        }
    }
}

/// The addresses whose last packet carried no mark: packets to them carry none either.
///
/// A peer that sends no marks has most likely noticed that they are dropped.
#[derive(Debug, Default)]
pub struct Unmarked {
    addresses: HashSet<SocketAddr>,
    /// The same addresses, oldest first.
    order: VecDeque<SocketAddr>,
}

impl Unmarked {
    /// A packet has arrived from this address, with a mark or without.
    pub fn heard(&mut self, from: SocketAddr, marked: bool) {
        if marked {
            self.addresses.remove(&from);
        } else if self.addresses.insert(from) {
            self.order.push_back(from);
            // An address may be in this list twice, or send marks again. Then it is forgotten
            // early, and is added again with its next packet.
            while self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.addresses.remove(&oldest);
            }
        }
    }

    /// Whether packets to this address carry no mark.
    pub fn contains(&self, to: SocketAddr) -> bool {
        self.addresses.contains(&to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_answered_with_marks_is_tried_without_them() {
        let began = Instant::now();
        let mut marks = Marks::NEW;
        // The time at which QUIC sends its first packet again.
        for (ms, marked) in [(0, true), (1_000, false), (3_000, false), (7_000, false)] {
            assert_eq!(marks.send(began + Duration::from_millis(ms), true), marked, "{ms} ms");
        }
    }

    #[test]
    fn what_was_answered_stays() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        // The last is sent with a mark, and the answer is to one without.
        for (sent, heard, stays) in [
            (&[0][..], 20, true),
            (&[0], 890, true),
            (&[0, 1_000], 1_020, false),
            (&[0, 1_000, 1_790, 1_801], 1_850, false),
            (&[0, 1_000, 1_801, 1_900], 1_920, true),
        ] {
            let mut marks = Marks::NEW;
            for ms in sent {
                marks.send(at(*ms), true);
            }
            marks.heard(at(heard));
            assert_eq!(marks.send(at(9_999), true), stays, "{sent:?}, heard at {heard} ms");
        }
    }

    #[test]
    fn marks_are_not_blamed_for_a_path_that_was_dead() {
        let began = Instant::now();
        for (unmarked, certain) in [(1_000, Marks::Without), (3_000, Marks::Unsure)] {
            let mut marks = Marks::NEW;
            marks.send(began, true);
            assert!(!marks.send(began + Duration::from_millis(unmarked), true));
            marks.heard(began + Duration::from_millis(unmarked + 20));
            assert_eq!(marks, certain);
        }
    }

    #[test]
    fn whoever_sends_no_marks_gets_none_until_marks_come_again() {
        let [here, there] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| SocketAddr::from((ip, 1)));
        let mut unmarked = Unmarked::default();
        unmarked.heard(here, false);
        unmarked.heard(there, true);
        assert!(unmarked.contains(here) && !unmarked.contains(there));
        unmarked.heard(here, true);
        assert!(!unmarked.contains(here));
    }

    #[test]
    fn strangers_that_send_from_everywhere_make_nothing_grow() {
        let mut unmarked = Unmarked::default();
        for port in 1..=u16::MAX {
            let from = SocketAddr::from(([192, 0, 2, 1], port));
            unmarked.heard(from, false);
            unmarked.heard(from, port % 2 == 0);
            assert!(unmarked.contains(from) != (port % 2 == 0));
        }
        assert!(unmarked.addresses.len() <= REMEMBERED && unmarked.order.len() <= REMEMBERED);
    }
}
