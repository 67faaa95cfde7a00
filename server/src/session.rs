//! A tunnel after its handshake: admitted once more and greeted; each of its streams is joined to
//! its service.

mod doctor;
pub(crate) mod enroll;
pub(crate) mod enroll_socket;
mod enrolling;
pub(crate) mod enrollment;
mod notes;
mod notices;
mod own_ca;
mod queue;
mod renewal;
mod sign_in;
mod sign_in_renewal;
mod streams;
mod turns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::{
    machine::process::{loopback_id, unix_millis, unix_now},
    transport::{
        FIRST_STREAMS, HANDSHAKE_WITHIN, MOST_STREAMS,
        credit::Credit,
        frame, grant,
        splice::{Receiving, Sending},
    },
};
use proto::{
    identity::Certificate,
    wire::{Code, Greeting, Hello},
};
use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, debug, info};

use self::{notices::Notices, own_ca::OwnCa, streams::refuse, turns::Turns};
use crate::{
    ingress::admission::{HandshakeSlot, Knocker},
    policy::{Admitted, Caller},
    running::{
        Server,
        sessions::{self, SessionGuard, close},
    },
};

/// Runs one tunnel until it ends; its streams end with it. The slot is held until the device has
/// sent its first message.
pub(crate) async fn run(server: Arc<Server>, connection: Connection, slot: HandshakeSlot) {
    let Some((peer, spki)) = peer_certificate(&connection) else {
        return close(&connection, Code::Protocol);
    };
    let Some(id) = peer.device else {
        return close(&connection, Code::Revoked);
    };
    let has_own_knock = match slot.knocker() {
        Knocker::Device(knocker) if knocker == id => true,
        Knocker::Shared => false,
        // The knock was made with another device's key.
        _ => return close(&connection, Code::Protocol),
    };
    if let Err(wrong) = server.state.authorities.get().check_clock(unix_now()) {
        let shows = wrong.now.to_string();
        return connection.close((Code::ServerClock as u32).into(), shows.as_bytes());
    }
    let now = unix_now();
    if peer.is_out_of_time(now) {
        return connection.close((Code::OutOfTime as u32).into(), now.to_string().as_bytes());
    }
    let greeting = async {
        let mut stream = connection.accept_uni().await?;
        let greeting = frame::read::<Greeting>(&mut stream).await?;
        std::io::Result::Ok((greeting, stream))
    };
    let (epoch, probes, follows_ca) = tokio::select! {
        greeted = tokio::time::timeout(HANDSHAKE_WITHIN, greeting) => match greeted {
            Ok(Ok((greeting, probes))) => {
                debug!(version = greeting.version, "greeted");
                (greeting.epoch, probes, greeting.follows_ca)
            }
            _ => return close(&connection, Code::Protocol),
        },
        () = slot.displaced() => return close(&connection, Code::Busy),
        () = server.draining.cancelled() => return close(&connection, Code::ShuttingDown),
        () = server.replaced.cancelled() => return close(&connection, Code::ShuttingDown),
    };
    let ca = OwnCa::new(slot.ca(), follows_ca);
    drop(slot);
    if let Some(remembered) = epoch {
        server.hear_epoch(id, &remembered).await;
    }
    // Entered first, then checked: a revocation since the handshake either finds the session among
    // the live ones, or is noticed here.
    let credit = Credit::new(&connection);
    let guard = server.live.enter(id, &peer, &connection, credit.interactive(), unix_now());
    let device = match server.policy.admit(&peer) {
        Ok(device) => device,
        Err(code) => return sessions::refuse(&connection, &server.policy, &peer, code),
    };
    let authorities = server.state.authorities.get();
    if let Err(code) = ca.check(&authorities, now) {
        info!(device = %device.name, "refused: CA {}, which it has, has retired", ca.began);
        return close(&connection, code);
    }
    let not_after = ca.ended(&authorities).unwrap_or(i64::MAX).min(peer.not_after);
    let span = tracing::info_span!("session", device = %device.name, id = %device.id);
    let not_after = AtomicI64::new(not_after);
    let session = Arc::new(Session {
        draining: server.draining.child_token(),
        turns: Turns::new(),
        server,
        credit,
        connection,
        guard,
        peer,
        spki,
        device,
        not_after,
        ca,
        renew: Notify::new().into(),
        renewed: AtomicI64::new(0),
        slots: Semaphore::new(MOST_STREAMS as usize),
    });
    session.run(probes, has_own_knock).instrument(span).await;
}

