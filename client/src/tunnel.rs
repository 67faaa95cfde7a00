//! The tunnel: one connection to the server, opened again for ever, and the streams on it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use common::{
    door::fill_random,
    frame,
    identity::Name,
    process::unix_now,
    splice::{Meter, Sending},
    tls,
    transport::{HANDSHAKE_WITHIN, KEEP_ALIVE},
    wire::{Code, Greeting, Hello, Notice, RenewAnswer, ServiceKind, StreamHead},
};
use quinn::{Connection, Endpoint, RecvStream};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{
    answer::{ErrorAnswer, Status},
    dial::{self, DialError, Dialed},
    profile::Profile,
};

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);
/// A server that has said no is asked this often whether it still does.
const AFTER_REFUSAL: Duration = Duration::from_secs(60);
/// Two keep-alives and a bit without an answer: the path is believed dead, and new connections wait.
const SILENT_AFTER: Duration = Duration::from_millis(KEEP_ALIVE.as_millis() as u64 * 5 / 2);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The wall clock is compared with the certificate's end at least this often; a sleep of the machine does not delay it by more.
const RENEWAL_CHECK: Duration = Duration::from_secs(60);
const RENEW_WITHIN: Duration = Duration::from_secs(30);

/// The state of the way to the server.
#[derive(Debug, Clone)]
pub enum Link {
    /// There is none; it is being sought.
    Down(Down),
    /// The server has said hello.
    Up(Arc<Up>),
    /// The connection stands, but nothing has come over it for a while.
    Silent(Arc<Up>),
    /// The server has said no.
    Refused(DialError),
}

/// Since when there is no tunnel, and why.
#[derive(Debug, Clone)]
pub struct Down {
    /// Since when.
    pub since: Instant,
    /// Why the last one ended or the last attempt failed; `None` before the first has.
    pub why: Option<DialError>,
}

/// A tunnel that is up.
#[derive(Debug)]
pub struct Up {
    /// The endpoint under it.
    pub endpoint: Endpoint,
    /// The connection.
    pub connection: Connection,
    /// Where its datagrams go.
    pub remote: SocketAddr,
    /// What the server said.
    pub hello: Hello,
    /// Since when.
    pub since: SystemTime,
}

/// A way into the tunnel. Clones share it.
#[derive(Clone)]
pub struct Tunnel {
    link: watch::Receiver<Link>,
    profile: Arc<Mutex<Profile>>,
    /// Bytes that have passed.
    pub meter: Arc<Meter>,
}

/// A stream that has been opened and asked for its service.
pub struct Opened {
    /// To the service.
    pub send: Sending,
    /// From it.
    pub recv: RecvStream,
    /// What its bytes are.
    pub kind: ServiceKind,
}

impl Tunnel {
    /// Starts the tunnel of a profile. The future keeps it up for as long as it is polled.
    pub fn new(profile: Profile) -> (Self, impl Future<Output = ()> + Send) {
        let (publish, link) = watch::channel(Link::Down(Down { since: Instant::now(), why: None }));
        let profile = Arc::new(Mutex::new(profile));
        let keeper = Keeper { publish, profile: profile.clone() };
        (Self { link, profile, meter: Arc::default() }, keeper.run())
    }

