//! Decides how long a host may be silent, and when the person is told what adit waits for. Pure:
//! the caller passes the time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// After this silence the person is told what adit waits for.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// A step that was slow may take this many times as long the next time.
const SLACK: u32 = 4;
/// But never longer than this time.
const LONGEST: Duration = Duration::from_secs(900);

/// A host has been silent for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) host: String,
    /// The step that the host did not finish.
    pub(crate) step: Step,
    /// How long adit has waited.
    pub(crate) within: Duration,
}

/// What adit waits for at a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The TCP connection and the key exchange.
    Greeting,
    /// The login. The host may have to ask others (LDAP, a key command).
    Login,
    /// The first line of the command. The login shell starts before it.
    Command,
}

/// How long a host may be silent in each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SilenceBounds {
    greeting: Duration,
    login: Duration,
    command: Duration,
}

/// The longest silence of each step after which the host went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Slowest {
    #[serde(rename = "login_ms", with = "milliseconds")]
    login: Duration,
    #[serde(rename = "command_ms", with = "milliseconds")]
    command: Duration,
}

/// How slow a host has been. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace(Arc<Mutex<Slowest>>);

/// What to do about a silence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PaceVerdict {
    /// Nothing before this moment.
    WaitUntil(Instant),
    /// Tell this to the person.
    Tell(String),
    /// Give up.
    Over(Silence),
}

/// The state of waiting for a host.
#[derive(Debug, Clone)]
pub(crate) struct PaceState {
    pub(crate) slowest: Slowest,
    bounds: SilenceBounds,
    host: String,
    step: Step,
    within: Duration,
    since: Instant,
    until: Instant,
    /// A person is being asked, so the time does not count as the host's.
    asking: bool,
    told: bool,
}

impl Default for SilenceBounds {
    /// sshd ends a login itself after 120 s (`LoginGraceTime`).
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { greeting: seconds(15), login: seconds(120), command: seconds(60) }
    }
}

impl SilenceBounds {
    /// The limits for a host that has been this slow before.
    pub(crate) fn after(slowest: Slowest) -> Self {
        let usual = Self::default();
        let longer = |usual: Duration, took: Duration| usual.max((took * SLACK).min(LONGEST));
        Self {
            greeting: usual.greeting,
            login: longer(usual.login, slowest.login),
            command: longer(usual.command, slowest.command),
        }
    }

    /// The limit for a login and a command together, if it is not visible which of them is under
    /// way.
    pub(crate) fn login_and_command(self) -> Duration {
        self.greeting + self.login + self.command
    }

    fn of(self, step: Step) -> Duration {
        match step {
            Step::Greeting => self.greeting,
            Step::Login => self.login,
            Step::Command => self.command,
        }
    }
}

impl PaceState {
    /// Begins to wait for the greeting of `host` at `now`.
    pub(crate) fn new(now: Instant, host: &str, bounds: SilenceBounds) -> Self {
        Self {
            slowest: Slowest::default(),
            bounds,
            host: host.to_owned(),
            step: Step::Greeting,
            within: bounds.greeting,
            since: now,
            until: now + bounds.greeting,
            asking: false,
            told: false,
        }
    }

    /// Begins the next step, at this host. `within` replaces the usual limit.
    pub(crate) fn begin(&mut self, now: Instant, step: Step, host: &str, within: Option<Duration>) {
        self.heard(now);
        self.step = step;
        host.clone_into(&mut self.host);
        self.within = within.unwrap_or(self.bounds.of(step));
        (self.until, self.told) = (now + self.within, false);
    }

    /// The host has sent something.
    pub(crate) fn heard(&mut self, now: Instant) {
        let took = now - self.since;
        match self.step {
            _ if self.asking => {}
            Step::Greeting => {}
            Step::Login => self.slowest.login = self.slowest.login.max(took),
            Step::Command => self.slowest.command = self.slowest.command.max(took),
        }
        (self.since, self.until) = (now, now + self.within);
    }

    /// A person is asked, and may take `patience` to answer.
    pub(crate) fn asked(&mut self, now: Instant, patience: Duration) {
        (self.asking, self.until) = (true, now + patience + self.within);
    }

    /// The person has answered.
    pub(crate) fn answered(&mut self, now: Instant) {
        self.heard(now);
        self.asking = false;
    }

    /// The person has been told.
    pub(crate) fn told(&mut self) {
        self.told = true;
    }

