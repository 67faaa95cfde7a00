//! How many wrong keys an address may send. The times are those of a clock that the caller brings.

use std::time::Duration;

use proto::identity::DeviceId;

use super::places::Origin;
use crate::ingress::admission::recent::Recent;

/// How many wrong keys may come at once.
const BURST: f64 = 10.0;
/// After this time one more may come.
const EVERY: Duration = Duration::from_secs(10);
/// How many addresses are remembered at least; twice as many at the most.
const ADDRESSES: usize = 4096;
/// How many callers of one address are remembered.
const CALLERS: usize = 16;

/// The wrong keys of each address.
#[derive(Debug)]
pub(super) struct Guesses(Recent<Origin, Guesser>);

#[derive(Debug, Default)]
struct Guesser {
    /// Wrong keys, less those that time has forgiven.
    wrong: f64,
    at: Duration,
    /// Keys that were valid from this address. They are let in while others guess beside them.
    callers: Vec<DeviceId>,
}

impl Guesser {
    fn forgive(&mut self, now: Duration) {
        let forgiven = now.saturating_sub(self.at).as_secs_f64() / EVERY.as_secs_f64();
        (self.wrong, self.at) = ((self.wrong - forgiven).max(0.0), now);
    }
}

impl Default for Guesses {
    fn default() -> Self {
        Self(Recent::new(ADDRESSES))
    }
}

impl Guesses {
    /// How long an address has to wait before another key of it is looked at; `None` if it need not.
    pub(super) fn wait(&mut self, from: Origin, now: Duration) -> Option<Duration> {
        let guesser = self.0.get_mut(&from)?;
        guesser.forgive(now);
        let too_many = guesser.wrong - (BURST - 1.0);
        (too_many > 0.0).then(|| EVERY.mul_f64(too_many))
    }

    /// Counts a wrong key.
    pub(super) fn wrong(&mut self, from: Origin, now: Duration) {
        match self.0.get_mut(&from) {
            Some(guesser) => {
                guesser.forgive(now);
                guesser.wrong = (guesser.wrong + 1.0).min(BURST);
            }
            None => self.0.put(from, Guesser { wrong: 1.0, at: now, callers: Vec::new() }),
        }
    }

    /// Remembers a caller whose key was valid.
    pub(super) fn right(&mut self, from: Origin, caller: DeviceId, now: Duration) {
        match self.0.get_mut(&from) {
            Some(guesser) if guesser.callers.contains(&caller) => {}
            Some(guesser) => {
                if guesser.callers.len() == CALLERS {
                    guesser.callers.remove(0);
                }
                guesser.callers.push(caller);
            }
            None => self.0.put(from, Guesser { wrong: 0.0, at: now, callers: vec![caller] }),
        }
    }

    /// Whether this caller's key was valid from this address before.
    pub(super) fn knows(&mut self, from: Origin, caller: DeviceId) -> bool {
        self.0.get_mut(&from).is_some_and(|guesser| guesser.callers.contains(&caller))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn from(text: &str) -> Origin {
        text.parse::<IpAddr>().expect("an address").into()
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn ten_guesses_are_looked_at_and_then_one_in_ten_seconds() {
        let mut guesses = Guesses::default();
        let (bad, other) = (from("10.0.0.1"), from("10.0.0.2"));
        let looked_at = (0..300).filter(|_| match guesses.wait(bad, at(0)) {
            None => {
                guesses.wrong(bad, at(0));
                true
            }
            Some(wait) => {
                assert!(wait <= EVERY, "{wait:?}");
                false
            }
        });
        assert_eq!(looked_at.count(), 10);
        assert_eq!(guesses.wait(other, at(0)), None, "another address is not concerned");
        assert_eq!(guesses.wait(bad, at(5)), Some(at(5)));
        assert_eq!(guesses.wait(bad, at(10)), None);
        guesses.wrong(bad, at(10));
        assert!(guesses.wait(bad, at(11)).is_some());
        assert_eq!(guesses.wait(bad, at(1000)), None);
    }

    #[test]
    fn a_caller_of_the_address_is_known_and_the_memory_is_bounded() {
        let mut guesses = Guesses::default();
        let (here, id) = (from("10.0.0.1"), DeviceId::generate());
        guesses.right(here, id, at(0));
        for _ in 0..20 {
            guesses.wrong(here, at(0));
        }
        assert!(guesses.wait(here, at(0)).is_some() && guesses.knows(here, id));
        assert!(!guesses.knows(here, DeviceId::generate()) && !guesses.knows(from("10.0.0.2"), id));
        for _ in 0..100 {
            guesses.right(here, DeviceId::generate(), at(0));
        }
        assert!(!guesses.knows(here, id), "the oldest are forgotten");
    }
}