    /// The state now, and its changes.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// What this device knows of its server and itself.
    pub fn profile(&self) -> Profile {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the bytes of a service are, by the server's last word on it.
    pub fn kind(&self, service: &Name) -> ServiceKind {
        let of = |services: &[common::wire::Service]| services.iter().find(|s| s.name == *service).map(|s| s.kind);
        let now = match &*self.link.borrow() {
            Link::Up(up) | Link::Silent(up) => of(&up.hello.services),
            _ => None,
        };
        now.or_else(|| of(&self.profile().enrolled.services)).unwrap_or(ServiceKind::Http)
    }

    /// Opens a stream to a service, waiting at most `hold` for a tunnel or for room in it. Cancellation safe.
    ///
    /// The head is on its way when this returns; bytes may follow at once.
    ///
    /// # Errors
    /// What to answer the application.
    pub async fn open(&self, service: &Name, hold: Duration) -> Result<Opened, ErrorAnswer> {
        let started = Instant::now();
        let opened = tokio::time::timeout(hold, async {
            let mut link = self.link.clone();
            loop {
                let up = match link.wait_for(|link| matches!(link, Link::Up(_) | Link::Refused(_))).await.as_deref() {
                    Ok(Link::Up(up)) => up.clone(),
                    Ok(Link::Refused(why)) => return Err(unavailable(&why.to_string(), why.hint())),
                    _ => return Err(unavailable("adit is stopping", None)),
                };
                match self.open_on(&up, service).await {
                    Ok(opened) => return Ok(opened),
                    // It ended in this moment: the next one will do. The keeper sees it too and publishes.
                    Err(e) => debug!("cannot open a stream: {e}"),
                }
                let _ = link.changed().await;
            }
        });
        match opened.await {
            Ok(opened) => opened,
            Err(_) => Err(self.still_held(started.elapsed())),
        }
    }

    async fn open_on(&self, up: &Up, service: &Name) -> Result<Opened, quinn::WriteError> {
        let (send, recv) = up.connection.open_bi().await?;
        let mut send = Sending::new(send);
        send.write_all(&StreamHead::Forward(service.clone()).encode()).await?;
        Ok(Opened { send, recv, kind: self.kind(service) })
    }

    fn still_held(&self, waited: Duration) -> ErrorAnswer {
        let waited = format!("waited {} s", waited.as_secs());
        match &*self.link.borrow() {
            Link::Up(_) => unavailable(&format!("{waited} for a free stream: too many requests are open at once"), None),
            Link::Silent(_) => unavailable(
                &format!("{waited}: the server does not answer any more"),
                Some("is this computer online, and the server up?"),
            ),
            Link::Refused(why) => unavailable(&why.to_string(), why.hint()),
            Link::Down(Down { why: Some(why), .. }) => unavailable(&format!("{waited} for a tunnel: {why}"), why.hint()),
            Link::Down(_) => unavailable(&format!("{waited} for a tunnel to the server"), Some("see `adit status`")),
        }
    }
}

fn unavailable(why: &str, hint: Option<&str>) -> ErrorAnswer {
    let message = match hint {
        Some(hint) => format!("adit: {why} ({hint})"),
        None => format!("adit: {why}"),
    };
    ErrorAnswer { status: Status::Unavailable, message }
}

/// Keeps the tunnel up.
struct Keeper {
    publish: watch::Sender<Link>,
    profile: Arc<Mutex<Profile>>,
}

impl Keeper {
    async fn run(self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let why = match self.connect().await {
                Ok((up, notices)) => {
                    backoff = FIRST_BACKOFF;
                    self.keep(up, notices).await
                }
                Err(why) => {
                    debug!("an attempt failed: {why}");
                    why
                }
            };
            if why.is_final() {
                self.publish_if_new(Link::Refused(why));
                tokio::time::sleep(AFTER_REFUSAL).await;
                continue;
            }
            let since = match &*self.publish.borrow() {
                Link::Down(down) => down.since,
                _ => Instant::now(),
            };
            self.publish_if_new(Link::Down(Down { since, why: Some(why) }));
            tokio::time::sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Publishes, and tells people what they don't know yet.
    fn publish_if_new(&self, link: Link) {
        let told = match &*self.publish.borrow() {
            Link::Down(down) => down.why.as_ref().map(ToString::to_string),
            Link::Refused(why) => Some(why.to_string()),
            _ => None,
        };
        let why = match &link {
            Link::Down(Down { why: Some(why), .. }) | Link::Refused(why) => Some(why),
            _ => None,
        };
        if let Some(why) = why.filter(|why| told.as_ref() != Some(&why.to_string())) {
            warn!("no tunnel: {why}{}", why.hint().map(|h| format!(" ({h})")).unwrap_or_default());
        }
        self.publish.send_replace(link);
    }

    async fn connect(&self) -> Result<(Arc<Up>, RecvStream), DialError> {
        let profile = self.profile();
        let other = |e: rustls::Error| DialError::Other(e.to_string());
        let roots = tls::roots(profile.ca().map_err(other)?).map_err(other)?;
        let crypto = tls::tunnel_client(roots, profile.certified_key().map_err(other)?).map_err(other)?;
        let config = dial::config(crypto, &profile.enrolled.door_key);
        let Dialed { endpoint, connection, remote } = dial::dial(&config, &profile.enrolled.addresses).await?;
        let to = remote.to_string();
        let greeted = tokio::time::timeout(HANDSHAKE_WITHIN, greet(&connection)).await;
        let (hello, notices) = match greeted {
            Ok(Ok(greeted)) => greeted,
            // The server judges after our handshake is done: what it says is the reason of the close.
            Ok(Err(e)) => {
                let closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
                return Err(closed.map_or_else(|_| DialError::Other(e.to_string()), |e| DialError::from_connection(&e, &to)));
            }
            Err(_) => return Err(DialError::NoAnswer(to)),
        };
        if profile.certificate().map_err(other)?.not_after <= unix_now() {
            // Past its end it is good for this one thing.
            self.renew(&connection).await?;
            connection.close((Code::Done as u32).into(), b"");
            return Err(DialError::Refused(Code::Expired));
        }
        info!("connected to {to} as {} {}", hello.device, hello.device_id);
        self.follow(&hello);
        Ok((Arc::new(Up { endpoint, connection, remote, hello, since: SystemTime::now() }), notices))
    }

    /// Publishes the tunnel and stays with it until it ends; says why it did.
    async fn keep(&self, up: Arc<Up>, notices: RecvStream) -> DialError {
        let to = up.remote.to_string();
        self.publish.send_replace(Link::Up(up.clone()));
        tokio::select! {
            why = up.connection.closed() => DialError::from_connection(&why, &to),
            () = listen_to(notices) => {
                info!("the server is stopping: running answers go on, new connections wait");
                self.publish.send_replace(Link::Down(Down { since: Instant::now(), why: Some(DialError::Refused(Code::ShuttingDown)) }));
                DialError::from_connection(&up.connection.closed().await, &to)
            }
            () = self.watch_silence(&up) => unreachable!("it watches for ever"),
            () = self.keep_certificate(&up.connection) => unreachable!("it renews for ever"),
        }
    }

    async fn watch_silence(&self, up: &Arc<Up>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut heard, mut at) = (0, Instant::now());
        loop {
            ticks.tick().await;
            let now = up.connection.stats().udp_rx.datagrams;
            let was_silent = matches!(&*self.publish.borrow(), Link::Silent(_));
            if now != heard {
                (heard, at) = (now, Instant::now());
                if was_silent {
                    info!("the server answers again");
                    self.publish.send_replace(Link::Up(up.clone()));
                }
            } else if at.elapsed() > SILENT_AFTER && !was_silent {
                warn!(
                    "the server has been silent for {} s: running answers are kept, new connections wait",
                    at.elapsed().as_secs()
                );
                self.publish.send_replace(Link::Silent(up.clone()));
            }
        }
    }

