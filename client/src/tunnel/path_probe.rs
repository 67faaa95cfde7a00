//! Searches for other routes for a session: for any route, urgently, while the current one is
//! silent, and for a better one all the time.

use std::time::{Duration, Instant};

use proto::knock::random_fraction;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::{
    dial::{
        DialError, Dialed,
        plan::DialPlan,
        route::{Carrier, Route},
    },
    ssh::SshTarget,
};

/// How much earlier UDP starts than SSH (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(300);
const UDP_EVERY: Duration = Duration::from_secs(3);
/// How often another login starts beside one that is under way: a login whose first packets were
/// lost can be very late.
const SSH_EVERY: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 3;
/// How much earlier a login for a new connection starts than one for a carrier.
const ANEW_WITHIN: Duration = Duration::from_secs(20);
/// The better route is tried at once, and then more and more rarely.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What to search for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: the best route is in use.
    Nothing,
    /// The better route, UDP.
    Better,
    /// Any route.
    Any,
}

/// The result of an attempt.
pub(crate) enum ProbeOutcome {
    /// A new connection over UDP, which shows that the path works in both directions.
    Udp(Result<Dialed, DialError>),
    /// A carrier over SSH, logged in.
    Ssh(Result<(Route, Carrier), String>),
    /// A new connection over SSH.
    Anew(Result<Dialed, DialError>),
}

/// All attempts. Dropping it ends them.
pub(crate) struct PathProbe {
    plan: DialPlan,
    need: Need,
    attempts: JoinSet<ProbeOutcome>,
    udp: Attempts,
    ssh: Attempts,
    pause: Duration,
    /// Whether a new connection over SSH is wanted.
    anew: bool,
}

#[derive(Clone, Copy)]
struct Attempts {
    running: usize,
    next: Instant,
}

impl PathProbe {
    pub(crate) fn new(plan: DialPlan) -> Self {
        let line = Attempts { running: 0, next: Instant::now() };
        let (need, attempts) = (Need::Nothing, JoinSet::new());
        Self { plan, need, attempts, udp: line, ssh: line, pause: FIRST_PAUSE, anew: false }
    }

    /// Begins the attempts that are due, and ends those that are not needed any more.
    pub(crate) fn urge(&mut self, now: Instant, need: Need) {
        if need != self.need {
            self.need = need;
            self.attempts = JoinSet::new();
            let head_start =
                if self.plan.addresses().is_empty() { Duration::ZERO } else { STAGGER };
            (self.udp, self.ssh) = (
                Attempts { running: 0, next: now },
                Attempts { running: 0, next: now + head_start },
            );
        }
        let udp = match need {
            Need::Nothing => return,
            Need::Better => self.udp.running == 0,
            Need::Any => self.udp.running < AT_ONCE,
        };
        if udp && now >= self.udp.next && !self.plan.addresses().is_empty() {
            let plan = self.plan.clone();
            let attempt = async move { ProbeOutcome::Udp(plan.dial_udp().await) };
            self.attempts.spawn(attempt.in_current_span());
            self.udp.running += 1;
            let pause = if need == Need::Better { self.pause } else { UDP_EVERY };
            self.udp.next = now + pause.mul_f64(0.75 + random_fraction() / 2.0);
            if need == Need::Better {
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
        if need == Need::Any && std::mem::take(&mut self.anew) && self.plan.ssh().is_some() {
            let plan = self.plan.clone();
            let attempt = async move { ProbeOutcome::Anew(plan.dial_ssh().await) };
            self.attempts.spawn(attempt.in_current_span());
            // A login for a carrier would be faster, and would only lead to another trial of a
            // forgotten session.
            self.ssh.next = now + ANEW_WITHIN;
        }
        if need == Need::Any
            && self.ssh.running < AT_ONCE
            && now >= self.ssh.next
            && let Some(route) = self.plan.ssh()
        {
            let attempt = async move { ProbeOutcome::Ssh(log_in(route).await) };
            self.attempts.spawn(attempt.in_current_span());
            self.ssh.running += 1;
            self.ssh.next = now + SSH_EVERY;
        }
    }

    /// Tries again soon, because the network has changed.
    pub(crate) fn hurry(&mut self) {
        (self.pause, self.udp.next) = (FIRST_PAUSE, Instant::now());
    }

    /// Searches for a new connection over SSH too, because the server has forgotten the session.
    pub(crate) fn begin_anew(&mut self) {
        self.anew = true;
    }

    /// Waits for the end of an attempt; for ever if there is none. Cancellation safe.
    pub(crate) async fn found(&mut self) -> ProbeOutcome {
        loop {
            match self.attempts.join_next().await {
                Some(Ok(found)) => {
                    match &found {
                        ProbeOutcome::Udp(_) => self.udp.running -= 1,
                        ProbeOutcome::Ssh(_) => self.ssh.running -= 1,
                        ProbeOutcome::Anew(_) => {}
                    }
                    return found;
                }
                Some(Err(e)) => tracing::error!("an attempt failed by itself: {e}"),
                None => std::future::pending().await,
            }
        }
    }
}

async fn log_in(to: SshTarget) -> Result<(Route, Carrier), String> {
    let route = Route::Ssh(to.clone());
    let carrier = route.open().map_err(|e| e.to_string())?;
    // `ready` limits how long the host may be silent.
    match carrier.ready().await {
        Ok(()) => Ok((route, carrier)),
        Err(e) => Err(format!("{e} ({})", e.hint(&to))),
    }
}