    pub(crate) fn judge(&self, now: Instant) -> PaceVerdict {
        if now >= self.until {
            let (host, step, within) = (self.host.clone(), self.step, self.within);
            return PaceVerdict::Over(Silence { host, step, within });
        }
        let tell = self.since + TELL_AFTER;
        if self.told || self.asking || tell >= self.until {
            return PaceVerdict::WaitUntil(self.until);
        }
        if now < tell {
            return PaceVerdict::WaitUntil(tell);
        }
        let (host, most) = (&self.host, self.within.as_secs());
        PaceVerdict::Tell(match self.step {
            Step::Greeting => format!("{host} has not answered yet (time limit {most} s)"),
            Step::Login => {
                format!("{host} has not answered the login yet (time limit {most} s)")
            }
            Step::Command => {
                format!(
                    "{host} has accepted the login, but its login shell has not started aditd yet (time limit {most} s)"
                )
            }
        })
    }
}

impl Pace {
    /// The limits for this host.
    pub(crate) fn bounds(&self) -> SilenceBounds {
        SilenceBounds::after(self.known())
    }

    /// Remembers how slow a successful login was.
    pub(crate) fn learn(&self, seen: Slowest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.login = known.login.max(seen.login);
        known.command = known.command.max(seen.command);
    }

    /// Whether there is nothing to store.
    pub(crate) fn is_usual(&self) -> bool {
        self.bounds() == SilenceBounds::default()
    }

    fn known(&self) -> Slowest {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serialize for Pace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.known().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pace = Self::default();
        pace.learn(Slowest::deserialize(deserializer)?);
        Ok(pace)
    }
}

/// Two ways are equal even if their paces differ.
impl PartialEq for Pace {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Pace {}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_step_has_its_own_bound_and_each_word_of_the_host_a_new_one() {
        let begun = Instant::now();
        let mut state = PaceState::new(begun, "gpu", SilenceBounds::default());
        let over = |state: &PaceState, at: Duration| {
            matches!(state.judge(begun + at), PaceVerdict::Over(_))
        };
        assert!(!over(&state, seconds(14)) && over(&state, seconds(15)));
        state.begin(begun + seconds(10), Step::Login, "gpu", None);
        assert!(!over(&state, seconds(129)) && over(&state, seconds(130)));
        state.heard(begun + seconds(100));
        assert!(!over(&state, seconds(219)) && over(&state, seconds(220)));
        state.begin(begun + seconds(200), Step::Command, "gpu", None);
        assert!(!over(&state, seconds(259)) && over(&state, seconds(260)));
        state.begin(begun + seconds(250), Step::Greeting, "gpu", Some(seconds(2)));
        assert!(!over(&state, seconds(251)) && over(&state, seconds(252)));
    }

    #[test]
    fn a_slow_host_is_told_once_a_step_and_not_while_a_person_is_asked() {
        let begun = Instant::now();
        let mut state = PaceState::new(begun, "gpu", SilenceBounds::default());
        assert_eq!(state.judge(begun), PaceVerdict::WaitUntil(begun + TELL_AFTER));
        let told = state.judge(begun + TELL_AFTER);
        assert!(matches!(&told, PaceVerdict::Tell(what) if what.contains("gpu")), "{told:?}");
        state.told();
        assert_eq!(state.judge(begun + TELL_AFTER), PaceVerdict::WaitUntil(begun + seconds(15)));
        state.begin(begun + seconds(5), Step::Login, "gpu", None);
        state.asked(begun + seconds(5), seconds(120));
        let asking = state.judge(begun + seconds(100));
        assert_eq!(asking, PaceVerdict::WaitUntil(begun + seconds(245)));
        state.answered(begun + seconds(100));
        assert_eq!(state.slowest.login, Duration::ZERO, "the time was the person's");
        assert!(matches!(state.judge(begun + seconds(103)), PaceVerdict::Tell(_)));
    }

    #[test]
    fn what_was_slow_once_has_longer_the_next_time_and_that_is_kept() {
        let begun = Instant::now();
        let mut state = PaceState::new(begun, "gpu", SilenceBounds::default());
        state.begin(begun, Step::Login, "gpu", None);
        state.begin(begun + seconds(50), Step::Command, "gpu", None);
        state.heard(begun + seconds(62));
        let pace = Pace::default();
        assert!(pace.is_usual());
        pace.learn(state.slowest);
        let kept = serde_json::to_string(&pace).expect("json");
        let read: Pace = serde_json::from_str(&kept).expect("read");
        let bounds = read.bounds();
        assert_eq!((bounds.login, bounds.command), (seconds(200), seconds(60)));
        let endless = Slowest { login: seconds(10_000), command: seconds(12) };
        assert_eq!(SilenceBounds::after(endless).login, LONGEST);
    }
}
