//! Redundancy: decides which small datagrams are sent a second time on a link that loses packets.
//! [`super::loss`] decides whether the link does. It names no clock and no socket: it takes times
//! and counts.
//!
//! A lost packet costs a round trip or more. A token is small, so a second copy costs little, and
//! the receiver drops it by its packet number (RFC 9000 section 12.3).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::interactive::{InteractiveData, Protection};

/// Datagrams of this length may be sent twice, in bytes of UDP payload. A shorter one is most
/// likely an acknowledgement, and the next acknowledgement replaces a lost one. A longer one is most
/// likely bulk data, unless interactive data has just been written.
const SMALLEST: usize = 56;
const LARGEST: usize = 1000;
/// A datagram with interactive data may be sent twice up to this length: the longest on the internet.
/// If the peer takes copies of the data alone, those are sent instead of one that is longer than
/// `LARGEST`.
const LARGEST_INTERACTIVE: usize = 1500;
/// What a datagram has besides the data of streams, in bytes.
const OVERHEAD: usize = 60;
/// One small datagram in so many is not sent twice, so that the loss of the link can be measured, but
/// at most one in `LEFT_ALONE_EVERY`: ten losses a second would tell no more than one.
const LEFT_ALONE: u64 = 8;
const LEFT_ALONE_EVERY: Duration = Duration::from_millis(100);
/// The headers of IP and UDP, in bytes.
const HEADERS: usize = 28;
/// QUIC declares a datagram lost when three later ones have arrived (RFC 9002 section 6.1.1), or
/// when one later one has arrived and 9/8 of a round trip have passed (section 6.1.2).
const LATER_DATAGRAMS: u64 = 3;
const LATER_TIME: u32 = 8;

/// A path on which small datagrams are sent twice, and larger ones if they carry interactive data.
#[derive(Debug, Clone)]
pub struct ProtectedPath {
    /// Where its datagrams go.
    pub to: std::net::SocketAddr,
    /// How they are protected.
    pub protection: Protection,
    /// What the connection on this path has written.
    pub interactive: Arc<InteractiveData>,
}

/// Decides for each datagram of one protected path.
#[derive(Debug)]
pub(super) struct PathRepeats {
    protection: Protection,
    interactive: Arc<InteractiveData>,
    /// Datagrams that were sent so far, and those worth a copy since one of them was left alone.
    sent: u64,
    small: u64,
    /// When the last small datagram was left alone.
    left_alone: Option<Instant>,
    /// Copies that were sent so soon that QUIC did not notice the loss of the first datagram.
    pub(super) hidden: u64,
}

/// A datagram that is to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) at: Instant,
    /// Its number among all datagrams on the path.
    number: u64,
}

impl PathRepeats {
    pub(super) fn new(
        now: Instant,
        protection: Protection,
        interactive: Arc<InteractiveData>,
    ) -> Self {
        // What was written while the path was not protected has been sent.
        interactive.take_unsent();
        interactive.protect(now, protection);
        Self { protection, interactive, sent: 0, small: 0, left_alone: None, hidden: 0 }
    }

    /// Replaces the protection from `now` on.
    pub(super) fn set(&mut self, now: Instant, protection: Protection) {
        self.interactive.protect(now, protection);
        self.protection = protection;
    }

    /// Whether it is the path of this connection.
    pub(super) fn is_of(&self, connection: &Arc<InteractiveData>) -> bool {
        Arc::ptr_eq(&self.interactive, connection)
    }

    /// It is not protected any more.
    pub(super) fn unprotect(&self) {
        self.interactive.unprotect();
    }

    /// Datagrams are sent now: `bytes` bytes, each datagram of `segment` bytes but the last, which may
    /// be shorter. Returns for each whether and when it is to be sent again. Those after the returned
    /// ones are not.
    pub(super) fn sent(
        &mut self,
        now: Instant,
        bytes: usize,
        segment: usize,
    ) -> Vec<Option<Again>> {
        let datagrams = bytes.div_ceil(segment);
        let mut interactive = self.interactive.take_unsent();
        let mut again = Vec::new();
        for number in 0..datagrams {
            if !is_small(segment) && interactive == 0 {
                self.sent += (datagrams - number) as u64;
                break;
            }
            let len = segment.min(bytes - number * segment);
            again.push(self.sent_one(now, len, interactive > 0));
            if len >= SMALLEST {
                interactive = interactive.saturating_sub((len - OVERHEAD.min(len)) as u64);
            }
        }
        self.interactive.still_unsent(interactive);
        again
    }

    fn sent_one(&mut self, now: Instant, len: usize, is_interactive: bool) -> Option<Again> {
        self.sent += 1;
        let largest = if is_interactive { LARGEST_INTERACTIVE } else { LARGEST };
        if !(SMALLEST..=largest).contains(&len) {
            return None;
        }
        // What bulk data has filled is long, and little of it is interactive.
        if is_interactive && len > LARGEST && self.interactive.leaves_in_full(now) {
            return None;
        }
        self.small += 1;
        let rested = self.left_alone.is_none_or(|at| now - at >= LEFT_ALONE_EVERY);
        if self.small >= LEFT_ALONE && rested {
            (self.small, self.left_alone) = (0, Some(now));
            return None;
        }
        let is_paid = self.interactive.spend(now, (len + HEADERS) as u64);
        is_paid.then_some(Again { at: now + self.protection.after, number: self.sent })
    }

