//! Keeps the tunnel up: connects, waits until the session ends, and connects again.

mod greeting;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    machine::{
        process::{self, loopback_id},
        report::typed,
    },
    transport::splice::ByteCounters,
};
use proto::{
    clock, human, invitation,
    knock::{KnockKey, random_fraction},
    wire::{Code, Hello, Revocation},
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, debug, warn};

use self::greeting::{Leave, listen_to};
pub(crate) use self::greeting::{begin_session, greeted, take_leave};
use crate::{
    dial::{DialError, Dialed, NextAttempt, plan::DialPlan, route::Route},
    tunnel::{
        backoff::{self, Backoff, Pause, Refusal},
        events::Events,
        migration::Migration,
        news::News,
        renewal,
        state::{NoTunnel, ServerRefusal, TunnelState, Up},
    },
};

/// The pauses between attempts to begin a session beside one that goes on for a while.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Connects again and again, and publishes the tunnel's state.
pub(crate) struct Reconnect {
    /// Where the state is published.
    pub(crate) publish: watch::Sender<TunnelState>,
    /// How to connect to the server.
    pub(crate) plan: DialPlan,
    /// How many connections wait for the tunnel.
    pub(crate) wanted: watch::Receiver<usize>,
    /// The addresses of the local listeners.
    pub(crate) listening: Vec<SocketAddr>,
    /// Counts the bytes that pass.
    pub(crate) counters: Arc<ByteCounters>,
    /// Recent events.
    pub(crate) events: Arc<Events>,
    /// Cancelled when the program stops: the session runs to its end, and no new one follows.
    pub(crate) stop: CancellationToken,
}

/// How long a device that was revoked waits for an answer over UDP.
const RESTORED_WITHIN: Duration = Duration::from_secs(4);

/// A session, the stream of the server's notices, and the stream for probes.
struct Greeted {
    up: Arc<Up>,
    notices: RecvStream,
    probes: SendStream,
}

/// How a session ended.
enum SessionEnd {
    Over(DialError),
    /// There is a new one. The server may no longer know this one.
    Next(Greeted),
}

