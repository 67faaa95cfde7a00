//! `adit up`: puts the parts together, says when it is ready, and drains when it is told to stop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::{Args, builder::FalseyValueParser};
use common::{
    control::{ClaimError, Control},
    identity::Name,
    process::{Stop, loopback_id, parse_time},
    report::{Exit, Failure},
    transport::parse_idle_timeout,
    wire::{Code, DEFAULT_SERVICE},
};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    dial::DialError,
    directions::Directions,
    link::Link,
    listener::{self, Front, Listen},
    owner::Owners,
    profile::{Place, Profile, SharedProfile},
    ssh::SshClient,
    status::{Request, Status},
    tunnel::Tunnel,
    way::{CarrierChoice, Way},
};

/// How long the server may take to hear that this is the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Flags of `up`.
#[derive(Debug, Args)]
pub struct UpFlags {
    /// Use this server [default: the only one, or the one called `default`]
    pub name: Option<Name>,
    /// Listen on this loopback address; may be given more than once [default: localhost:11434, IPv4
    /// and IPv6]
    #[arg(long, value_name = "ADDR", env = "ADIT_LISTEN", value_delimiter = ',')]
    listen: Vec<Listen>,
    /// Let every user of this computer in, and not only the one who runs this and root. Only Linux
    /// tells who makes a connection: on other systems everybody is let in anyway
    #[arg(long, env = "ADIT_ANY_USER", value_parser = FalseyValueParser::new())]
    any_user: bool,
    /// Hold connections this long while there is no tunnel, then answer 503
    #[arg(long, value_name = "TIME", env = "ADIT_HOLD", default_value = "30s", value_parser = parse_time)]
    hold: Duration,
    /// Let running answers take this long when told to stop
    #[arg(long, value_name = "TIME", env = "ADIT_DRAIN", default_value = "30s", value_parser = parse_time)]
    drain: Duration,
    /// Carry the tunnel by this alone
    #[arg(long, value_enum, env = "ADIT_CARRIER", default_value = "auto")]
    carrier: CarrierChoice,
    /// Keep the session, and what runs in it, through a silence of this length (the server may
    /// allow less)
    #[arg(long, value_name = "TIME", env = "ADIT_IDLE_TIMEOUT", default_value = "30m", value_parser = parse_idle_timeout)]
    idle_timeout: Duration,
    /// Speak SSH with this client [default: what was chosen at enrolling]
    #[arg(
        long,
        value_name = "CLIENT",
        value_enum,
        env = "ADIT_SSH_CLIENT",
        hide_possible_values = true
    )]
    ssh_client: Option<SshClient>,
}