    /// Renews the certificate in the last third of its life.
    async fn keep_certificate(&self, connection: &Connection) {
        let jitter = random_fraction();
        loop {
            let Ok(certificate) = self.profile().certificate() else { return std::future::pending().await };
            let left = u64::try_from(certificate.renew_at(jitter) - unix_now()).unwrap_or(0);
            if left > 0 {
                // In short steps: a sleep of the machine stops this clock, but not the certificate's.
                tokio::time::sleep(RENEWAL_CHECK.min(Duration::from_secs(left))).await;
                continue;
            }
            if let Err(e) = self.renew(connection).await {
                warn!("{e}: trying again in {} s", RENEWAL_CHECK.as_secs());
                tokio::time::sleep(RENEWAL_CHECK).await;
            }
        }
    }

    async fn renew(&self, connection: &Connection) -> Result<(), DialError> {
        let failed = |e: String| DialError::Other(format!("cannot renew the certificate: {e}"));
        let exchange = async {
            let (send, mut recv) = connection.open_bi().await?;
            let mut send = Sending::new(send);
            send.write_all(&StreamHead::Renew.encode()).await?;
            send.finish();
            frame::read::<RenewAnswer>(&mut recv).await
        };
        let answer = tokio::time::timeout(RENEW_WITHIN, exchange).await;
        let answer = answer.map_err(|_| failed("the server does not answer".to_owned()))?.map_err(|e| failed(e.to_string()))?;
        let mut renewed = self.profile();
        renewed.enrolled.certificate = answer.certificate;
        // Looked at before it takes the place of one that works.
        renewed.certified_key().map_err(|e| failed(e.to_string()))?;
        let certificate = renewed.certificate().map_err(|e| failed(e.to_string()))?;
        if certificate.device != Some(renewed.enrolled.device_id) || certificate.not_after <= unix_now() {
            return Err(failed("what the server sent is no certificate for this device and time".to_owned()));
        }
        self.store(renewed);
        info!("certificate renewed");
        Ok(())
    }

    /// Keeps what the server says of itself for the next start.
    fn follow(&self, hello: &Hello) {
        let mut profile = self.profile();
        let enrolled = &mut profile.enrolled;
        if hello.addresses.is_empty() || (enrolled.addresses == hello.addresses && enrolled.services == hello.services) {
            return;
        }
        // An address that has just worked is not forgotten for one that may not.
        let mut addresses = hello.addresses.clone();
        addresses.extend(enrolled.addresses.iter().filter(|a| !hello.addresses.contains(a)).cloned());
        addresses.truncate(common::invitation::MAX_ADDRESSES);
        enrolled.services = hello.services.clone();
        if enrolled.addresses != addresses {
            enrolled.addresses = addresses;
        }
        self.store(profile);
    }

    fn profile(&self) -> Profile {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn store(&self, profile: Profile) {
        if let Err(e) = profile.save() {
            warn!("{e}: it is used, but a restart will not know it");
        }
        *self.profile.lock().unwrap_or_else(PoisonError::into_inner) = profile;
    }
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
        Err(_) => std::future::pending().await,
    }
}

/// Half of the time at least, so that many clients of one server don't come at once.
fn jittered(backoff: Duration) -> Duration {
    backoff.mul_f64(0.5 + random_fraction() / 2.0)
}

fn random_fraction() -> f64 {
    let mut byte = [0; 2];
    fill_random(&mut byte);
    f64::from(u16::from_be_bytes(byte)) / f64::from(u16::MAX)
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
