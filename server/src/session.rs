//! A tunnel after its handshake: admitted once more and greeted; each of its streams is joined to
//! its service.

pub(crate) mod enroll;
pub(crate) mod enroll_socket;
pub(crate) mod enrollment;
mod notes;
mod notices;
mod queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::{
    machine::process::{loopback_id, unix_millis, unix_now},
    transport::{
        FIRST_STREAMS, HANDSHAKE_WITHIN, MOST_STREAMS,
        credit::Credit,
        frame, grant,
        splice::{Facing, Receiving, Sending, splice},
    },
};
use proto::{
    doctor::{DoctorAnswer, DoctorRequest},
    identity::{Certificate, Name},
    wire::{Code, Greeting, Hello, RenewAnswer, ServiceKind, StreamHead},
};
use quinn::{Connection, ReadExactError, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, debug, info, warn};

use self::notices::Notices;
use crate::{
    doctor,
    gate::StreamContext,
    ingress::admission::{HandshakeSlot, Knocker},
    policy::{Admitted, Caller, Permit, upstream},
    running::{
        Server,
        sessions::{self, SessionGuard, close},
    },
    state::ca::DeviceKey,
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
    if let Err(wrong) = server.state.ca.check_clock(unix_now()) {
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
    let (epoch, probes) = tokio::select! {
        greeted = tokio::time::timeout(HANDSHAKE_WITHIN, greeting) => match greeted {
            Ok(Ok((greeting, probes))) => {
                debug!(version = greeting.version, "greeted");
                (greeting.epoch, probes)
            }
            _ => return close(&connection, Code::Protocol),
        },
        () = slot.displaced() => return close(&connection, Code::Busy),
        () = server.draining.cancelled() => return close(&connection, Code::ShuttingDown),
        () = server.replaced.cancelled() => return close(&connection, Code::ShuttingDown),
    };
    drop(slot);
    if let Some(remembered) = epoch {
        server.hear_epoch(id, &remembered).await;
    }
    // Entered first, then checked: a revocation since the handshake either finds the session among
    // the live ones, or is noticed here.
    let guard = server.live.enter(id, &peer, &connection, unix_now());
    let device = match server.policy.admit(&peer) {
        Ok(device) => device,
        Err(code) => return sessions::refuse(&connection, &server.policy, &peer, code),
    };
    let span = tracing::info_span!("session", device = %device.name, id = %device.id);
    let not_after = AtomicI64::new(peer.not_after);
    let session = Arc::new(Session {
        draining: server.draining.child_token(),
        server,
        credit: Credit::new(&connection),
        connection,
        guard,
        peer,
        spki,
        device,
        not_after,
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
    /// When a renewal was last tried in this session.
    renewed: AtomicI64,
    /// A permit for each stream that is served.
    slots: Semaphore,
    /// How much its streams may send.
    credit: Arc<Credit>,
    /// Cancelled when the session accepts no more streams.
    draining: CancellationToken,
}

/// How long a device may take to begin a session in the process that has replaced this one. One that
/// is away or an older version gets no more streams here then; its running answers go on.
const MOVE_WITHIN: Duration = Duration::from_secs(10);
/// How long the streams that a device opened before it moved may take to arrive: their packets may
/// have been lost and come again.
const LATE_WITHIN: Duration = Duration::from_secs(1);

/// How long a stream of `adit doctor` may last, and how many questions it may have.
const DOCTOR_WITHIN: Duration = Duration::from_secs(15);
const MOST_QUESTIONS: usize = 64;
/// The least time between two renewals in one session; or a tenth of a certificate's lifetime, if
/// that is less.
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// How long a stream waits for another to end if there are too many.
const SLOT_WITHIN: Duration = Duration::from_secs(10);

impl Session {
    async fn run(self: Arc<Self>, probes: RecvStream, has_own_knock: bool) {
        let began = Instant::now();
        self.note_begin();
        info!(from = %self.connection.remote_address(), "connected");
        if has_own_knock && self.server.policy.snapshot().needs_shared_knock(self.device.id) {
            self.note_own_knock().await;
        }
        // The disk may be slow, and nothing depends on the result.
        let session = self.clone();
        let seen = AbortOnDropHandle::new(tokio::spawn(
            async move { session.note_seen().await }.in_current_span(),
        ));
        let session = self.clone();
        let _credit = AbortOnDropHandle::new(tokio::spawn(
            async move { session.credit.exchange().await }.in_current_span(),
        ));
        let mut streams = JoinSet::new();
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(HANDSHAKE_WITHIN, self.greet()) => greeted,
            () = self.server.draining.cancelled() => Ok(Err(std::io::ErrorKind::Interrupted.into())),
        };
        match greeted {
            Ok(Ok(stream)) => {
                let notices = Notices::start(
                    stream,
                    probes,
                    self.server.replaced.clone(),
                    self.draining.clone(),
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
    async fn greet(&self) -> std::io::Result<SendStream> {
        let mut stream = self.connection.open_uni().await?;
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: self.device.name.clone(),
            device_id: self.device.id,
            certificate_expired: self.is_expired(),
            idle_timeout: self.server.idle_timeout.as_secs(),
            services: self.server.policy.services(),
            addresses: self.server.addresses(),
            loopback: loopback_id(),
            knock_key: Some(
                self.server.state.keys.device_knocks().of(self.device.id, self.peer.key),
            ),
            clock: Some(unix_millis()),
            epoch: Some(self.sealed_epoch()),
        };
        frame::write(&mut stream, &hello).await?;
        Ok(stream)
    }

    /// Serves streams until the connection ends; while the server drains, no new ones.
    async fn serve(self: &Arc<Self>, streams: &mut JoinSet<()>, notices: Notices) {
        let mut limit = FIRST_STREAMS;
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
                    streams.spawn(async move { session.serve_stream(send, recv).await }.in_current_span());
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

    async fn serve_stream(&self, send: SendStream, recv: RecvStream) {
        let _counted = Counted::new(&self.guard.traffic.streams);
        let mut send = Sending::within(send, &self.credit);
        let mut recv = Receiving::new(recv, &self.credit);
        let head = tokio::select! {
            biased;
            head = tokio::time::timeout(HANDSHAKE_WITHIN, read_head(&mut recv)) => head,
            // Nothing was requested yet.
            () = self.draining.cancelled() => return refuse(send, recv, Code::ShuttingDown),
        };
        let end = match head {
            Ok(Ok(StreamHead::Forward(service))) => {
                return self.forward(&service, send, recv).await;
            }
            Ok(Ok(StreamHead::Renew)) => {
                let renewed = async {
                    self.renew(&mut send).await?;
                    send.acknowledged().await;
                    Ok(())
                };
                let within = tokio::time::timeout(HANDSHAKE_WITHIN, renewed).await;
                within.unwrap_or(Err(Code::Protocol))
            }
            Ok(Ok(StreamHead::Doctor)) => {
                let answered = Box::pin(self.answer_doctor(&mut send, &mut recv));
                let within = tokio::time::timeout(DOCTOR_WITHIN, answered).await;
                within.unwrap_or(Err(Code::Busy))
            }
            Ok(Ok(StreamHead::Queue)) => {
                let answered = self.answer_queue(&mut send);
                let within = tokio::time::timeout(HANDSHAKE_WITHIN, answered).await;
                within.unwrap_or(Err(Code::Busy))
            }
            Ok(Err(code)) => Err(code),
            Err(_) => Err(Code::Protocol),
        };
        if let Err(code) = end {
            refuse(send, recv, code);
        }
    }

    /// Joins a stream to its service: through the gate, or byte by byte.
    async fn forward(&self, service: &Name, send: Sending, recv: Receiving) {
        if self.server.policy.kind(service) != Some(ServiceKind::Http) {
            return self.forward_bytes(service, send, recv).await;
        }
        let line = StreamContext {
            caller: Caller::Device(&self.peer),
            not_after: &self.not_after,
            asker: self.asker(),
            service,
            slots: &self.slots,
            is_closed: &|| self.connection.close_reason().is_some(),
            meter: &self.guard.traffic.meter,
            draining: &self.draining,
            added: &[],
        };
        let end = self.server.gate.run(line, send, recv).await;
        debug!("stream ended: {end:?}");
    }

    /// Joins a stream to a `tcp` service, and notes it in the audit log.
    async fn forward_bytes(&self, service: &Name, send: Sending, recv: Receiving) {
        let (began, counted) = (Instant::now(), self.guard.traffic.stream());
        let (meter, draining) = (&*counted.meter, &self.draining);
        let (end, why) = match self.reach(service).await {
            Ok((tcp, _slot)) => {
                let never = std::future::pending();
                let splice = splice(tcp, send, recv, Facing::Upstream, meter, draining, never);
                // In memory of its own, as it is large: the other streams do not need it.
                self.end_of(Box::pin(splice).await.end)
            }
            Err(code) => {
                refuse(send, recv, code);
                ("refused", Some(code.as_str()))
            }
        };
        self.note_stream(service, meter, began.elapsed(), (end, why));
    }

    /// A connection to a `tcp` service, and a permit to serve the stream.
    async fn reach(&self, service: &Name) -> Result<(TcpStream, SemaphorePermit<'_>), Code> {
        let permit = self.permit(service)?;
        let slot = tokio::time::timeout(SLOT_WITHIN, self.slots.acquire()).await;
        let slot = slot.ok().and_then(Result::ok).ok_or(Code::TooManyStreams)?;
        let tcp = upstream::dial(&permit)
            .await
            .inspect_err(|code| warn!("cannot reach {}: {}", permit.upstream(), code.sentence()))?;
        // Buffered bytes must not reach a service after a revocation.
        if self.connection.close_reason().is_some() {
            return Err(Code::Cut);
        }
        Ok((tcp, slot))
    }

    /// What the device is given to remember.
    fn sealed_epoch(&self) -> String {
        let epoch = self.server.policy.snapshot().history().epoch;
        self.server.state.keys.epochs().seal(epoch, self.device.id)
    }

    fn is_expired(&self) -> bool {
        self.not_after.load(Relaxed) < unix_now()
    }

    fn permit(&self, service: &Name) -> Result<Permit, Code> {
        if self.is_expired() {
            return Err(Code::Expired);
        }
        self.server.policy.permit(Caller::Device(&self.peer), service)
    }

    /// Sends a new certificate for the key that the handshake has verified.
    async fn renew(&self, send: &mut Sending) -> Result<(), Code> {
        let device = self.server.policy.admit(&self.peer)?;
        self.server.state.ca.check_clock(unix_now()).map_err(|_| Code::ServerClock)?;
        // Each renewal costs a signature and a write to the disk; none is needed in the first tenth
        // of a certificate's lifetime.
        let now = unix_now();
        let pause = (self.server.device_life / 10).min(RENEW_PAUSE).as_secs() as i64;
        let is_due = |last| (last <= now - pause).then_some(now);
        if self.renewed.fetch_update(Relaxed, Relaxed, is_due).is_err() {
            return Err(Code::Busy);
        }
        let key = DeviceKey::from_spki(&self.spki).map_err(|_| Code::Protocol)?;
        let issued = self
            .server
            .state
            .ca
            .issue_device(device.id, &key, time::OffsetDateTime::now_utc(), self.server.device_life)
            .map_err(|e| {
                warn!("cannot renew a certificate: {e}");
                Code::Busy
            })?;
        let not_after = issued.not_after;
        self.server
            .in_register(move |register| register.renewed(device.id, not_after))
            .await
            .map_err(|_| Code::Busy)?;
        let answer = RenewAnswer {
            certificate: data_encoding::BASE64.encode(&issued.certificate),
            epoch: Some(self.sealed_epoch()),
        };
        let mut framed = Vec::new();
        frame::write(&mut framed, &answer).await.map_err(|_| Code::Busy)?;
        send.write_all(&framed).await.map_err(|_| Code::Cut)?;
        send.finish();
        self.not_after.store(not_after, Relaxed);
        // The policy in memory still has the old expiry. A failure was logged, and the new
        // certificate is valid all the same.
        let _ = self.server.refresh().await;
        info!("certificate renewed");
        Ok(())
    }

    /// Answers what `adit doctor` asks, as far as this device may know it.
    async fn answer_doctor(&self, send: &mut Sending, recv: &mut Receiving) -> Result<(), Code> {
        if self.is_expired() {
            return Err(Code::Expired);
        }
        let _slot = self.slots.try_acquire().map_err(|_| Code::TooManyStreams)?;
        for _ in 0..MOST_QUESTIONS {
            let Some(asked) = next_question(recv).await? else {
                send.finish();
                return Ok(());
            };
            // Asked for each answer: a revocation counts at once.
            let device = self.server.policy.admit(&self.peer)?;
            let answer = match asked {
                DoctorRequest::Clock => DoctorAnswer::Clock(unix_millis()),
                DoctorRequest::Report => {
                    DoctorAnswer::Report(doctor::for_device(&self.server, device.id).await)
                }
            };
            let mut framed = Vec::new();
            frame::write(&mut framed, &answer).await.map_err(|_| Code::Busy)?;
            send.write_all(&framed).await.map_err(|_| Code::Cut)?;
        }
        Err(Code::Busy)
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

fn refuse(mut send: Sending, mut recv: Receiving, code: Code) {
    send.reset(code);
    recv.stop((code as u32).into());
}

/// The next question on a stream; `None` at its end.
async fn next_question(recv: &mut Receiving) -> Result<Option<DoctorRequest>, Code> {
    match frame::receive(recv).await {
        Ok(asked) => Ok(Some(asked)),
        Err(e) => match e.get_ref().and_then(|e| e.downcast_ref()) {
            Some(ReadExactError::FinishedEarly(0)) => Ok(None),
            Some(_) => Err(Code::Cut),
            None => Err(Code::Protocol),
        },
    }
}

/// Counts a stream while it is open.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(streams: &'a AtomicUsize) -> Self {
        streams.fetch_add(1, Relaxed);
        Self(streams)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Reads the head of a stream, and no byte after it.
async fn read_head(recv: &mut Receiving) -> Result<StreamHead, Code> {
    let mut bytes = [0; StreamHead::MAX_LEN];
    let (mut have, mut want) = (0, 2);
    loop {
        recv.read_exact(&mut bytes[have..want]).await.map_err(|_| Code::Protocol)?;
        have = want;
        match StreamHead::decode(&bytes[..have]) {
            Ok(Some((head, _))) => return Ok(head),
            Ok(None) => want = (2 + usize::from(bytes[1])).min(StreamHead::MAX_LEN),
            Err(_) => return Err(Code::Protocol),
        }
    }
}