/// Runs until told to stop (SIGINT, SIGTERM), or until the server says at the first attempt that
/// this device is not allowed.
pub async fn run(place: Place, flags: UpFlags) -> Result<(), Failure> {
    let mut profile = place.read()?;
    if let Some(way) = &mut profile.ssh {
        way.client_now = flags.ssh_client;
    }
    let directions = Directions {
        profile: SharedProfile::new(profile),
        choice: flags.carrier,
        idle_timeout: flags.idle_timeout,
    };
    if let Some(none) = directions.no_way() {
        let hint = none.hint().unwrap_or_default().to_owned();
        return Err(Failure::from_error(none).hint(hint).exit(Exit::Usage));
    }
    let control = Control::claim(&place.dir).map_err(|e| claimed(e, &place))?;
    let mut stop =
        Stop::listen().map_err(|e| Failure::new("cannot listen for signals").because(e))?;
    let listeners = listener::bind(&flags.listen)?;
    let owners = Arc::new(let_in(flags.any_user, &listeners)?);
    let bound: Vec<SocketAddr> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
    let listening: Vec<String> = bound.iter().map(ToString::to_string).collect();
    info!("listening on http://{}", listening.join(" and http://"));

    let (connections, no_more) = (TaskTracker::new(), CancellationToken::new());
    let (tunnel, keep_up) = Tunnel::new(directions, no_more.clone());
    let (mut services, mut accepting) = (JoinSet::new(), JoinSet::new());
    services.spawn(keep_up);
    services.spawn(answer_control(control, tunnel.clone(), listening.clone(), connections.clone()));
    let service: Name = DEFAULT_SERVICE.parse().map_err(Failure::new)?;
    for listener in listeners {
        let front = Front {
            owners: owners.clone(),
            tunnel: tunnel.clone(),
            service: service.clone(),
            hold: flags.hold,
            stop: no_more.clone(),
        };
        accepting.spawn(listener::accept(listener, front, connections.clone()));
    }

    let refused = tokio::select! {
        refused = first_word(&tunnel) => refused,
        () = stop.asked() => None,
    };
    if let Some(failure) = refused {
        return Err(failure);
    }
    if let Some(port) = tunnel.leads_back(&bound) {
        return Err(Failure::new(format!(
            "the server is this same computer, and expects its Ollama on port {port}, where adit would listen"
        ))
        .because("every request would come back here, for ever")
        .hint("choose another port: `adit up --listen localhost:11500`"));
    }
    if tunnel.is_up() {
        info!("ready: Ollama on http://{}", listening.first().map_or("localhost", String::as_str));
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tokio::select! {
            () = stop.asked() => {}
            // None of them ends by itself: a tunnel that is dead must not look alive.
            ended = services.join_next() => return Err(ended_by_itself(ended)),
            ended = accepting.join_next() => return Err(ended_by_itself(ended)),
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    no_more.cancel();
    // Whoever is told that no connection is taken any more must find it so.
    while accepting.join_next().await.is_some() {}
    connections.close();
    if !connections.is_empty() {
        info!(
            "stopping: {} running connections have {} to end (press Ctrl-C again to end them now)",
            connections.len(),
            humantime::format_duration(flags.drain)
        );
        tokio::select! {
            () = connections.wait() => {}
            () = tokio::time::sleep(flags.drain) => warn!("cutting what still runs"),
            () = stop.asked() => {}
        }
    }
    tunnel.close().await;
    // Each sees the end of its stream and aborts its application.
    let _ = tokio::time::timeout(FAREWELL, connections.wait()).await;
    services.shutdown().await;
    Ok(())
}

/// Which users of this computer are let in.
fn let_in(any_user: bool, listeners: &[TcpListener]) -> Result<Owners, Failure> {
    let listening = listeners.first().and_then(|listener| listener.local_addr().ok());
    let Some(listening) = listening.filter(|_| !any_user) else { return Ok(Owners::any()) };
    Owners::own(listening).map_err(|e| {
        Failure::new("cannot keep other users of this computer out of the tunnel")
            .because(format!("the kernel does not tell who makes a connection: {e}"))
            .hint("to let every user of this computer in: `adit up --any-user`")
    })
}

fn ended_by_itself(ended: Option<Result<(), JoinError>>) -> Failure {
    Failure::new("a part of adit ended by itself")
        .because(format!("{ended:?}"))
        .hint("its log says more")
}

/// Waits until the server has said yes (`None`) or no.
async fn first_word(tunnel: &Tunnel) -> Option<Failure> {
    let mut link = tunnel.link();
    let word = link.wait_for(|link| matches!(link, Link::Up(_) | Link::Refused(_))).await;
    match word.as_deref() {
        Ok(Link::Refused(why)) => Some(refused(why, &tunnel.profile())),
        _ => None,
    }
}

/// What was refused, and once, with the names that count here, how to be let in again.
fn refused(why: &DialError, profile: &Profile) -> Failure {
    let failure = Failure::new("the server does not let this device in").exit(Exit::NotAllowed);
    let told = why.to_string();
    if !matches!(why, DialError::Refused(Code::Revoked)) {
        return match told.split_once(": ") {
            Some((what, cure)) => failure.because(what).hint(cure),
            None => failure.because(why.clone()),
        };
    }
    let (device, name) = (&profile.enrolled.device, profile.place.flag());
    let (invite, enroll) = match &profile.ssh {
        Some(way) => (
            String::new(),
            format!("adit enroll --replace{name} --device {device} {}", way.argument()),
        ),
        None => (
            format!(", then `aditd invite {device}` for a new code"),
            format!("adit enroll --replace{name}"),
        ),
    };
    failure
        .because(told.split_once(": ").map_or(told.as_str(), |(what, _)| what).to_owned())
        .hint(format!("if it is to be let in again: the owner runs `aditd device forget {device}` on the server{invite}"))
        .hint(format!("and here it is `{enroll}`"))
}

fn claimed(error: ClaimError, place: &Place) -> Failure {
    match error {
        ClaimError::Taken { .. } => Failure::new(format!("cannot start the tunnel `{}`", place.name))
            .because(format!("adit up: {error}"))
            .hint("see what it does with `adit status`; stop it with Ctrl-C in its terminal, or kill its pid"),
        ClaimError::File(e) => e.into(),
    }
}

async fn answer_control(
    control: Control,
    tunnel: Tunnel,
    listening: Vec<String>,
    connections: TaskTracker,
) {
    let answer = move |request| {
        let status = match request {
            Request::Status => Status::of(&tunnel, &listening, connections.len()),
        };
        async move { status }
    };
    let failed = control.serve(answer).await;
    tracing::error!("the control socket failed: {failed}");
}

impl Tunnel {
    /// Whether the server has said hello and nothing has ended since.
    pub fn is_up(&self) -> bool {
        matches!(&*self.link().borrow(), Link::Up(_) | Link::Silent(_))
    }

    /// The port at which the server would call this very process, if it is on this computer.
    fn leads_back(&self, bound: &[SocketAddr]) -> Option<u16> {
        let link = self.link();
        let Link::Up(up) = &*link.borrow() else { return None };
        let same = up.hello.loopback.is_some() && up.hello.loopback == loopback_id();
        let here = same || matches!(up.way(), Way::Udp(remote) if remote.ip().is_loopback());
        let mut ports = up.hello.services.iter().filter_map(|service| service.port);
        ports.find(|port| here && bound.iter().any(|address| address.port() == *port))
    }

    /// Tells the server that this is the end.
    async fn close(&self) {
        let up = match &*self.link().borrow() {
            Link::Up(up) | Link::Silent(up) => up.clone(),
            _ => return,
        };
        up.connection.close((Code::Done as u32).into(), b"");
        // The process must not be gone before its last packet is.
        let _ = tokio::time::timeout(FAREWELL, up.endpoint.wait_idle()).await;
    }
}
