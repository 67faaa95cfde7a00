//! Decides when a path counts as dead, and what to do then. It names no clock and no socket: it
//! takes times and observations, and returns orders.

mod rhythm;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use proto::wire::KEEP_ALIVE;

use self::rhythm::Rhythm;

/// If no request runs: a silence of two and a half keep-alives.
const SILENT_AFTER: Duration = Duration::from_millis(KEEP_ALIVE.as_millis() as u64 * 5 / 2);
/// While a request runs, the server is probed once after a silence that does not belong to the rhythm
/// in which datagrams arrived, and again after this silence. Behind an address translator that has
/// forgotten the session, the server sends to the old port until it hears something from the new one.
const ASK_AFTER: Duration = Duration::from_millis(500);
/// A probe is answered within this time, or within three round trips if that is longer.
const ANSWER_WITHIN: Duration = Duration::from_millis(600);
/// While a request runs, this is often enough to see a silence: while datagrams arrive, and when none
/// has arrived for a while.
pub(super) const LOOK_SOON: Duration = Duration::from_millis(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// While a request waits on a dead path, every packet may be the first that gets through: a path
/// that is back is noticed so late at the most.
const PROBE_EVERY: Duration = Duration::from_millis(50);
const PROBE_IDLE_EVERY: Duration = Duration::from_secs(5);
/// When new sockets are taken after a change. The first attempt may be too early for the new
/// network.
const REBIND_AT: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(5)];
/// How often new sockets are taken after that, while the server is silent.
const REBIND_EVERY: Duration = Duration::from_secs(5);
/// How long to probe quickly after a silence, or four round trips if that is longer.
const URGE: Duration = Duration::from_secs(1);
/// Even if no request runs, something arrives more often than this: a longer silence was an outage.
const OUTAGE: Duration = Duration::from_millis(KEEP_ALIVE.as_millis() as u64 * 3 / 2);
/// How long a path is doubtful after a change, even if no request runs.
const DOUBT: Duration = Duration::from_secs(6);

/// The observations at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observation {
    /// How many datagrams have arrived so far.
    pub(crate) heard: u64,
    /// Whether an answer is under way.
    pub(crate) running: bool,
    /// The round-trip time.
    pub(crate) rtt: Duration,
    /// The local address that the kernel would send from.
    pub(crate) source: Option<IpAddr>,
    /// Whether the computer has slept since the last look.
    pub(crate) slept: bool,
}

/// What to do now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Send a probe, which the server acknowledges.
    pub(crate) probe: bool,
    /// Take a new socket.
    pub(crate) rebind: bool,
    /// What has changed, if anything.
    pub(crate) turn: Option<PathChange>,
}

/// A change of the path's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathChange {
    /// The computer was asleep.
    Slept,
    /// Its local address has changed.
    NewNetwork,
    /// The path counts as dead; nothing has arrived for this long.
    Silent(Duration),
    /// A datagram has arrived again, after this long.
    Back(Duration),
}

/// Watches one path.
#[derive(Debug)]
pub(crate) struct Liveness {
    heard: u64,
    heard_at: Instant,
    source: Option<IpAddr>,
    rhythm: Rhythm,
    /// When the server was probed first and last since its last datagram.
    asked: Option<(Instant, Instant)>,
    silent: bool,
    /// Since when new sockets are needed, and how many have been taken.
    trouble: Option<(Instant, usize)>,
    doubt_until: Instant,
    /// Until when to probe quickly: packets that were lost in a silence may be lost again.
    urge_until: Instant,
    /// Until when packets may be found lost that were sent in an outage.
    settled_at: Instant,
}

impl Liveness {
    /// Begins a watch.
    pub(crate) fn new(now: Instant, source: Option<IpAddr>) -> Self {
        Self {
            heard: 0,
            heard_at: now,
            source,
            rhythm: Rhythm::default(),
            asked: None,
            silent: false,
            trouble: None,
            doubt_until: now,
            urge_until: now,
            settled_at: now,
        }
    }

