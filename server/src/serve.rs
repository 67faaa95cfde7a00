//! `aditd serve`: opens the sockets, creates the parts of the server, and drains when it is
//! stopped.

pub(crate) mod certificate;
mod https;
mod listen;
pub(crate) mod look;
pub(crate) mod reload;
pub(crate) mod started;

use std::{io, sync::Arc, time::Duration};

use common::{
    machine::{
        control::{ClaimError, Control},
        process::{StopSignals, unix_now},
        report::{Exit, Failure},
    },
    transport::{
        self, LONGEST_DATAGRAM,
        carrier::{PacketRepeats, RepeatingSocket, SystemSocket},
        tls::{self, Admit},
    },
};
use proto::{human, wire::Code};
use quinn::{AsyncUdpSocket, Connecting, Connection, Endpoint, ServerConfig, TokioRuntime};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::{
    accounting::{self, Accounting},
    audit::Event,
    config::{self, Config, Settings},
    doctor,
    ingress::{
        admission::{
            Admission, AttemptVerdict, Handshake, HandshakeSlot, Knocker, connection_ids::OwnIds,
        },
        filter::FilteredSocket,
        relay::Relay,
        sockets::Sockets,
        verifier::DeviceVerifier,
    },
    policy::Policy,
    running::{Answer, Open, Request, Server},
    serve::{certificate::ServerCertificate, look::Look, reload::Reloaded, started::Started},
    session::{
        self, enroll,
        enroll_socket::GroupSocket,
        enrollment::{self, Claim},
    },
    state::{State, register::User},
};

/// How long running answers may take after the order to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// How many attempts may wait to be judged.
const INCOMING: usize = 256;
const INCOMING_BUFFER: u64 = 64 << 10;
const INCOMING_BUFFERS: u64 = 4 << 20;