fn peer_certificate(connection: &Connection) -> Option<(Certificate, Vec<u8>)> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let end_entity = chain.first()?;
    let spki = rustls::server::ParsedCertificate::try_from(end_entity)
        .ok()?
        .subject_public_key_info()
        .to_vec();
    Some((Certificate::from_der(end_entity).ok()?, spki))
}

struct Session {
    server: Arc<Server>,
    connection: Connection,
    guard: SessionGuard,
    peer: Certificate,
    spki: Vec<u8>,
    device: Admitted,
    /// When the newest certificate expires: a renewal does not need a new connection.
    not_after: AtomicI64,
    ca: OwnCa,
    /// Woken when the device has to renew its certificate now.
    renew: Arc<Notify>,
    /// When a renewal was last tried in this session.
    renewed: AtomicI64,
    /// A permit for each stream that is served.
    slots: Semaphore,
    /// How much its streams may send.
    credit: Arc<Credit>,
    /// Cancelled when the session accepts no more streams.
    draining: CancellationToken,
    /// When its streams work.
    turns: Turns,
}

/// How long a device may take to begin a session in the process that has replaced this one. One that
/// is away or an older version gets no more streams here then; its running answers go on.
const MOVE_WITHIN: Duration = Duration::from_secs(10);
/// How long the streams that a device opened before it moved may take to arrive: their packets may
/// have been lost and come again.
const LATE_WITHIN: Duration = Duration::from_secs(1);

/// How many streams are accepted before others come.
const AT_ONCE: usize = 16;

