//! How much time the streams of one session get before others come, and in which order. Names no
//! clock and no runtime.

use std::{collections::VecDeque, time::Duration};

/// How long the streams of a session may work in one turn, together.
const TURN: Duration = Duration::from_micros(25);
/// Once it is used up, work that comes before so much of it has grown again waits for a turn.
/// Otherwise the moment between two pieces of work would be enough for the next one.
const AGAIN: Duration = Duration::from_micros(12);
/// The mean time of a piece of work follows the newest one by one part in this many.
const FOLLOWS: u32 = 8;

/// The share of one session. `W` wakes a stream that waits.
pub(super) struct Share<W> {
    /// How long its streams may still work. It grows while they do not: a session that works for less
    /// than half of the time never waits.
    left: Duration,
    is_used_up: bool,
    /// Until when it has grown, as a time since any fixed moment.
    grown: Duration,
    /// How long a piece of work takes.
    mean: Duration,
    waiting: VecDeque<W>,
    /// The ticket of the first that waits.
    first: u64,
}

/// The place of a stream that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl<W> Default for Share<W> {
    fn default() -> Self {
        Self {
            left: TURN,
            is_used_up: false,
            grown: Duration::ZERO,
            mean: Duration::ZERO,
            waiting: VecDeque::new(),
            first: 0,
        }
    }
}

impl<W> Share<W> {
    /// Whether a stream may work now. If not, it waits behind those that came before it, has a
    /// `ticket`, and is woken by what `waker` makes.
    pub(super) fn may_go(
        &mut self,
        ticket: &mut Option<Ticket>,
        now: Duration,
        waker: impl FnOnce() -> W,
    ) -> bool {
        if let Some(has) = *ticket {
            if has.0 >= self.first {
                // Woken by what it works on, before its turn.
                return false;
            }
            *ticket = None;
            return true;
        }
        self.left = (self.left + now.saturating_sub(self.grown)).min(TURN);
        self.grown = now;
        self.is_used_up &= self.left < AGAIN;
        if self.waiting.is_empty() && !self.is_used_up {
            return true;
        }
        *ticket = Some(Ticket(self.first + self.waiting.len() as u64));
        self.waiting.push_back(waker());
        false
    }

    /// A piece of work took this long, until now.
    pub(super) fn spent(&mut self, took: Duration, now: Duration) {
        self.left = self.left.saturating_sub(took);
        self.is_used_up |= self.left.is_zero();
        self.grown = now;
        self.mean = self.mean - self.mean / FOLLOWS + took / FOLLOWS;
    }

    /// A new turn: returns those whose turn it is, as many as are likely to fit, and at least one.
    /// Empty if nobody waits.
    pub(super) fn next(&mut self, now: Duration) -> Vec<W> {
        (self.left, self.is_used_up, self.grown) = (TURN, false, now);
        let fit = TURN.as_nanos() / self.mean.as_nanos().max(1);
        let count = (fit.max(1) as usize).min(self.waiting.len());
        self.first += count as u64;
        self.waiting.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// What a new stream is told; its number, if it waits.
    fn comes(share: &mut Share<u32>, number: u32, now: Duration) -> Option<Ticket> {
        let mut ticket = None;
        let goes = share.may_go(&mut ticket, now, || number);
        assert_eq!(goes, ticket.is_none());
        ticket
    }

    #[test]
    fn a_session_that_works_less_than_half_of_the_time_never_waits() {
        let (mut share, mut now) = (Share::default(), us(0));
        for number in 0..10_000 {
            assert_eq!(comes(&mut share, number, now), None, "{number}");
            now += TURN / 5;
            share.spent(TURN / 5, now);
            now += TURN / 5 + us(1);
        }
    }

    #[test]
    fn streams_that_are_woken_together_work_for_one_turn_and_then_wait() {
        let (mut share, mut now) = (Share::default(), us(0));
        let went = (0..100).filter(|number| {
            now += us(1);
            let goes = comes(&mut share, *number, now).is_none();
            if goes {
                now += TURN * 3 / 5;
                share.spent(TURN * 3 / 5, now);
            }
            goes
        });
        assert_eq!(went.count(), 2, "the second begins before the time is over");
    }

    #[test]
    fn those_that_wait_go_in_their_order_as_many_as_fit() {
        let mut share = Share::default();
        let now = us(0);
        for _ in 0..64 {
            share.spent(TURN * 2 / 5, now);
        }
        let mut tickets: Vec<_> = (0..10).map(|number| comes(&mut share, number, now)).collect();
        assert!(tickets.iter().all(Option::is_some));
        assert_eq!(share.next(now), [0, 1], "a third would not fit");
        for (number, ticket) in tickets.iter_mut().enumerate() {
            let goes = share.may_go(ticket, now, || unreachable!("it waits already"));
            assert_eq!(goes, number < 2, "{number}");
        }
        // There is time left, but those that waited come before one that is new.
        assert!(comes(&mut share, 10, now).is_some());
        for two in [[2, 3], [4, 5], [6, 7], [8, 9]] {
            assert_eq!(share.next(now), two);
        }
        assert_eq!(share.next(now), [10]);
        assert_eq!(share.next(now), [0; 0]);
        assert_eq!(comes(&mut share, 11, now), None);
    }

    #[test]
    fn work_that_takes_longer_than_a_turn_gets_a_turn_of_its_own() {
        let mut share = Share::default();
        comes(&mut share, 0, us(0));
        for _ in 0..20 {
            share.spent(9 * TURN, us(0));
        }
        let waits = (1..4).map(|number| comes(&mut share, number, us(0)));
        assert!(waits.collect::<Vec<_>>().iter().all(Option::is_some));
        for number in 1..4 {
            assert_eq!(share.next(us(0)), [number]);
        }
    }
}
