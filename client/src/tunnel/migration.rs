//! Keeps a session on a working path: watches it, takes new sockets, and moves it between carriers
//! while answers run.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use common::transport::{
    congestion::{hold_back, path_changed},
    splice::ByteCounters,
};
use proto::wire::Code;
use quinn::SendStream;
use tokio::sync::watch;
use tracing::debug;

use crate::{
    dial::{
        Dialed,
        plan::DialPlan,
        route::{Carrier, Route},
        unmarked,
    },
    tunnel::{
        events::Events,
        liveness::{LOOK_SOON, Liveness, Observation, PathChange},
        path_probe::{Need, PathProbe, ProbeOutcome},
        state::{TunnelState, Up},
    },
};

/// How long a new carrier is on trial until it brings a packet of the session; longer on a slow
/// path.
const TRIAL: Duration = Duration::from_secs(3);
/// A server that has been silent for this long, and during several trials on a working path, has
/// forgotten the session. One trial is not enough: the path may have failed during it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(20);
const FORGOTTEN_TRIALS: u32 = 2;
/// Looks are at most a second apart. After a longer pause than this, the program has slept.
const SLEPT: Duration = Duration::from_secs(5);
/// How often the kernel is asked for the local address.
const SOURCE_EVERY: Duration = Duration::from_secs(1);

/// Watches and moves one session.
pub(crate) struct Migration<'a> {
    up: Arc<Up>,
    publish: &'a watch::Sender<TunnelState>,
    journal: &'a Events,
    meter: &'a ByteCounters,
    probes: SendStream,
    watch: Liveness,
    scout: PathProbe,
    trial: Option<Trial>,
    /// How many trials have failed since the server's last packet.
    failed_trials: u32,
    looked: (Instant, SystemTime),
    source: (Instant, Option<std::net::IpAddr>),
    /// Which problems of the carrier have been logged.
    told: Told,
    /// The route that people were told last.
    told_route: Route,
    /// Whether the carrier that the session began on sends no ECN marks, because packets with marks
    /// were not answered. A later one may have found the same only because the path was dead.
    began_unmarked: bool,
}

/// Which problems of the carrier have been logged, so that each is logged once.
#[derive(Default)]
struct Told {
    dead: bool,
    unmarked: bool,
    cannot_send: bool,
}

/// A carrier on trial.
struct Trial {
    until: Instant,
    /// How many datagrams of the session had arrived when the trial began: anybody can send a
    /// datagram to a socket.
    heard: u64,
    /// The route and carrier to which the session returns if the trial fails.
    before: Option<(Route, Carrier)>,
    /// A new connection on the same path, in case the server has forgotten the session.
    dialed: Option<Dialed>,
}

impl<'a> Migration<'a> {
    pub(crate) fn new(
        up: Arc<Up>,
        publish: &'a watch::Sender<TunnelState>,
        journal: &'a Events,
        meter: &'a ByteCounters,
        plan: DialPlan,
        probes: SendStream,
    ) -> Self {
        // Before all data: a probe must not wait behind an upload.
        let _ = probes.set_priority(i32::MAX);
        let (now, told_route) = (Instant::now(), up.route());
        let source = told_route.source();
        let (began_unmarked, began_marked) = {
            let carrier = &up.carried().carrier;
            (carrier.is_unmarked(), carrier.has_marks())
        };
        if began_marked && let Some(source) = source {
            unmarked::clear(source);
        }
        Self {
            up,
            publish,
            journal,
            meter,
            probes,
            watch: Liveness::new(now, source),
            scout: PathProbe::new(plan),
            trial: None,
            failed_trials: 0,
            looked: (now, SystemTime::now()),
            source: (now, source),
            told: Told::default(),
            told_route,
            began_unmarked,
        }
    }

