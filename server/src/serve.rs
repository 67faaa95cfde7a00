//! `aditd serve`: opens the sockets, creates the parts of the server, and drains when it is
//! stopped or another process replaces it.

mod answers;
mod api;
pub(crate) mod certificate;
mod doors;
mod drain;
pub(crate) mod entrances;
mod https;
mod listen;
pub(crate) mod look;
mod notify;
pub(crate) mod reload;
pub(crate) mod started;
mod succession;

pub(crate) use self::succession::TAKE_OVER;

use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc};

use common::{
    machine::{
        control::{ClaimError, Control},
        files,
        process::StopSignals,
        report::{Exit, Failure},
    },
    transport::{
        self,
        carrier::{PacketRepeats, RepeatingSocket, SystemSocket},
    },
};
use proto::human;
use quinn::AsyncUdpSocket;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::{
    answers::answer_control,
    doors::{Doors, endpoint},
    entrances::Entrances,
    look::Look,
    started::Started,
    succession::{Estate, Taken},
};
use crate::{
    accounting::{self, Accounting},
    audit::Event,
    config::{self, Config, Settings},
    ingress::{
        admission::{
            Admission,
            connection_ids::{IdKey, first_generation},
        },
        filter::FilteredSocket,
        older::Older,
        relay::Relay,
        sockets::Sockets,
    },
    metrics::serve::Exporter,
    outside,
    policy::{Policy, roles::default_service},
    running::{Open, Server, replacement::Replacements},
    sandbox,
    session::enroll_socket::GroupSocket,
    state::State,
};

/// Runs the server until it is stopped (SIGINT, SIGTERM), or until another process has replaced it and
/// the answers that run here have ended. With `take_over` it replaces a running process itself.
///
/// # Errors
/// Those of the settings, and why it cannot serve.
pub(crate) async fn start(
    take_over: bool,
    settings: Result<Settings, Failure>,
) -> Result<(), Failure> {
    if !take_over {
        return run(settings?, None).await;
    }
    let taken = Taken::receive().await?;
    let teller = taken.teller();
    let result = match settings {
        Ok(settings) => run(settings, Some(taken)).await,
        Err(e) => Err(e),
    };
    if let (Err(why), Ok(teller)) = (&result, teller) {
        teller.tell(why).await;
    }
    result
}

/// Opens what is still to be opened, and enters the sandbox.
async fn give_up_rights(config: &Config) {
    // An audit log that cannot be made is reported when it is opened.
    let _ = files::create_dir(&config.accounting.audit.dir);
    notify::open();
    sandbox::enter(config).await;
}