    /// Looks once.
    pub(crate) fn look(&mut self, now: Instant, seen: Observation) -> Orders {
        let mut turn = None;
        if seen.heard != self.heard {
            if self.silent || now - self.heard_at > OUTAGE {
                self.settled_at = now + URGE.max(seen.rtt * 4);
            }
            if self.silent {
                turn = Some(PathChange::Back(now - self.heard_at));
                self.trouble = None;
                self.urge_until = now + URGE.max(seen.rtt * 4);
            }
            if seen.running {
                self.rhythm.arrived(now - self.heard_at);
            }
            (self.heard, self.heard_at, self.asked, self.silent) = (seen.heard, now, None, false);
        }
        if seen.slept || seen.source != self.source {
            turn = Some(if seen.slept { PathChange::Slept } else { PathChange::NewNetwork });
            self.source = seen.source;
            self.trouble = Some((now, 0));
            self.doubt_until = now + DOUBT;
        }
        let eager = seen.running || now < self.doubt_until;
        if !self.silent && self.is_overdue(now, eager, seen.rtt) {
            self.silent = true;
            self.trouble = Some((now, 0));
            turn = Some(PathChange::Silent(now - self.heard_at));
        }
        if !seen.running {
            self.rhythm = Rhythm::default();
        }
        let misses = seen.running && !self.silent && self.rhythm.misses(now - self.heard_at);
        Orders { probe: self.probes(now, eager) || misses, rebind: self.rebinds(now), turn }
    }

    /// The session has moved to another path with this local address. That is not a change of the
    /// network.
    pub(crate) fn moved(&mut self, source: Option<IpAddr>) {
        self.source = source;
    }

    /// When to look again.
    pub(crate) fn pace(&self, now: Instant, running: bool) -> Duration {
        if self.silent || now < self.urge_until {
            PROBE_EVERY
        } else if running && now - self.heard_at < ASK_AFTER {
            LOOK_SOON
        } else if running || self.trouble.is_some() {
            LOOK_EVERY
        } else {
            Duration::from_secs(1)
        }
    }

    /// Whether the path counts as dead.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether what is found lost now was lost because the path was down.
    pub(crate) fn is_down(&self, now: Instant) -> bool {
        self.silent || now < self.settled_at
    }

    /// How long nothing has arrived.
    pub(crate) fn quiet_for(&self, now: Instant) -> Duration {
        now - self.heard_at
    }

    fn is_overdue(&self, now: Instant, eager: bool, rtt: Duration) -> bool {
        let unanswered =
            self.asked.is_some_and(|(first, _)| now - first > ANSWER_WITHIN.max(rtt * 3));
        now - self.heard_at > SILENT_AFTER || (eager && unanswered)
    }

    fn probes(&mut self, now: Instant, eager: bool) -> bool {
        let pause = match (self.silent, eager) {
            (true, true) => PROBE_EVERY,
            (false, true) if now < self.urge_until => PROBE_EVERY,
            (true, false) => PROBE_IDLE_EVERY,
            (false, true) if now - self.heard_at >= ASK_AFTER => ASK_AFTER,
            (false, _) => return false,
        };
        let due = self.asked.is_none_or(|(_, last)| now - last >= pause);
        if due {
            self.asked = Some((self.asked.map_or(now, |(first, _)| first), now));
        }
        due
    }

