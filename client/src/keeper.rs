//! Keeps the tunnel up: connects, waits for the end, and connects again, for ever.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use common::{
    door::random_fraction,
    frame, invitation,
    process::unix_now,
    tls,
    transport::HANDSHAKE_WITHIN,
    wire::{Code, Greeting, Hello, Notice},
};
use quinn::{Connection, RecvStream};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::{
    dial::{self, DialError, Dialed},
    link::{Down, Link, Up},
    path,
    profile::SharedProfile,
    renewal,
};

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);
/// A server that has said no is asked again after this time, and then more and more rarely: of two machines with one certificate
/// each ends the other's session.
const FIRST_REFUSAL: Duration = Duration::from_secs(60);
const LONGEST_REFUSAL: Duration = Duration::from_secs(3600);
/// A server that has been silent for so long is sought anew, beside the connection that may yet come back.
const SEEK_AFTER: Duration = Duration::from_secs(20);
const SEEK_EVERY: Duration = Duration::from_secs(10);
/// When the way is seen to be good, the old connection has this time to show that it is alive.
const GRACE: Duration = Duration::from_secs(3);

/// The owner of the tunnel's state.
pub struct Keeper {
    publish: watch::Sender<Link>,
    profile: SharedProfile,
    wanted: Arc<Notify>,
}

/// A session, and the stream on which the server says what comes up.
type Session = (Arc<Up>, RecvStream);

/// How a session ended.
enum Ended {
    Over(DialError),
    /// Its server is somewhere else, or has forgotten it.
    Replaced(Session),
}

impl Keeper {
    /// A keeper that publishes on `publish` and hurries when `wanted` is notified.
    pub fn new(publish: watch::Sender<Link>, profile: SharedProfile, wanted: Arc<Notify>) -> Self {
        Self { publish, profile, wanted }
    }