async fn run(settings: Settings, mut taken: Option<Taken>) -> Result<(), Failure> {
    let config = settings.config.clone();
    // Steps that can fail for want of a port or a group come first: a first start that fails must
    // not leave a state in which devices then enroll.
    let claim = || Control::claim(&config.state_dir).map_err(|e| claimed(e, &config));
    let claimed_before = match &mut taken {
        Some(taken) => {
            taken.check(&config)?;
            Some(taken.control(&config.state_dir)?)
        }
        None => config.state_dir.is_dir().then(claim).transpose()?,
    };
    let sockets = match &mut taken {
        Some(taken) => std::mem::take(&mut taken.sockets),
        None => listen::bind(&config)?,
    };
    let https = match config.https.clone() {
        Some(settings) => {
            let given = taken.as_mut().and_then(|taken| taken.https(&settings.listen));
            Some((given.map_or_else(|| crate::https::bind(&settings.listen), Ok)?, settings))
        }
        None => None,
    };
    let exporter = exporter(&config, taken.as_mut()).await?;
    let mut stop =
        StopSignals::listen().map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let listening = sockets.iter().filter_map(|s| s.local_addr().ok()).collect::<Vec<_>>();
    let unusable = |e: io::Error| Failure::new("cannot use a UDP socket").source(e);
    let relays = relays(&config, &listening, taken.as_mut()).await.map_err(unusable)?;
    let group = config.enroll_group.as_ref();
    let group = group.map(|group| GroupSocket::bind(&config.enroll_socket, group)).transpose()?;
    // Only hints need it. The sandbox hides the unit.
    let started = taken.is_none().then(|| Started::now(&settings.flags, &settings.serve));
    // A state that is there is read with as few rights as possible. A new one is made first: Landlock
    // gives rights only to what exists.
    let is_there = config.state_dir.is_dir();
    if is_there {
        give_up_rights(&config).await;
    }
    let state = State::open_or_create(&config.state_dir)?;
    let control = Arc::new(claimed_before.map_or_else(claim, Ok)?);
    // One that replaces another process was started as that one was.
    if let Some(started) = started
        && let Err(e) = started.note(&state.dir)
    {
        debug!("cannot note how this server was started: {e}");
    }
    if !is_there {
        give_up_rights(&config).await;
    }
    let accounting = Accounting::open(&config.accounting, &state.dir)?;
    // Read before the snapshot: a change between the two is then noticed.
    let version = state.register.version()?;
    let snapshot = state.register.snapshot()?;
    for remark in config.remarks(&snapshot) {
        warn!("{remark}");
    }
    accounting.know(&snapshot, |user| Some(config.jwt.as_ref()?.holder_id(user)));
    let policy = Arc::new(Policy::new(snapshot, config.rules.clone(), config.services.clone()));
    policy.set_tokens(config.jwt.clone());
    let entrances = Entrances::open(&state, policy.clone(), config.idle_timeout)?;
    let admission = Admission::new(&state.keys, state.authorities.clone(), policy.clone());
    let admission = Arc::new(admission);
    let socket_buffers = sockets.first().and_then(|socket| transport::buffer_sizes(socket).ok());
    let repeats = Arc::<PacketRepeats>::default();
    let sockets = sockets.into_iter().map(SystemSocket::new).collect::<Result<Vec<_>, _>>();
    let sockets = sockets.map_err(unusable)?;
    // `aditd invite` may run before this server is up.
    let addresses = config::addresses(&config.advertise, &listening, &config.audience);
    state.register.set_addresses(&addresses)?;
    for address in &listening {
        info!("listening on {address} (UDP), forwarding to {}", config.upstream());
    }
    for (name, upstream) in config.upstreams() {
        if name != &default_service() {
            info!("the service `{name}` is at {upstream}");
        }
        if upstream.is_elsewhere() {
            warn!("{}", upstream.unencrypted(name));
        }
    }
    if let Some((receive, send)) = socket_buffers {
        debug!(
            "the system grants {} for receiving and {} for sending on a UDP socket",
            human::size(receive as u64),
            human::size(send as u64)
        );
    }
    let relay = relays.first().map(Relay::port);
    let key = IdKey::new(&state.keys.reset);
    let mut ways = taken.as_mut().map(|t| std::mem::take(&mut t.ways)).unwrap_or_default();
    ways.resize_with(sockets.len(), Vec::new);
    let older_on: Vec<_> =
        ways.into_iter().map(|ways| Arc::new(Older::new(key.clone(), ways))).collect();
    let generation = taken.as_ref().map_or_else(first_generation, Taken::generation);
    let older = taken.as_mut().map(Taken::older).unwrap_or_default();
    let (replacements, mut orders) = Replacements::new(older.clone());
    let (https, bound) = match https {
        Some((bound, settings)) => {
            let (https, bound) = https::open(bound, settings, &state, policy.clone())?;
            (Some(https), bound)
        }
        None => (None, Vec::new()),
    };
    let open =
        Open { listening, socket_buffers, relay, https: https.clone(), sockets: sockets.clone() };
    let server =
        Server::new(state, policy.clone(), accounting, version, settings, open, replacements);
    server.gate.set_authority(config.authority());
    let giver = taken.as_ref().map(Taken::giver);
    let successor = match taken {
        Some(taken) => {
            let (usage, successor) = taken.ready().await?;
            server.accounting.limiter.take(usage);
            Some(successor)
        }
        None => None,
    };
    control.own();
    let doors = Doors {
        admission: admission.clone(),
        entrances: entrances.clone(),
        server: server.clone(),
    };
    let sessions = TaskTracker::new();
    // What goes on when another process has replaced this one, and what that one does then.
    let (mut services, mut given) = (JoinSet::new(), JoinSet::new());
    let filtered = sockets.iter().zip(&older_on).map(|(socket, older)| {
        let socket = Arc::new(RepeatingSocket::new(socket.clone(), repeats.clone()));
        let (audience, older) = (config.audience.clone(), older.clone());
        let filtered = FilteredSocket::new(socket, audience, admission.clone(), older);
        Arc::new(filtered) as Arc<dyn AsyncUdpSocket>
    });
    let endpoint = Sockets::new(filtered.collect())
        .and_then(|sockets| endpoint(sockets, generation, &server.state, &doors))
        .map_err(unusable)?;
    services.spawn(doors.attend(endpoint.clone(), sessions.clone()));
    let mut estate = Estate {
        generation,
        config: &config,
        control: &control,
        sockets: sockets.iter().cloned().zip(older_on).collect(),
        relays: relays.iter().filter_map(|relay| relay.listener().ok()).collect(),
        https: bound.iter().filter_map(|socket| socket.as_fd().try_clone_to_owned().ok()).collect(),
        metrics: exporter.as_ref().and_then(|exporter| exporter.listener().ok()),
        older: older.clone(),
    };
    if let Some(group) = group {
        given.spawn(group.serve(server.clone()));
    }
    if let Some(https) = https.clone() {
        services.spawn(https::serve(server.clone(), https, bound, sessions.clone()));
    }
    for relay in relays {
        services.spawn(relay.serve(server.replaced.clone()));
    }
    services.spawn(server.clone().follow_register());
    let following = policy.clone();
    services.spawn(async move { following.follow_tokens().await });
    given.spawn(server.clone().follow_addresses());
    let (held, following) = (entrances.clone(), server.clone());
    services.spawn(async move { held.follow(following).await });
    services.spawn(server.live.clone().watch(repeats.clone()));
    given.spawn(server.accounting.clone().keep());
    if let Some(exporter) = exporter {
        info!("metrics at {}", exporter.address());
        let look =
            Look { server: server.clone(), admission: admission.clone(), entrances, repeats };
        services.spawn(exporter.serve(move || look.text(), server.replaced.clone()));
    }
    server
        .accounting
        .audit
        .note(Event::Start { version: env!("CARGO_PKG_VERSION"), pid: std::process::id() });
    services.spawn(reload::on_hangup(server.clone()));
    services.spawn(older.follow());
    services.spawn(drain::feed_watchdog(server.replaced.clone()));
    services.spawn(outside::report_end());
    services.spawn(answer_control(control.clone(), server.clone()));
    match (successor, giver) {
        // The older process tells systemd which one is the main process now.
        (Some(successor), giver) => {
            successor.serves().await;
            info!("took over from {}", giver.unwrap_or_default());
        }
        _ => notify::tell(&sd_notify::NotifyState::Ready),
    }

    let mut parts = drain::Parts { server, admission, endpoint, https, sessions, services };
    loop {
        tokio::select! {
            () = stop.asked() => return parts.stop(&mut stop).await,
            // None of the services ends by itself. If one does, the server must not look healthy.
            ended = parts.services.join_next() => return Err(parts.failed(ended)),
            ended = given.join_next(), if !given.is_empty() => return Err(parts.failed(ended)),
            Some(program) = orders.recv() => {
                let heir = tokio::select! {
                    heir = estate.offer(&program) => heir,
                    () = stop.asked() => return parts.stop(&mut stop).await,
                };
                let heir = match heir {
                    Ok(heir) => heir,
                    Err(why) => {
                        warn!("not replaced: {}", why.to_string().replace('\n', " "));
                        parts.server.replacements.fail(why);
                        continue;
                    }
                };
                given.shutdown().await;
                let handed_over = hand_over(&mut estate, heir, &parts).await;
                return match handed_over {
                    Ok(link) => parts.end_replaced(&mut stop, link).await,
                    Err(_) if drain::told_to_stop(&mut stop).await => parts.stop(&mut stop).await,
                    Err(why) => Err(why),
                };
            }
        }
    }
}