    fn rebinds(&mut self, now: Instant) -> bool {
        let Some((since, done)) = self.trouble else { return false };
        let at = match REBIND_AT.get(done) {
            Some(at) => *at,
            None if self.silent => {
                REBIND_AT[REBIND_AT.len() - 1] + REBIND_EVERY * (done - REBIND_AT.len() + 1) as u32
            }
            None => {
                self.trouble = None;
                return false;
            }
        };
        let due = now - since >= at;
        if due {
            self.trouble = Some((since, done + 1));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path with simulated observations. Time passes in steps of 100 ms.
    struct Lab {
        watch: Liveness,
        now: Instant,
        seen: Observation,
    }

    impl Lab {
        fn new(running: bool) -> Self {
            let now = Instant::now();
            let source = Some(IpAddr::from([10, 0, 0, 1]));
            let seen = Observation {
                heard: 0,
                running,
                rtt: Duration::from_millis(20),
                source,
                slept: false,
            };
            Self { watch: Liveness::new(now, source), now, seen }
        }

        /// Lets time pass. Returns after how many tenths of a second each kind of order came.
        fn pass(&mut self, seconds: f64, hears: bool) -> Vec<(u32, Orders)> {
            let mut all = Vec::new();
            for step in 1..=(seconds * 10.0).round() as u32 {
                self.now += Duration::from_millis(100);
                self.seen.heard += u64::from(hears);
                let orders = self.watch.look(self.now, self.seen);
                if orders != Orders::default() {
                    all.push((step, orders));
                }
            }
            all
        }
    }

    fn rebinds(orders: &[(u32, Orders)]) -> Vec<u32> {
        orders.iter().filter(|(_, o)| o.rebind).map(|(at, _)| *at).collect()
    }

    fn turn(orders: &[(u32, Orders)]) -> Vec<(u32, PathChange)> {
        orders.iter().filter_map(|(at, o)| o.turn.map(|turn| (*at, turn))).collect()
    }

    #[test]
    fn a_path_that_answers_is_left_alone() {
        let mut lab = Lab::new(true);
        assert_eq!(lab.pass(60.0, true), []);
        lab.seen.running = false;
        lab.pass(1.0, true);
        assert_eq!(lab.pass(10.0, false), [], "keep-alives are rare while nothing runs");
    }

    #[test]
    fn under_a_running_answer_silence_is_asked_about_and_believed_within_a_second_and_a_bit() {
        let mut lab = Lab::new(true);
        lab.pass(2.0, true);
        let orders = lab.pass(20.0, false);
        let first: Vec<_> = orders.iter().take(4).map(|(at, o)| (*at, o.probe)).collect();
        assert_eq!(first, [(2, true), (5, true), (10, true), (12, true)], "the first is early");
        assert_eq!(turn(&orders), [(12, PathChange::Silent(Duration::from_millis(1200)))]);
        assert_eq!(rebinds(&orders), [12, 22, 42, 62, 112, 162]);
        let probes = orders.iter().filter(|(at, o)| o.probe && *at > 100).count();
        assert!(probes >= 99, "one every tenth of a second: {probes}");
        let back = lab.pass(0.1, true);
        assert!(matches!(turn(&back)[..], [(1, PathChange::Back(_))]));
        assert_eq!(rebinds(&lab.pass(10.0, true)), [0; 0]);
    }

    #[test]
    fn a_path_is_looked_at_as_often_as_it_is_probed() {
        let mut lab = Lab::new(true);
        let pace = |lab: &Lab, running| lab.watch.pace(lab.now, running).as_millis();
        assert_eq!((pace(&lab, true), pace(&lab, false)), (30, 1000));
        lab.pass(0.6, false);
        assert_eq!(pace(&lab, true), 100);
        lab.pass(3.0, false);
        assert!(lab.watch.is_silent());
        assert_eq!(pace(&lab, true), 50);
        // What was lost in the silence may be lost again.
        lab.pass(0.1, true);
        assert_eq!(pace(&lab, true), 50);
        lab.pass(1.1, true);
        assert_eq!(pace(&lab, true), 30);
    }

    #[test]
    fn a_slow_path_has_three_round_trips_to_answer() {
        let mut lab = Lab::new(true);
        lab.seen.rtt = Duration::from_secs(1);
        lab.pass(1.0, true);
        assert_eq!(
            turn(&lab.pass(10.0, false)),
            [(36, PathChange::Silent(Duration::from_millis(3600)))]
        );
    }

    #[test]
    fn an_idle_path_is_silent_after_two_keep_alives_and_probed_rarely() {
        let mut lab = Lab::new(false);
        lab.pass(1.0, true);
        let orders = lab.pass(60.0, false);
        assert_eq!(turn(&orders), [(126, PathChange::Silent(Duration::from_millis(12_600)))]);
        assert!(orders.iter().filter(|(_, o)| o.probe).count() <= 11, "{orders:?}");
    }

    #[test]
    fn losses_are_those_of_an_outage_until_a_second_after_it_noticed_or_not() {
        let mut lab = Lab::new(false);
        lab.pass(1.0, true);
        let is_down = |lab: &Lab| lab.watch.is_down(lab.now);
        for (outage, is_noticed) in [(4.0, false), (8.0, true), (20.0, true)] {
            lab.pass(outage, false);
            lab.pass(0.1, true);
            assert_eq!(is_down(&lab), is_noticed, "{outage} s");
            lab.pass(0.8, true);
            assert_eq!(is_down(&lab), is_noticed, "{outage} s");
            lab.pass(0.3, true);
            assert!(!is_down(&lab), "{outage} s");
        }
        lab.pass(13.0, false);
        assert!(is_down(&lab), "during an outage");
    }

    #[test]
    fn a_sleep_and_a_new_network_bring_new_sockets_at_once_and_some_later() {
        let mut lab = Lab::new(false);
        lab.pass(1.0, true);
        lab.seen.slept = true;
        let first = lab.pass(0.1, true);
        assert!(turn(&first) == [(1, PathChange::Slept)] && rebinds(&first) == [1], "{first:?}");
        lab.seen.slept = false;
        assert_eq!(rebinds(&lab.pass(30.0, true)), [10, 30, 50], "counted from the change");
        lab.seen.source = None;
        assert_eq!(turn(&lab.pass(1.0, true)), [(1, PathChange::NewNetwork)]);
        let silent = lab.pass(2.0, false);
        assert!(
            matches!(turn(&silent)[..], [(12, PathChange::Silent(_))]),
            "doubt asks even if nothing runs: {silent:?}"
        );
    }
}