    /// Keeps the session on a working path. Returns a new connection if the server answers but no
    /// longer knows the session. Cancellation safe.
    pub(crate) async fn keep(&mut self) -> Dialed {
        let mut next = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    let now = Instant::now();
                    self.look(now);
                    if let Some(dialed) = self.judge_trial(now) {
                        return dialed;
                    }
                    let need = self.need();
                    self.scout.urge(now, need);
                    let trying = self.trial.is_some() || need == Need::Any;
                    next += self.watch.pace(now, trying || self.is_running());
                    // After a sleep, missed looks are not made up for.
                    next = next.max(tokio::time::Instant::now());
                }
                // Its path is watched from now on, not from the next look of an idle tunnel.
                () = self.meter.begun.notified() => {
                    next = next.min((self.looked.0 + LOOK_SOON).max(Instant::now()).into());
                }
                found = self.scout.found() => if let Some(dialed) = self.consider(found) {
                    return dialed;
                },
            }
        }
    }

    fn look(&mut self, now: Instant) {
        // The computer was suspended (the wall clock advanced, the monotonic clock did not), or
        // this process was stopped (both advanced).
        let slept =
            self.looked.1.elapsed().is_ok_and(|wall| wall > self.looked.0.elapsed() + SLEPT)
                || self.looked.0.elapsed() > SLEPT;
        self.looked = (now, SystemTime::now());
        if slept || now - self.source.0 >= SOURCE_EVERY {
            self.source = (now, self.up.route().source());
        }
        let seen = Observation {
            heard: self.up.heard(),
            running: self.is_running(),
            rtt: self.up.connection.rtt(),
            source: self.source.1,
            slept,
        };
        let orders = self.watch.look(now, seen);
        self.up.note_packets(now, self.watch.is_down(now));
        match orders.turn {
            Some(PathChange::Slept) => self.note_change("this computer has slept"),
            Some(PathChange::NewNetwork) => self.note_change("this computer's network has changed"),
            Some(PathChange::Silent(time)) => {
                self.journal.note(format_args!(
                    "the server has been silent for {:.1} s: running answers are kept, new connections wait",
                    time.as_secs_f64()
                ));
                self.publish_if(
                    |link| matches!(link, TunnelState::Up(_)),
                    TunnelState::Silent(self.up.clone()),
                );
            }
            Some(PathChange::Back(time)) => {
                self.failed_trials = 0;
                self.told.cannot_send = false;
                self.journal.note(format_args!(
                    "the server answers again, after {:.1} s",
                    time.as_secs_f64()
                ));
                if self.trial.is_none() {
                    self.note_route();
                }
                self.publish_if(
                    |link| matches!(link, TunnelState::Silent(_)),
                    TunnelState::Up(self.up.clone()),
                );
            }
            None => {}
        }
        if orders.rebind && self.trial.is_none() {
            self.rebind();
        }
        if orders.probe || self.trial.is_some() {
            self.probe();
        }
        self.note_carrier();
    }

    /// Logs each problem of the carrier once.
    fn note_carrier(&mut self) {
        let (dead, is_unmarked, send_error) = {
            let carrier = &self.up.carried().carrier;
            (carrier.is_dead(), carrier.is_unmarked(), carrier.send_error())
        };
        if dead && !self.told.dead {
            self.journal.note("ssh has ended: starting it again");
        }
        self.told.dead = dead;
        // Another session, or an earlier one, may have found it out.
        let is_new = is_unmarked
            && self.began_unmarked
            && !self.told.unmarked
            && self.source.1.is_some_and(unmarked::suspect);
        if is_new {
            self.journal.note(
                "packets with ECN marks are not answered on this network: going without them",
            );
        }
        self.told.unmarked = is_unmarked;
        // An error that comes back with each new socket is still the same problem. It is over when
        // the server answers.
        if let Some(e) = send_error
            && !std::mem::replace(&mut self.told.cannot_send, true)
        {
            self.journal
                .note(format_args!("this computer cannot send to the server now: {}", words(&e)));
        }
    }

    /// Says which route the session is on, if that is another one than before.
    fn note_route(&mut self) {
        let route = self.up.route();
        if route != self.told_route {
            self.journal.note(format_args!(
                "the session goes over {} now: {route}",
                route.carrier().to_uppercase()
            ));
            self.told_route = route;
        }
    }

    /// After a move: another route may have another local address.
    fn note_source(&mut self) {
        self.source = (Instant::now(), self.up.route().source());
        self.watch.moved(self.source.1);
    }

    fn note_change(&mut self, what: &str) {
        self.journal.note(what);
        path_changed(&self.up.connection);
        self.scout.hurry();
    }

    /// Publishes a state only if the current one matches: a server that drains must not be
    /// published as up again.
    fn publish_if(&self, from: impl FnOnce(&TunnelState) -> bool, link: TunnelState) {
        if from(&self.publish.borrow()) {
            self.publish.send_replace(link);
        }
    }

    /// Takes a new socket to the same address. A new login over SSH takes longer, so `PathProbe`
    /// does it.
    fn rebind(&self) {
        let route = self.up.route();
        if let Route::Udp(_) = route {
            match route.open().and_then(|carrier| self.up.put_on(route, carrier)) {
                Ok(_) => debug!("rebound"),
                Err(e) => debug!("cannot rebind yet: {e}"),
            }
        }
    }

    /// Sends a probe, if there is room for a byte.
    fn probe(&mut self) {
        let written = std::pin::pin!(self.probes.write(&[0]));
        // Polled once: if the window is full, its packets are probes enough.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = written.poll(&mut context);
    }

    fn need(&self) -> Need {
        let carried = self.up.carried();
        match (&carried.route, self.watch.is_silent() || carried.carrier.is_dead()) {
            _ if self.trial.is_some() => Need::Nothing,
            (_, true) => Need::Any,
            (Route::Udp(_), false) => Need::Nothing,
            (Route::Ssh(_), false) => Need::Better,
        }
    }

    /// Judges what `PathProbe` has found.
    fn consider(&mut self, found: ProbeOutcome) -> Option<Dialed> {
        let in_need = self.need();
        match found {
            ProbeOutcome::Udp(Ok(dialed)) if in_need != Need::Nothing => {
                self.try_out(dialed.route.clone(), None, Some(dialed))
            }
            ProbeOutcome::Ssh(Ok((route, carrier))) if in_need == Need::Any => {
                self.try_out(route, Some(carrier), None)
            }
            ProbeOutcome::Anew(Ok(dialed)) if in_need == Need::Any => return Some(dialed),
            ProbeOutcome::Udp(Ok(dialed)) | ProbeOutcome::Anew(Ok(dialed)) => dismiss(Some(dialed)),
            ProbeOutcome::Ssh(Ok(_)) => {}
            ProbeOutcome::Udp(Err(e)) => self.failed("udp", &e.to_string()),
            ProbeOutcome::Anew(Err(e)) => self.failed("ssh", &e.to_string()),
            ProbeOutcome::Ssh(Err(e)) => self.failed("ssh", &e),
        }
        None
    }

    fn failed(&self, carrier: &str, why: &str) {
        debug!("{carrier}: {why}");
        let mut carried = self.up.carried();
        if carried.route.carrier() != carrier {
            carried.why_not_other = Some(why.to_owned());
        }
    }

    /// Moves the session to another route, on trial.
    fn try_out(&mut self, route: Route, carrier: Option<Carrier>, dialed: Option<Dialed>) {
        let moved = match carrier {
            Some(carrier) => Ok(carrier),
            None => route.open(),
        };
        let rtt = dialed.as_ref().map_or(Duration::ZERO, |dialed| dialed.connection.rtt());
        match moved.and_then(|carrier| self.up.put_on(route, carrier)) {
            Ok((route, carrier)) => {
                self.note_source();
                let heard = self.up.heard();
                let works = !self.watch.is_silent() && !carrier.is_dead();
                let before = works.then_some((route, carrier));
                self.trial = Some(Trial {
                    until: Instant::now() + TRIAL.max(rtt * 6),
                    heard,
                    before,
                    dialed,
                });
                self.probe();
                // The path may have stopped to carry long packets.
                hold_back(&self.up.connection, self.failed_trials > 0);
            }
            Err(e) => {
                debug!("cannot move: {e}");
                dismiss(dialed);
            }
        }
    }

    /// Ends a trial when it is decided. Returns a connection that replaces the session, if there is
    /// one.
    fn judge_trial(&mut self, now: Instant) -> Option<Dialed> {
        let Trial { until, heard, before, dialed } = self.trial.take()?;
        let route = self.up.route();
        let works = self.up.carried().carrier.has_heard() && self.up.heard() > heard;
        if works || now >= until {
            hold_back(&self.up.connection, false);
        }
        if works {
            self.note_route();
            dismiss(dialed);
            return None;
        }
        if now < until {
            self.trial = Some(Trial { until, heard, before, dialed });
            return None;
        }
        match before {
            Some((before, carrier)) => {
                debug!("{route} brings nothing of the session: back to {before}");
                let failed = route.carrier();
                if self.up.put_on(before, carrier).is_ok() {
                    self.note_source();
                    self.failed(failed, "it was tried, and brought no packet of the session");
                }
                dismiss(dialed);
                None
            }
            None => {
                self.failed_trials += 1;
                let forgotten = self.failed_trials >= FORGOTTEN_TRIALS
                    && self.watch.quiet_for(now) > FORGOTTEN_AFTER;
                if forgotten && dialed.is_some() {
                    return dialed;
                }
                dismiss(dialed);
                if forgotten {
                    self.scout.begin_anew();
                }
                None
            }
        }
    }

    fn is_running(&self) -> bool {
        self.meter.underway.load(std::sync::atomic::Ordering::Relaxed) > 0
    }
}

/// The system's error text, without its number.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn dismiss(dialed: Option<Dialed>) {
    if let Some(dialed) = dialed {
        dialed.connection.close((Code::Done as u32).into(), b"");
    }
}