/// Lets the new process serve. Returns the link to it.
async fn hand_over(
    estate: &mut Estate<'_>,
    mut heir: succession::Heir,
    parts: &drain::Parts,
) -> Result<std::os::unix::net::UnixStream, Failure> {
    let server = &parts.server;
    for ((socket, _), inbox) in estate.sockets.iter().zip(heir.inboxes.drain(..)) {
        socket.read_from(inbox);
    }
    estate.control.give_up();
    let pid = heir.pid();
    let link = heir.go(server.accounting.limiter.give()).await?;
    notify::tell(&sd_notify::NotifyState::MainPid(pid));
    server.replaced.cancel();
    info!("replaced by a new aditd (pid {pid}): answers that run here go on to their end");
    Ok(link)
}

/// Opens the listener of the metrics, or takes it over.
async fn exporter(config: &Config, taken: Option<&mut Taken>) -> Result<Option<Exporter>, Failure> {
    let Some(address) = &config.accounting.metrics else { return Ok(None) };
    if let Some(listener) = taken.and_then(|taken| taken.metrics(&address.to_string())) {
        let unusable = |e| Failure::new("cannot take over the socket of the metrics").source(e);
        return Ok(Some(Exporter::take_over(address, listener).map_err(unusable)?));
    }
    let opened = accounting::exporter(address).await.map_err(|failure| {
        // The configuration may be correct: the port or the address is not available now.
        let failure = failure.exit(Exit::Failed);
        address.cure().into_iter().fold(failure, Failure::hint)
    });
    opened.map(Some)
}

/// Opens the relays, or takes them over.
async fn relays(
    config: &Config,
    listening: &[SocketAddr],
    taken: Option<&mut Taken>,
) -> io::Result<Vec<Relay>> {
    let given = taken.map(|taken| std::mem::take(&mut taken.relays)).unwrap_or_default();
    match (config.tcp_relay, given.is_empty()) {
        (false, _) => Ok(Vec::new()),
        (true, true) => Ok(Relay::beside(listening).await),
        (true, false) => given.into_iter().map(|(to, file)| Relay::take_over(to, file)).collect(),
    }
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