/// Runs the server until it is stopped (SIGINT, SIGTERM).
pub(crate) async fn run(settings: Settings) -> Result<(), Failure> {
    let config = settings.config.clone();
    // Steps that can fail for want of a port or a group come first: a first start that fails must
    // not leave a state in which devices then enroll.
    let claim = || Control::claim(&config.state_dir).map_err(|e| claimed(e, &config));
    let claimed_before = config.state_dir.is_dir().then(claim).transpose()?;
    let sockets = listen::bind(&config)?;
    let https = match config.https.clone() {
        Some(settings) => Some((crate::https::bind(&settings.listen)?, settings)),
        None => None,
    };
    let exporter = match &config.accounting.metrics {
        Some(address) => Some(accounting::exporter(address).await.map_err(|failure| {
            // The configuration may be correct: the port or the address is not available now.
            let failure = failure.exit(Exit::Failed);
            address.cure().into_iter().fold(failure, Failure::hint)
        })?),
        None => None,
    };
    let mut stop =
        StopSignals::listen().map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let group = config.enroll_group.as_ref();
    let group = group.map(|group| GroupSocket::bind(&config.enroll_socket, group)).transpose()?;
    let state = State::open_or_create(&config.state_dir)?;
    let control = claimed_before.map_or_else(claim, Ok)?;
    // Only hints need it.
    if let Err(e) = Started::now(&settings.flags, &settings.serve).note(&state.dir) {
        debug!("cannot note how this server was started: {e}");
    }
    let accounting = Accounting::open(&config.accounting, &state.dir)?;
    // Read before the snapshot: a change between the two is then noticed.
    let version = state.register.version()?;
    let snapshot = state.register.snapshot()?;
    for remark in config.remarks(&snapshot) {
        warn!("{remark}");
    }
    let policy = Arc::new(Policy::new(snapshot, config.rules.clone(), config.upstream));
    let certificate = ServerCertificate::new(
        state.ca.server_identity(&state.dir, time::OffsetDateTime::now_utc())?,
    );
    let (tunnel, enrollment) =
        tls_configs(&state, &certificate, policy.clone(), config.idle_timeout)?;
    let admission = Arc::new(Admission::new(&state.keys, policy.clone()));
    let socket_buffers = sockets.first().and_then(|socket| transport::buffer_sizes(socket).ok());
    let repeats = Arc::<PacketRepeats>::default();
    let unusable = |e: io::Error| Failure::new("cannot use a UDP socket").source(e);
    let sockets = sockets.into_iter().map(SystemSocket::new).collect::<Result<Vec<_>, _>>();
    let sockets = sockets.map_err(unusable)?;
    let filtered = sockets.iter().map(|socket| {
        let socket = Arc::new(RepeatingSocket::new(socket.clone(), repeats.clone()));
        let filtered = FilteredSocket::new(socket, config.audience.clone(), admission.clone());
        Arc::new(filtered) as Arc<dyn AsyncUdpSocket>
    });
    let endpoint = Sockets::new(filtered.collect())
        .and_then(|sockets| endpoint(sockets, &state, tunnel.clone()))
        .map_err(unusable)?;
    let listening = sockets.iter().filter_map(|s| s.local_addr().ok()).collect::<Vec<_>>();
    // `aditd invite` may run before this server is up.
    let addresses = config::addresses(&config.advertise, &listening, &config.audience);
    state.register.set_addresses(&addresses)?;
    for address in &listening {
        info!("listening on {address} (UDP), forwarding to {}", config.upstream);
    }
    if let Some((receive, send)) = socket_buffers {
        debug!(
            "the system grants {} for receiving and {} for sending on a UDP socket",
            human::size(receive as u64),
            human::size(send as u64)
        );
    }
    let relays = if config.tcp_relay { Relay::beside(&listening).await } else { Vec::new() };
    let relay = relays.first().map(Relay::port);
    let (https, bound) = match https {
        Some((bound, settings)) => {
            let (https, bound) = https::open(bound, settings, &state, policy.clone())?;
            (Some(https), bound)
        }
        None => (None, Vec::new()),
    };
    let server = Server::new(
        state,
        policy,
        accounting,
        version,
        settings,
        Open { listening, socket_buffers, relay, https: https.clone(), sockets },
    );
    server.gate.set_authority(config.authority());
    let draining = server.draining.clone();
    let sessions = TaskTracker::new();
    let mut services = tokio::task::JoinSet::new();
    let doors = Doors { admission: admission.clone(), tunnel, enrollment, server: server.clone() };
    services.spawn(doors.attend(endpoint.clone(), sessions.clone()));
    if let Some(group) = group {
        services.spawn(group.serve(server.clone()));
    }
    if let Some(https) = https.clone() {
        services.spawn(https::serve(server.clone(), https, bound, sessions.clone()));
    }
    for relay in relays {
        services.spawn(relay.serve());
    }
    services.spawn(server.clone().follow_register());
    services.spawn(server.clone().follow_addresses());
    let (held, following) = (certificate.clone(), server.clone());
    services.spawn(async move { held.follow(&following.state).await });
    services.spawn(server.live.clone().watch(repeats.clone()));
    services.spawn(server.accounting.clone().keep());
    if let Some(exporter) = exporter {
        info!("metrics at {}", exporter.address());
        let look =
            Look { server: server.clone(), admission: admission.clone(), certificate, repeats };
        services.spawn(exporter.serve(move || look.text()));
    }
    server
        .accounting
        .audit
        .note(Event::Start { version: env!("CARGO_PKG_VERSION"), pid: std::process::id() });
    services.spawn(reload::on_hangup(server.clone()));
    services.spawn(answer_control(control, server.clone()));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let failed = tokio::select! {
        () = stop.asked() => None,
        // None of the services ends by itself. If one does, the server must not look healthy.
        ended = services.join_next() => Some(ended),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    draining.cancel();
    if let Some(ended) = failed {
        return Err(Failure::new("a part of the server stopped unexpectedly")
            .source(format!("{ended:?}"))
            .hint("the log above says why"));
    }
    sessions.close();
    if !sessions.is_empty() {
        let streams: usize = server.live.status().iter().map(|session| session.streams).sum();
        if streams > 0 {
            info!(
                "stopping: {} running, with {} s to end (Ctrl-C again ends them now)",
                human::count(streams as u64, "stream"),
                DRAIN_WITHIN.as_secs()
            );
        }
        tokio::select! {
            () = sessions.wait() => {}
            () = tokio::time::sleep(DRAIN_WITHIN) => {
                let within = DRAIN_WITHIN.as_secs();
                warn!("{within} s are over: ending the requests that still run: {}", open_streams(&server));
            }
            () = stop.asked() => {}
        }
    }
    services.shutdown().await;
    // A closed QUIC endpoint would answer new clients with a refusal.
    admission.close();
    endpoint.close((Code::ShuttingDown as u32).into(), Code::ShuttingDown.sentence().as_bytes());
    let farewell = async {
        endpoint.wait_idle().await;
        sessions.wait().await;
    };
    // A client that is away does not get the close; it will notice the restart by a stateless
    // reset.
    let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
    if let Some(https) = &https {
        server.note_keys_now(https).await;
    }
    server.accounting.close().await;
    info!("stopped");
    Ok(())
}

/// The devices with requests that run, each with how many: "laptop (2 streams), ci (1 stream)".
fn open_streams(server: &Server) -> String {
    let register = server.policy.snapshot();
    let name = |id| register.devices().find(|device| device.id == id).map(|device| &device.name);
    let sessions = server.live.status().into_iter().filter(|session| session.streams > 0);
    let shown = sessions.map(|session| {
        let streams = human::count(session.streams as u64, "stream");
        match name(session.device_id) {
            Some(name) => format!("{name} ({streams})"),
            None => format!("{} ({streams})", session.device_id),
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn claimed(error: ClaimError, config: &Config) -> Failure {
    let failure =
        Failure::new(format!("cannot serve the state in `{}`", config.state_dir.display()));
    match error {
        ClaimError::Taken { .. } => failure
            .source(format!("aditd {error}"))
            .hint("to see what it does: `aditd status`")
            .hint("to stop it: `systemctl stop aditd` if it is a service, else Ctrl-C in its terminal"),
        ClaimError::File(e) => e.into(),
    }
}

fn tls_configs(
    state: &State,
    certificate: &Arc<ServerCertificate>,
    policy: Arc<Policy>,
    idle: Duration,
) -> Result<(Arc<ServerConfig>, Arc<ServerConfig>), Failure> {
    let wrong = |e: rustls::Error| Failure::new("cannot use the server's certificate").source(e);
    let verifier = Arc::new(DeviceVerifier::new(&state.ca, policy).map_err(wrong)?);
    let build = |admit, streams| -> Result<Arc<ServerConfig>, Failure> {
        let crypto = tls::server(admit, certificate.clone()).map_err(wrong)?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(transport::settings(streams, idle, LONGEST_DATAGRAM))
            .max_incoming(INCOMING)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFERS);
        // No address tokens for later connections; a client proves its address each time.
        config.validation_token.sent(0);
        Ok(Arc::new(config))
    };
    Ok((
        build(Admit::Certified(verifier), transport::grant(transport::FIRST_STREAMS))?,
        build(Admit::Anybody, 1)?,
    ))
}

/// The one QUIC endpoint on all sockets: a packet of a session may come to any of them.
fn endpoint(sockets: Sockets, state: &State, tunnel: Arc<ServerConfig>) -> io::Result<Endpoint> {
    // Every client says how long the datagrams are that it accepts; usually they are shorter.
    let mut endpoint = transport::endpoint(LONGEST_DATAGRAM);
    let (key, resets) = (state.keys.reset.clone(), Arc::default());
    endpoint
        .reset_key(Arc::new(aws_lc_rs::hmac::Key::new(
            aws_lc_rs::hmac::HMAC_SHA256,
            state.keys.reset.as_bytes(),
        )))
        .cid_generator(move || Box::new(OwnIds::new(&key, Arc::clone(&resets))));
    Endpoint::new_with_abstract_socket(
        endpoint,
        Some((*tunnel).clone()),
        Arc::new(sockets),
        Arc::new(TokioRuntime),
    )
}

struct Doors {
    admission: Arc<Admission>,
    tunnel: Arc<ServerConfig>,
    enrollment: Arc<ServerConfig>,
    server: Arc<Server>,
}

impl Doors {
    /// Judges every attempt, and begins the admitted handshakes.
    async fn attend(self, endpoint: Endpoint, sessions: TaskTracker) {
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                () = self.server.draining.cancelled() => return,
            };
            let Some(incoming) = incoming else { return };
            let (knock, remote, proved) = (
                incoming.orig_dst_cid(),
                incoming.remote_address(),
                incoming.remote_address_validated(),
            );
            let slot = match self.admission.judge(&knock, remote, proved, unix_now()) {
                AttemptVerdict::Ignore(reason) => {
                    debug!(%remote, "ignored: {reason:?}");
                    incoming.ignore();
                    continue;
                }
                AttemptVerdict::Retry => {
                    let _ = incoming.retry();
                    continue;
                }
                AttemptVerdict::Accept(slot) => slot,
            };
            let config = match slot.knocker() {
                Knocker::Device(_) | Knocker::Shared => &self.tunnel,
                Knocker::Invited(_) => &self.enrollment,
            };
            let Ok(connecting) = incoming.accept_with(config.clone()) else {
                continue;
            };
            let (server, admission) = (self.server.clone(), self.admission.clone());
            sessions.spawn(async move {
                let Some(connection) = shake(&server, &admission, &slot, connecting).await else {
                    return;
                };
                match slot.knocker() {
                    Knocker::Invited(_) => enroll::run(server, connection, slot).await,
                    _ => session::run(server, connection, slot).await,
                }
            });
        }
    }
}

/// Runs a handshake to its end, if it is an honest one.
async fn shake(
    server: &Server,
    admission: &Admission,
    slot: &HandshakeSlot,
    connecting: Connecting,
) -> Option<Connection> {
    let remote = connecting.remote_address();
    let (how, why) = tokio::select! {
        done = connecting => match done {
            Ok(connection) => {
                let is_enrollment = matches!(slot.knocker(), Knocker::Invited(_));
                admission.count_handshake(if is_enrollment { Handshake::Enrollment } else { Handshake::Tunnel });
                return Some(connection);
            }
            Err(e) => (Handshake::Failed, format!("refused a connection: {e}")),
        },
        () = tokio::time::sleep(transport::HANDSHAKE_WITHIN) => {
            (Handshake::Late, "gave up a handshake that took too long".to_owned())
        }
        () = slot.displaced() => {
            (Handshake::Displaced, "gave up the oldest handshake for another".to_owned())
        }
        // An unfinished handshake does not delay a server that stops.
        () = server.draining.cancelled() => return None,
    };
    admission.count_handshake(how);
    info!(%remote, "{why}");
    None
}

async fn answer_control(control: Control, server: Arc<Server>) {
    let answer = move |request| {
        let server = server.clone();
        async move {
            match request {
                Request::Status => Answer::Status(Box::new(server.status())),
                Request::Tokens { device } => Answer::Tokens(server.tokens_today(device)),
                Request::Reload { named } => match server.reload(named.as_deref()).await {
                    Ok(Reloaded { file, later, remarks }) => Answer::Reloaded {
                        file,
                        later: later.into_iter().map(str::to_owned).collect(),
                        remarks,
                    },
                    Err(failure) => Answer::Failed(failure),
                },
                Request::Enroll { name, csr, uid } => {
                    let claim = Claim::User { user: User { uid, is_owner: true }, name };
                    match enrollment::enroll(&server, claim, &csr).await {
                        Ok(enrolled) => Answer::Enrolled(Box::new(enrolled)),
                        Err(why) => Answer::Failed(why.into()),
                    }
                }
                Request::Doctor => Answer::Doctor(Box::new(doctor::of_running(&server).await)),
                Request::InForce => Answer::InForce(server.in_force()),
                Request::Refresh => match server.refresh().await {
                    Ok(cut) => Answer::Refreshed { cut },
                    Err(e) => Answer::Failed(e.into()),
                },
            }
        }
    };
    match control.serve(answer).await {}
}