impl Session {
    async fn run(self: Arc<Self>, probes: RecvStream, has_own_knock: bool) {
        let began = Instant::now();
        self.note_begin();
        info!(from = %self.connection.remote_address(), "connected");
        if has_own_knock && self.server.policy.snapshot().needs_shared_knock(self.device.id) {
            self.note_own_knock().await;
        }
        self.note_ca(self.ca.began).await;
        // The disk may be slow, and nothing depends on the result.
        let session = self.clone();
        let seen = AbortOnDropHandle::new(tokio::spawn(
            async move { session.note_seen().await }.in_current_span(),
        ));
        let session = self.clone();
        let _credit = AbortOnDropHandle::new(tokio::spawn(
            async move { session.credit.exchange().await }.in_current_span(),
        ));
        let session = self.clone();
        let _cas = AbortOnDropHandle::new(tokio::spawn(
            async move { session.follow_cas().await }.in_current_span(),
        ));
        let session = self.clone();
        let _turns =
            AbortOnDropHandle::new(tokio::spawn(async move { session.turns.give().await }));
        let mut streams = JoinSet::new();
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(HANDSHAKE_WITHIN, self.greet(has_own_knock)) => greeted,
            () = self.server.draining.cancelled() => Ok(Err(std::io::ErrorKind::Interrupted.into())),
        };
        match greeted {
            Ok(Ok(stream)) => {
                let notices = Notices::start(
                    stream,
                    probes,
                    self.server.replaced.clone(),
                    self.draining.clone(),
                    self.renew.clone(),
                );
                self.serve(&mut streams, notices).await;
            }
            Ok(Err(_)) if self.server.draining.is_cancelled() => {
                self.guard.traffic.close(&self.connection, Code::ShuttingDown);
            }
            other => {
                debug!("cannot greet: {other:?}");
                self.guard.traffic.close(&self.connection, Code::Protocol);
            }
        }
        let reason = self.connection.closed().await;
        // Each task ends by itself now, because its stream has failed.
        while streams.join_next().await.is_some() {}
        info!("disconnected: {}", self.why_ended(&reason));
        self.note_end(&reason, began.elapsed());
        let _ = seen.await;
        self.note_seen().await;
    }

    /// Sends the greeting, on a stream that stays open for notices.
    async fn greet(&self, has_own_knock: bool) -> std::io::Result<SendStream> {
        let mut stream = self.connection.open_uni().await?;
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: self.device.name.clone(),
            device_id: self.device.id,
            certificate_expired: self.is_expired(),
            idle_timeout: self.server.idle_timeout.as_secs(),
            services: self
                .server
                .policy
                .services_of(&self.server.policy.role(Caller::Device(&self.peer))),
            addresses: self.server.addresses(),
            loopback: loopback_id(),
            // Another one comes together with the CA that it goes with.
            knock_key: match has_own_knock {
                true => None,
                false => self
                    .server
                    .state
                    .authorities
                    .get()
                    .get(self.ca.began)
                    .map(|authority| authority.knock_key(self.device.id, self.peer.key)),
            },
            clock: Some(unix_millis()),
            epoch: Some(self.sealed_epoch()),
        };
        frame::write(&mut stream, &hello).await?;
        Ok(stream)
    }

    /// Serves streams until the connection ends; while the server drains, no new ones.
    async fn serve(self: &Arc<Self>, streams: &mut JoinSet<()>, notices: Notices) {
        let (mut limit, mut accepted) = (FIRST_STREAMS, 0_usize);
        let last = self.last_stream(&notices);
        tokio::pin!(last);
        loop {
            tokio::select! {
                opened = self.connection.accept_bi() => {
                    let Ok((send, recv)) = opened else { return };
                    // The limit of a device that needs many streams is raised before it is reached,
                    // so that memory is used only where it is needed.
                    if streams.len() as u32 > limit / 2 && limit < MOST_STREAMS {
                        limit *= 2;
                        self.connection.set_max_concurrent_bi_streams(grant(limit).into());
                    }
                    let session = self.clone();
                    let span = tracing::Span::current();
                    streams.spawn(async move {
                        // In a box, so that it is in memory once.
                        let mut work =
                            Box::pin(session.serve_stream(send, recv).instrument(span));
                        session.turns.take(work.as_mut()).await;
                    });
                    accepted = accepted.wrapping_add(1);
                    if accepted.is_multiple_of(AT_ONCE) {
                        tokio::task::yield_now().await;
                    }
                }
                Some(_) = streams.join_next() => {}
                () = &mut last => break,
            }
        }
        self.draining.cancel();
        // A device that reads no notices learns it when the connection closes.
        let told = notices.draining_is_told();
        let ended = async { while streams.join_next().await.is_some() {} };
        let done = async { tokio::join!(told, ended) };
        tokio::pin!(done);
        loop {
            tokio::select! {
                _ = &mut done => break,
                // Nothing of it has been read, so the device can send its request to another
                // process; it would wait for the other streams otherwise.
                opened = self.connection.accept_bi() => {
                    let Ok((send, recv)) = opened else { break };
                    let refused = (Sending::within(send, &self.credit), Receiving::new(recv, &self.credit));
                    refuse(refused.0, refused.1, Code::ShuttingDown);
                }
            }
        }
        self.guard.traffic.close(&self.connection, Code::ShuttingDown);
    }

    /// Returns when the session accepts no more streams: the server stops, or another process has
    /// replaced this one and the device has had time to move there.
    async fn last_stream(&self, notices: &Notices) {
        tokio::select! {
            () = self.server.draining.cancelled() => return,
            () = self.server.replaced.cancelled() => {}
        }
        let moved = async {
            notices.device_moved().await;
            tokio::time::sleep(LATE_WITHIN).await;
        };
        tokio::select! {
            () = self.server.draining.cancelled() => {}
            () = moved => {}
            () = tokio::time::sleep(MOVE_WITHIN) => {}
        }
    }

    /// What the device is given to remember.
    fn sealed_epoch(&self) -> String {
        let epoch = self.server.policy.snapshot().history().epoch;
        self.server.state.keys.epochs().seal(epoch, self.device.id)
    }

    fn is_expired(&self) -> bool {
        self.not_after.load(Relaxed) < unix_now()
    }

    /// Notes that the device uses its own knock key: the shared key is closed when all devices do.
    async fn note_own_knock(&self) {
        let id = self.device.id;
        let noted = self.server.in_register(move |register| register.has_own_knock(id)).await;
        if noted.is_ok() {
            let _ = self.server.refresh().await;
        }
    }

    async fn note_seen(&self) {
        let (id, now) = (self.device.id, unix_now());
        // A failure was logged; the device is not refused for it.
        let _ = self.server.in_register(move |register| register.seen(id, now)).await;
    }
}