    /// Keeps the tunnel up for as long as it is polled.
    pub async fn run(self) {
        let (mut backoff, mut refusal) = (FIRST_BACKOFF, FIRST_REFUSAL);
        let mut next = None;
        loop {
            let session = match next.take() {
                Some(session) => Ok(session),
                None => self.connect().await,
            };
            let why = match session {
                Ok(session) => {
                    backoff = FIRST_BACKOFF;
                    match self.keep(session).await {
                        Ended::Over(why) => why,
                        Ended::Replaced(session) => {
                            next = Some(session);
                            continue;
                        }
                    }
                }
                Err(why) => why,
            };
            if why.is_final() {
                self.publish_and_tell(Link::Refused(why));
                tokio::time::sleep(jittered(refusal)).await;
                refusal = (refusal * 2).min(LONGEST_REFUSAL);
                continue;
            }
            let since = match &*self.publish.borrow() {
                Link::Down(down) => down.since,
                _ => Instant::now(),
            };
            self.publish_and_tell(Link::Down(Down { since, why: Some(why) }));
            tokio::time::sleep(FIRST_BACKOFF).await;
            tokio::select! {
                () = tokio::time::sleep(jittered(backoff)) => {}
                () = self.wanted.notified() => {}
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Publishes, and tells people what they don't know yet.
    fn publish_and_tell(&self, link: Link) {
        let why_of = |link: &Link| match link {
            Link::Down(Down { why: Some(why), .. }) | Link::Refused(why) => Some((why.to_string(), why.hint())),
            _ => None,
        };
        if let Some((why, hint)) = why_of(&link)
            && why_of(&self.publish.borrow()).is_none_or(|(told, _)| told != why)
        {
            warn!("no tunnel: {why}{}", hint.map(|h| format!(" ({h})")).unwrap_or_default());
        }
        self.publish.send_replace(link);
    }

    async fn connect(&self) -> Result<Session, DialError> {
        self.enter(self.dial().await?).await
    }

    async fn dial(&self) -> Result<Dialed, DialError> {
        let profile = self.profile.get();
        let other = |e: rustls::Error| DialError::Other(e.to_string());
        let roots = tls::roots(profile.ca().map_err(other)?).map_err(other)?;
        let crypto = tls::tunnel_client(roots, profile.certified_key().map_err(other)?).map_err(other)?;
        let config = dial::config(crypto, &profile.enrolled.door_key);
        dial::dial(&config, &profile.enrolled.addresses, profile.ssh.as_ref()).await
    }

    /// Makes a session of a connection: the server ends any other of this device.
    async fn enter(&self, dialed: Dialed) -> Result<Session, DialError> {
        let Dialed { endpoint, connection, way, carrying } = dialed;
        let to = way.to_string();
        let (hello, notices) = match tokio::time::timeout(HANDSHAKE_WITHIN, greet(&connection)).await {
            Ok(Ok(greeted)) => greeted,
            // The server judges after our handshake is done: what it says is the reason of the close.
            Ok(Err(e)) => {
                let closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
                return Err(closed.map_or_else(|_| DialError::Other(e.to_string()), |e| DialError::from_connection(&e, &to)));
            }
            Err(_) => return Err(DialError::NoAnswer(to)),
        };
        let expired_here = self.profile.get().certificate().is_ok_and(|c| c.not_after <= unix_now());
        if hello.certificate_expired || expired_here {
            // Past its end it is good for this one thing.
            renewal::renew(&self.profile, &connection).await?;
            connection.close((Code::Done as u32).into(), b"");
            return Err(DialError::Refused(Code::Expired));
        }
        info!("connected to {to} as {} {}", hello.device, hello.device_id);
        self.follow(&hello);
        let carrying = Mutex::new(carrying);
        Ok((Arc::new(Up { endpoint, connection, way, carrying, hello, since: SystemTime::now() }), notices))
    }

    /// Publishes a session and stays with it until it ends.
    async fn keep(&self, (up, notices): Session) -> Ended {
        let to = up.way.to_string();
        self.publish.send_replace(Link::Up(up.clone()));
        let over = async {
            tokio::select! {
                why = up.connection.closed() => DialError::from_connection(&why, &to),
                () = listen_to(notices) => {
                    info!("the server is stopping: running answers go on, new connections wait");
                    let why = Some(DialError::Refused(Code::ShuttingDown));
                    self.publish.send_replace(Link::Down(Down { since: Instant::now(), why }));
                    DialError::from_connection(&up.connection.closed().await, &to)
                }
            }
        };
        tokio::select! {
            why = over => Ended::Over(why),
            session = self.seek(&up) => {
                warn!("the server was found anew: what ran on the old connection is lost");
                up.connection.close((Code::Done as u32).into(), b"");
                Ended::Replaced(session)
            }
            () = path::watch(&up, &self.publish) => unreachable!("it watches for ever"),
            () = renewal::keep(&self.profile, &up.connection) => unreachable!("it renews for ever"),
        }
    }

    /// Looks for the server while it is silent, and returns when it has answered elsewhere or anew, and the old connection has not.
    async fn seek(&self, up: &Arc<Up>) -> Session {
        loop {
            let heard = silent_for(up, SEEK_AFTER).await;
            while up.heard() == heard {
                if let Ok(dialed) = self.dial().await {
                    path::rebind(up);
                    tokio::time::sleep(GRACE).await;
                    if up.heard() != heard {
                        break;
                    }
                    if let Ok(session) = self.enter(dialed).await {
                        return session;
                    }
                }
                tokio::time::sleep(jittered(SEEK_EVERY)).await;
            }
        }
    }

    /// Keeps what the server says of itself for the next start.
    fn follow(&self, hello: &Hello) {
        let mut profile = self.profile.get();
        let by_ssh = profile.ssh.is_some();
        let ours = |address: &&String| invitation::is_address(address) && !(by_ssh && invitation::is_loopback(address));
        let told = hello.addresses.iter().filter(ours);
        let mut addresses: Vec<String> = told.cloned().collect();
        // An address that has just worked is not forgotten for one that may not.
        let known = profile.enrolled.addresses.iter().filter(|known| !hello.addresses.contains(known));
        addresses.extend(known.cloned());
        addresses.truncate(invitation::MAX_ADDRESSES);
        if profile.enrolled.addresses == addresses && profile.enrolled.services == hello.services {
            return;
        }
        profile.enrolled.addresses = addresses;
        profile.enrolled.services.clone_from(&hello.services);
        self.profile.store(profile);
    }
}

/// Waits until nothing has been heard for so long; returns how much had been.
async fn silent_for(up: &Up, time: Duration) -> u64 {
    let (mut heard, mut since) = (up.heard(), Instant::now());
    while since.elapsed() < time {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = up.heard();
        if now != heard {
            (heard, since) = (now, Instant::now());
        }
    }
    heard
}

async fn greet(connection: &Connection) -> std::io::Result<(Hello, RecvStream)> {
    let mut send = connection.open_uni().await?;
    frame::write(&mut send, &Greeting { version: env!("CARGO_PKG_VERSION").to_owned() }).await?;
    let mut notices = connection.accept_uni().await?;
    let hello = frame::read(&mut notices).await?;
    Ok((hello, notices))
}

/// Ends when the server says that it drains; a stream that fails says nothing that the connection doesn't say better.
async fn listen_to(mut notices: RecvStream) {
    match frame::read::<Notice>(&mut notices).await {
        Ok(Notice::Draining) => {}
        Err(e) => {
            debug!("no more notices: {e}");
            std::future::pending().await
        }
    }
}

/// Half of the time at least, so that many clients of one server don't come at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + random_fraction() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_between_attempts_has_jitter_and_a_bound() {
        for _ in 0..100 {
            let pause = jittered(LONGEST_BACKOFF);
            assert!(pause >= LONGEST_BACKOFF / 2 && pause <= LONGEST_BACKOFF);
        }
    }
}