    /// A datagram of the handshake is sent now.
    pub(super) fn sent_in_handshake(&mut self, datagrams: usize) {
        self.sent += datagrams as u64;
    }

    /// The copy has been sent.
    pub(super) fn sent_again(&mut self, copy: Again) {
        let Protection { after, round_trip, .. } = self.protection;
        let hides = match self.sent.saturating_sub(copy.number) {
            0 => true,
            later => later < LATER_DATAGRAMS && after < round_trip / LATER_TIME,
        };
        self.hidden += u64::from(hides);
    }
}

/// Whether a datagram of so many bytes may be sent twice.
fn is_small(len: usize) -> bool {
    (SMALLEST..=LARGEST).contains(&len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_datagrams_are_sent_again() {
        let now = Instant::now();
        for (len, again) in
            [(0, false), (40, false), (72, true), (300, true), (1001, false), (1452, false)]
        {
            let mut path = path(now, protection(1_000_000));
            let expected = again.then(|| Again { at: now + AFTER, number: 1 });
            assert_eq!(one(&mut path, now, len), expected, "{len} bytes");
        }
    }

    #[test]
    fn a_datagram_with_interactive_data_is_sent_again_at_any_length() {
        for (written, segment, datagrams, again) in [
            // Bytes written; the batch; which of its datagrams are sent again.
            (0, 1452, 10, vec![]),
            (150, 1452, 10, vec![true]),
            (2_000, 1452, 10, vec![true, true]),
            (150, 1452, 1, vec![true]),
            // Acknowledgements carry nothing.
            (150, 40, 1, vec![]),
            (150, 9_000, 3, vec![false]),
            (0, 300, 2, vec![true, true]),
        ] {
            let now = Instant::now();
            let written_bytes = Arc::new(InteractiveData::default());
            let mut path = PathRepeats::new(now, protection(1_000_000), written_bytes.clone());
            written_bytes.add(written + 7);
            written_bytes.remove(7);
            let sent: Vec<_> =
                path.sent(now, segment * datagrams, segment).iter().map(Option::is_some).collect();
            let told = again.iter().chain(&[false]).take(sent.len()).copied();
            assert!(sent.len() <= again.len().max(1), "{written}, {segment}: {sent:?}");
            assert_eq!(sent, told.collect::<Vec<_>>(), "{written} in {datagrams} of {segment}");
            // What an acknowledgement did not carry is in the next datagram.
            let next = one(&mut path, now, 1452).is_some();
            assert_eq!(next, written > 0 && segment == 40, "{written} in {datagrams} of {segment}");
        }
    }

    /// A path with one connection that writes nothing interactive.
    fn path(now: Instant, protection: Protection) -> PathRepeats {
        PathRepeats::new(now, protection, Arc::default())
    }

    /// One datagram of `len` bytes is sent.
    fn one(path: &mut PathRepeats, now: Instant, len: usize) -> Option<Again> {
        path.sent(now, len, len.max(1)).pop().flatten()
    }

    const AFTER: Duration = Duration::from_millis(5);

    fn protection(budget: u64) -> Protection {
        Protection { after: AFTER, round_trip: 10 * AFTER, budget, loss: 0.01 }
    }

    #[test]
    fn a_copy_hides_a_loss_unless_quic_has_noticed_it_before() {
        for (long, small, round_trip, hidden) in [
            // datagrams before the copy is sent, the round trip in copies' delays
            (0, 0, 10, 1),
            (1, 0, 10, 1),
            (1, 1, 10, 1),
            (1, 2, 10, 0),
            (44, 0, 10, 0),
            (0, 0, 1, 1),
            (0, 1, 8, 0),
            (1, 0, 1, 0),
        ] {
            let now = Instant::now();
            let protection = Protection { round_trip: round_trip * AFTER, ..protection(1_000_000) };
            let mut path = path(now, protection);
            path.sent(now, 7 * 1452, 1452);
            let copy = one(&mut path, now, 100).expect("it is sent twice");
            path.sent(now, long * 1452, 1452);
            for _ in 0..small {
                one(&mut path, now, 100);
            }
            path.sent_again(copy);
            assert_eq!(path.hidden, hidden, "{long} long and {small} small, {round_trip}");
        }
    }

    #[test]
    fn copies_keep_within_their_budget_and_leave_some_datagrams_alone() {
        let (begin, budget) = (Instant::now(), 10_000);
        let repeated = |every: Duration| {
            let mut path = path(begin, protection(budget));
            let sent = (10.0 / every.as_secs_f64()) as u32;
            let copies = (0..sent).filter(|i| one(&mut path, begin + every * *i, 72).is_some());
            (copies.count(), sent as usize)
        };
        // 100 bytes each with their headers.
        let (copies, sent) = repeated(Duration::from_millis(50));
        assert_eq!(copies, sent - sent / 8);
        let mut path = path(begin, protection(1_000_000));
        let each = |i: &u64| one(&mut path, begin + Duration::from_millis(*i), 72).is_none();
        let left = (0..10_000).filter(each);
        assert!((95..=105).contains(&left.count()), "of many, ten a second");
        let (copies, sent) = repeated(Duration::from_millis(1));
        assert!(
            sent == 10_000 && (950..=1_030).contains(&copies),
            "{copies} copies in ten seconds"
        );
    }
}