impl Reconnect {
    /// Keeps the tunnel up as long as it is polled.
    pub(crate) async fn run(mut self) {
        let (mut backoff, mut news) = (Backoff::new(), News::default());
        let (mut next, mut been_up) = (None, false);
        // Sessions with running answers whose place another one has taken.
        let mut retired = JoinSet::new();
        loop {
            let session = match next.take() {
                Some(session) => Ok(session),
                None => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return self.rest(None).await,
                    session = self.begin() => session,
                },
            };
            let (why, session) = match session {
                Ok(session) => {
                    been_up = true;
                    news.forget();
                    let begun = Instant::now();
                    match self.keep(session, &mut retired).await {
                        SessionEnd::Over(why) => {
                            if let TunnelState::Down(known) = &*self.publish.borrow() {
                                // `keep` has told that the server is stopping.
                                news.is_news(&known.why);
                            }
                            (why, Some(begun.elapsed()))
                        }
                        SessionEnd::Next(session) => {
                            next = Some(session);
                            continue;
                        }
                    }
                }
                Err(why) => (why, None),
            };
            if self.stop.is_cancelled() {
                return self.rest(Some(why)).await;
            }
            if let DialError::Revoked(revocation) = &why {
                self.remember_revocation(revocation);
            }
            let pause = backoff.after(backoff::AttemptEnd { session, refused: refusal(&why) });
            if session.is_some() {
                self.events.keep(format!("the tunnel is down: {}", told(&why)));
            }
            self.publish_end(why, pause, been_up, &mut news);
            self.wait(pause).await;
        }
    }

    /// Publishes why there is no tunnel now.
    fn publish_end(&self, why: DialError, pause: Pause, been_up: bool, news: &mut News) {
        if !why.is_final() {
            let since = match &*self.publish.borrow() {
                TunnelState::Down(down) => down.since,
                _ => Instant::now(),
            };
            self.tell(&why, news);
            self.publish.send_replace(TunnelState::Down(NoTunnel { since, why }));
            return;
        }
        // Before the first session, `adit up` ends with this error and reports it itself.
        if been_up {
            self.tell(&why, news);
        }
        let wake_at = Instant::now() + pause.wanted;
        self.publish.send_replace(TunnelState::Refused(ServerRefusal { why, wake_at }));
    }

    /// Waits before the next attempt.
    async fn wait(&mut self, pause: Pause) {
        let wanted = async {
            tokio::time::sleep(pause.wanted).await;
            // An error means that nobody uses the tunnel any more.
            if self.wanted.wait_for(|waiting| *waiting > 0).await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = tokio::time::sleep(jittered(pause.unwanted).max(pause.wanted)) => {}
            () = wanted => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn begin(&self) -> Result<Greeted, DialError> {
        // A token may want a PIN, which a person at the terminal types. Without the key nobody can know
        // whether a device that was revoked is let in again.
        self.plan.profile.get().key().unlock().await.map_err(DialError::Key)?;
        if self.plan.profile.get().revoked.is_some() {
            return self.begin_after_revocation().await;
        }
        let dialed = self.plan.dial().await?;
        self.enter(dialed).await
    }

    /// Looks whether the server lets this device in again. A server does not answer a device that
    /// is still revoked, so any failure to reach it means that.
    async fn begin_after_revocation(&self) -> Result<Greeted, DialError> {
        let dialed = async {
            if self.plan.addresses().is_empty() {
                self.plan.dial().await
            } else {
                tokio::time::timeout(RESTORED_WITHIN, self.plan.dial_udp())
                    .await
                    .unwrap_or_else(|_| Err(DialError::NoAnswer(self.plan.sought())))
            }
        };
        let Ok(dialed) = dialed.await else {
            return Err(DialError::Revoked(self.plan.profile.get().revoked.unwrap_or_default()));
        };
        let entered = self.enter(dialed).await;
        if matches!(entered, Ok(_) | Err(DialError::Refused(Code::Expired))) {
            let mut profile = self.plan.profile.get();
            profile.revoked = None;
            self.plan.profile.store(profile);
        }
        entered
    }

    /// Ends after `stop`: publishes the end without logging it, and makes no more attempts.
    async fn rest(&self, why: Option<DialError>) {
        if let Some(why) = why {
            self.publish.send_replace(TunnelState::Down(NoTunnel { since: Instant::now(), why }));
        }
        std::future::pending().await
    }

    /// Logs why there is no tunnel, if that is news.
    fn tell(&self, why: &DialError, news: &mut News) {
        if news.is_news(why) {
            let hint = why.hint(&self.plan.profile.get(), NextAttempt::Automatic);
            warn!(
                "no tunnel: {why}{}",
                hint.map(|h| format!(" ({})", typed(h))).unwrap_or_default()
            );
        }
    }

    /// Makes a connection the session of this device. The server ends the device's other session,
    /// if there is one.
    async fn enter(&self, dialed: Dialed) -> Result<Greeted, DialError> {
        let (hello, ahead, notices, probes) = self.admit(&dialed.connection, &dialed.route).await?;
        Ok(Greeted { up: Up::new(dialed, hello, ahead, &self.stop), notices, probes })
    }

    /// Makes a connection a session.
    async fn admit(
        &self,
        connection: &Connection,
        route: &Route,
    ) -> Result<(Hello, Option<i64>, RecvStream, SendStream), DialError> {
        let to = route.to_string();
        let (hello, notices, probes) =
            begin_session(connection, &to, self.plan.profile.get().epoch).await?;
        let ahead = hello
            .clock
            .map(|theirs| clock::ahead(theirs, process::unix_millis(), connection.rtt()));
        let now = renewal::server_now(ahead);
        let has_ended = self.plan.profile.get().certificate().is_ok_and(|c| c.not_after <= now);
        if hello.certificate_expired || has_ended {
            // An expired certificate may only renew itself.
            renewal::renew(&self.plan.profile, connection, ahead).await?;
            connection.close((Code::Done as u32).into(), b"");
            return Err(DialError::Refused(Code::Expired));
        }
        // Before any bytes of an application are sent.
        if let Some(port) = leads_back(&hello, route, &self.listening) {
            connection.close((Code::Done as u32).into(), b"");
            return Err(DialError::LeadsBack(port));
        }
        let outage = match &*self.publish.borrow() {
            TunnelState::Down(down) if !self.events.is_empty() => Some(down.since.elapsed()),
            _ => None,
        };
        self.events.note(format_args!(
            "connected to {to} as {} {}{}",
            hello.device,
            hello.device_id,
            outage.map(|time| format!(", after {}", human::time(time))).unwrap_or_default()
        ));
        self.follow(&hello);
        // After the first session, all logins run in the background.
        if let Some(ssh) = &self.plan.profile.get().ssh {
            ssh.ask_no_more();
        }
        Ok((hello, ahead, notices, probes))
    }

    /// Begins a session beside this one, on the same carrier, in the process of the server that
    /// serves new ones. Tries until it has one.
    async fn begin_beside(&self, up: &Up) -> Greeted {
        let mut pause = FIRST_PAUSE;
        loop {
            let route = up.route();
            let begun = async {
                let connection = self.plan.dial_beside(&up.endpoint, &route).await?;
                let (hello, ahead, notices, probes) = self.admit(&connection, &route).await?;
                Ok::<_, DialError>(Greeted {
                    up: up.next(connection, hello, ahead, &self.stop),
                    notices,
                    probes,
                })
            };
            match begun.await {
                Ok(session) => return session,
                Err(why) => debug!("no session beside the one there is: {why}"),
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Publishes a session and keeps it until it ends. If another one takes its place while its answers
    /// run, they go on in `retired`.
    async fn keep(
        &self,
        Greeted { up, mut notices, probes }: Greeted,
        retired: &mut JoinSet<()>,
    ) -> SessionEnd {
        let to = up.route().to_string();
        let renew = Notify::new();
        self.publish.send_replace(TunnelState::Up(up.clone()));
        let over = async {
            let leave = tokio::select! {
                why = up.connection.closed() => return SessionEnd::Over(DialError::from_connection(&why, &to)),
                leave = listen_to(&mut notices, &renew) => leave,
            };
            // Keeps reading notices: if nobody read the stream, flow control would stop the answers to
            // probes.
            let closed = async {
                tokio::select! {
                    why = up.connection.closed() => DialError::from_connection(&why, &to),
                    () = async { loop { listen_to(&mut notices, &renew).await; } } => unreachable!("it listens for ever"),
                }
            };
            match leave {
                Leave::Replaced => tokio::select! {
                    why = closed => SessionEnd::Over(why),
                    next = self.begin_beside(&up), if !self.stop.is_cancelled() => SessionEnd::Next(next),
                },
                Leave::Draining => {
                    self.events.note(
                        "the server is stopping: running answers go on, new connections wait",
                    );
                    let why = DialError::Refused(Code::ShuttingDown);
                    self.publish
                        .send_replace(TunnelState::Down(NoTunnel { since: Instant::now(), why }));
                    SessionEnd::Over(closed.await)
                }
            }
        };
        let renewing = renewal::keep(&self.plan.profile, &up.connection, up.ahead, &renew);
        let mut path = Migration::new(
            up.clone(),
            &self.publish,
            &self.events,
            &self.counters,
            self.plan.clone(),
            probes,
        );
        let of = up.clone();
        let credit = async move { of.credit.exchange().await };
        let credit = AbortOnDropHandle::new(tokio::spawn(credit.in_current_span()));
        tokio::pin!(over, renewing);
        loop {
            let dialed = tokio::select! {
                end = &mut over => {
                    if let SessionEnd::Next(session) = &end {
                        let version = &session.up.hello.version;
                        self.events.note(format_args!(
                            "the server is aditd {version} now: running answers go on, in the earlier one"
                        ));
                        retired.spawn(rest_of(up.clone(), credit).in_current_span());
                    }
                    return end;
                }
                dialed = path.keep() => dialed,
                () = &mut renewing => unreachable!("it renews for ever"),
            };
            if self.stop.is_cancelled() {
                // The running answers are lost, and no new session is made while the program stops.
                for connection in [&dialed.connection, &up.connection] {
                    connection.close((Code::Done as u32).into(), b"");
                }
                return SessionEnd::Over(DialError::Restarted);
            }
            match self.enter(dialed).await {
                Ok(session) => {
                    self.events.note(
                        "the server no longer knows the session: its running answers are lost",
                    );
                    up.connection.close((Code::Done as u32).into(), b"");
                    return SessionEnd::Next(session);
                }
                Err(why) => debug!("no new session: {why}"),
            }
        }
    }

    /// The server said this in a session, so it is authentic. Later the server does not answer this
    /// device at all.
    fn remember_revocation(&self, revocation: &Revocation) {
        let mut profile = self.plan.profile.get();
        if profile.revoked.is_none() {
            profile.revoked = Some(revocation.clone());
            self.plan.profile.store(profile);
        }
    }

    /// Stores the server's name for this device, its addresses, services and knock key for the next start.
    fn follow(&self, hello: &Hello) {
        let mut profile = self.plan.profile.get();
        let by_ssh = profile.ssh.is_some();
        let ours = |address: &&String| {
            invitation::is_address(address) && !(by_ssh && invitation::is_loopback(address))
        };
        let told = hello.addresses.iter().filter(ours);
        let mut addresses: Vec<String> = told.cloned().collect();
        // Addresses that have worked are kept behind the new ones.
        let known =
            profile.enrolled.addresses.iter().filter(|known| !hello.addresses.contains(known));
        addresses.extend(known.cloned());
        addresses.truncate(invitation::MAX_ADDRESSES);
        let known_key = profile.enrolled.knock_key.clone();
        // One of its own comes with a CA only.
        let shared = || matches!(known_key, KnockKey::Shared(_));
        let told = hello.knock_key.clone().filter(|_| shared());
        let knock_key = told.unwrap_or_else(|| known_key.clone());
        let epoch = hello.epoch.clone().or_else(|| profile.epoch.clone());
        if profile.enrolled.device == hello.device
            && profile.epoch == epoch
            && profile.enrolled.addresses == addresses
            && profile.enrolled.services == hello.services
            && knock_key == known_key
        {
            return;
        }
        profile.epoch = epoch;
        profile.enrolled.device.clone_from(&hello.device);
        profile.enrolled.addresses = addresses;
        profile.enrolled.services.clone_from(&hello.services);
        profile.enrolled.knock_key = knock_key;
        self.plan.profile.store(profile);
    }
}

/// The port of a service that is a port of this program, if the server runs on this computer.
fn leads_back(hello: &Hello, route: &Route, listening: &[SocketAddr]) -> Option<u16> {
    let same = hello.loopback.is_some() && hello.loopback == loopback_id();
    let is_here = same || matches!(route, Route::Udp(remote) if remote.ip().is_loopback());
    let mut ports = hello.services.iter().filter_map(|service| service.port);
    ports.find(|port| is_here && listening.iter().any(|address| address.port() == *port))
}

/// Keeps a session whose place another one has taken, until its running answers have ended: the
/// server closes it then. The connections of applications go on, and their next requests begin in
/// the other session.
async fn rest_of(up: Arc<Up>, _credit: AbortOnDropHandle<()>) {
    up.retired.cancel();
    up.connection.closed().await;
}

/// How the server has refused, if it has.
fn refusal(why: &DialError) -> Option<Refusal> {
    match why {
        DialError::Revoked(_) | DialError::Refused(Code::SignedOut) => Some(Refusal::Revoked),
        why => why.is_final().then_some(Refusal::Conflict),
    }
}

/// Why a session ended, when that is told later.
fn told(why: &DialError) -> String {
    match why {
        DialError::Refused(Code::ShuttingDown) => "the server stopped".to_owned(),
        why => why.to_string(),
    }
}

/// A random time between half of `pause` and all of it, so that the clients of a server do not all
/// connect at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + random_fraction() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_between_attempts_has_jitter() {
        for _ in 0..100 {
            let longest = Duration::from_secs(15);
            let pause = jittered(longest);
            assert!(pause >= longest / 2 && pause <= longest);
        }
    }
}
