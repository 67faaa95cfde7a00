//! `adit up`: puts the parts together, says when it is ready, and drains when it is told to stop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::{Args, builder::FalseyValueParser};
use common::machine::{
    control::{ClaimError, Control},
    process::{self, Stop, parse_idle_timeout, parse_time},
    report::{Exit, Failure},
};
use proto::{
    human,
    identity::Name,
    wire::{Code, DEFAULT_SERVICE},
};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    commands::status::{Request, Status},
    dial::{DialError, plan::DialPlan, route::CarrierChoice},
    local::{
        listener::{self, Front, Listen},
        owner::Owners,
    },
    profile::{Profile, ProfileDir, SharedProfile},
    ssh::SshClient,
    tunnel::{
        Tunnel,
        state::{Refusal, TunnelState},
    },
};

/// How long the server may take to hear that this is the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Flags of `up`.
#[derive(Debug, Args)]
pub struct UpFlags {
    /// Use the server with this name [default: the only server, or the one called `default`]
    pub name: Option<Name>,
    /// Listen on this loopback address; may be given more than once [default: localhost:11434, IPv4
    /// and IPv6]
    #[arg(long, value_name = "ADDR", env = "ADIT_LISTEN", value_delimiter = ',')]
    listen: Vec<Listen>,
    /// Let every user of this computer use the tunnel, not only root and the user who runs adit. On
    /// systems other than Linux, every user can use it anyway
    #[arg(long, env = "ADIT_ANY_USER", value_parser = FalseyValueParser::new())]
    any_user: bool,
    /// Let a connection wait this long for the tunnel, then answer 503
    #[arg(long, value_name = "TIME", env = "ADIT_HOLD", default_value = "30s", value_parser = parse_time)]
    hold: Duration,
    /// Let running answers go on this long after adit was told to stop
    #[arg(long, value_name = "TIME", env = "ADIT_DRAIN", default_value = "30s", value_parser = parse_time)]
    drain: Duration,
    /// Choose what carries the tunnel
    #[arg(long, value_enum, env = "ADIT_CARRIER", default_value = "auto")]
    carrier: CarrierChoice,
    /// Keep the session and its running answers through a silence of this length (the server may
    /// allow less)
    #[arg(long, value_name = "TIME", env = "ADIT_IDLE_TIMEOUT", default_value = "30m", value_parser = parse_idle_timeout)]
    idle_timeout: Duration,
    /// Use this SSH client: builtin or system [default: the one used for enrolling]
    #[arg(
        long,
        value_name = "CLIENT",
        value_enum,
        env = "ADIT_SSH_CLIENT",
        hide_possible_values = true
    )]
    ssh_client: Option<SshClient>,
}

/// Runs until told to stop (SIGINT, SIGTERM, or SIGHUP from a closed terminal), or until the server says at the first attempt that
/// this device is not allowed.
pub async fn run(place: ProfileDir, flags: UpFlags) -> Result<(), Failure> {
    let mut profile = place.read()?;
    if let Some(way) = &mut profile.ssh {
        way.client_now = flags.ssh_client;
    }
    let directions = DialPlan {
        profile: SharedProfile::new(profile),
        choice: flags.carrier,
        idle_timeout: flags.idle_timeout,
    };
    if let Some(none) = directions.no_way() {
        let hint = none.general_hint().unwrap_or_default();
        return Err(Failure::from_error(none).hint(hint).exit(Exit::Usage));
    }
    let control = Control::claim(&place.dir).map_err(|e| claimed(e, &place))?;
    let mut stop = Stop::listen_at_terminal()
        .map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let listeners = listener::bind(&flags.listen, &place.argument())?;
    let owners = Arc::new(let_in(flags.any_user, &listeners, &place.argument())?);
    let bound: Vec<SocketAddr> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
    let listening: Vec<String> = bound.iter().map(ToString::to_string).collect();
    info!("listening on http://{}", listening.join(" and http://"));
    info!("connecting to {}", directions.sought());

    let (connections, no_more) = (TaskTracker::new(), CancellationToken::new());
    let (tunnel, keep_up) = Tunnel::new(directions, bound, no_more.clone());
    let mut parts = Parts::default();
    parts.services.spawn(keep_up);
    let shown = Shown {
        tunnel: tunnel.clone(),
        listening: listening.clone(),
        connections: connections.clone(),
        stop: no_more.clone(),
    };
    let answering = answer_control(control, shown);
    parts.services.spawn(answering);
    let service: Name = DEFAULT_SERVICE.parse().map_err(Failure::new)?;
    for listener in listeners {
        let front = Front {
            owners: owners.clone(),
            tunnel: tunnel.clone(),
            service: service.clone(),
            hold: flags.hold,
            stop: no_more.clone(),
        };
        parts.accepting.spawn(listener::accept(listener, front, connections.clone()));
    }

    let serving = async {
        first_word(&tunnel).await?;
        let first = listening.first().map_or("localhost", String::as_str);
        info!("ready: Ollama on http://{first}");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        std::future::pending().await
    };
    tokio::select! {
        () = stop.asked() => {}
        refused = serving => return refused,
        ended = parts.ended() => return Err(ended),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    no_more.cancel();
    // Whoever is told that no connection is taken any more must find it so.
    parts.accept_no_more().await?;
    connections.close();
    if !connections.is_empty() {
        info!(
            "stopping: {} with {} to end (press Ctrl-C again to end them now)",
            human::count(connections.len() as u64, "running connection"),
            human::time(flags.drain)
        );
        tokio::select! {
            () = connections.wait() => {}
            () = tokio::time::sleep(flags.drain) => warn!("cutting what still runs"),
            () = stop.asked() => {}
            ended = parts.ended() => return Err(ended),
        }
    }
    tunnel.close().await;
    // Each sees the end of its stream and aborts its application.
    let _ = tokio::time::timeout(FAREWELL, connections.wait()).await;
    parts.services.shutdown().await;
    Ok(())
}

/// The tasks without which there is no tunnel: one that has ended must not look alive.
#[derive(Default)]
struct Parts {
    /// None of these ends by itself.
    services: JoinSet<()>,
    /// Each of these ends when no connection is to be taken any more.
    accepting: JoinSet<()>,
}

impl Parts {
    /// Waits until one of them has ended, though nobody asked it to. Cancellation safe.
    async fn ended(&mut self) -> Failure {
        let ended = tokio::select! {
            Some(ended) = self.services.join_next() => ended,
            Some(ended) = self.accepting.join_next() => ended,
            else => std::future::pending().await,
        };
        ended_by_itself(ended)
    }

    /// Waits until no connection is taken any more, as all have been told.
    async fn accept_no_more(&mut self) -> Result<(), Failure> {
        while let Some(ended) = self.accepting.join_next().await {
            if ended.is_err() {
                return Err(ended_by_itself(ended));
            }
        }
        Ok(())
    }
}

/// Which users of this computer are let in.
/// `name` is the server's, behind a command.
fn let_in(any_user: bool, listeners: &[TcpListener], name: &str) -> Result<Owners, Failure> {
    let listening = listeners.first().and_then(|listener| listener.local_addr().ok());
    let Some(listening) = listening.filter(|_| !any_user) else { return Ok(Owners::any()) };
    Owners::own(listening).map_err(|e| {
        Failure::new("cannot keep other users of this computer out of the tunnel")
            .source(format!("the kernel does not tell who makes a connection: {e}"))
            .hint(format!("to let every user of this computer in: `adit up{name} --any-user`"))
    })
}

fn ended_by_itself(ended: Result<(), JoinError>) -> Failure {
    let how = ended.map_or_else(|e| e.to_string(), |()| "it returned".to_owned());
    Failure::new("a part of adit stopped unexpectedly").source(how).hint("the log above says why")
}

/// Waits until the server has said yes.
///
/// # Errors
/// If it says no.
async fn first_word(tunnel: &Tunnel) -> Result<(), Failure> {
    let mut link = tunnel.link();
    loop {
        match &*link.borrow_and_update() {
            TunnelState::Up(_) => return Ok(()),
            TunnelState::Refused(Refusal { why, .. }) => {
                return Err(refused(why, &tunnel.profile()));
            }
            TunnelState::Down(_) | TunnelState::Silent(_) => {}
        }
        if link.changed().await.is_err() {
            // Whoever watches the keeper says what has become of it.
            return std::future::pending().await;
        }
    }
}

/// What was refused, and how to be let in again.
fn refused(why: &DialError, profile: &Profile) -> Failure {
    let failure = match why {
        DialError::Refused(code) => Failure::new("the server does not let this device in")
            .exit(Exit::NotAllowed)
            .source(code.what()),
        // Nothing that the server has refused.
        why => Failure::from_error(why.clone()),
    };
    why.hint(profile).into_iter().fold(failure, Failure::hint)
}

fn claimed(error: ClaimError, place: &ProfileDir) -> Failure {
    match error {
        ClaimError::Taken { pid } => {
            Failure::new(format!("cannot start the tunnel `{}`", place.name))
                .source(format!("adit up {error}"))
                .hint(format!("to see what it does: `adit status{}`", place.argument()))
                .hint(format!("to stop it: {}", process::how_to_stop(pid)))
        }
        ClaimError::File(e) => e.into(),
    }
}

/// What `adit status` asks about.
struct Shown {
    tunnel: Tunnel,
    listening: Vec<String>,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Shown {
    fn status(&self) -> Status {
        let stopping = self.stop.is_cancelled();
        let listening = if stopping { &[][..] } else { &self.listening };
        Status::of(&self.tunnel, listening, self.connections.len(), stopping)
    }
}

async fn answer_control(control: Control, shown: Shown) {
    let shown = Arc::new(shown);
    let answer = move |request| {
        let status = match request {
            Request::Status => shown.status(),
        };
        async move { status }
    };
    match control.serve(answer).await {}
}

impl Tunnel {
    /// Tells the server that this is the end.
    async fn close(&self) {
        let up = match &*self.link().borrow() {
            TunnelState::Up(up) | TunnelState::Silent(up) => up.clone(),
            _ => return,
        };
        up.connection.close((Code::Done as u32).into(), b"");
        // The process must not be gone before its last packet is.
        let _ = tokio::time::timeout(FAREWELL, up.endpoint.wait_idle()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        let mut parts = Parts::default();
        parts.services.spawn(std::future::pending());
        parts.accepting.spawn(std::future::pending());
        parts
    }

    #[tokio::test]
    async fn a_part_that_ends_or_dies_is_a_failure_whichever_it_is() {
        let (mut returns, mut dies, mut deaf) = (parts(), parts(), parts());
        returns.services.spawn(async {});
        dies.services.spawn(async { panic!("a defect") });
        deaf.accepting.spawn(async { panic!("a defect") });
        for parts in [&mut returns, &mut dies, &mut deaf] {
            let failure = parts.ended().await;
            assert_eq!(failure.what(), "a part of adit stopped unexpectedly");
            assert_eq!(failure.exit_code(), Exit::Failed);
        }
    }

    #[tokio::test]
    async fn what_stops_listening_as_told_is_no_failure_and_what_dies_of_it_is() {
        let mut parts = Parts::default();
        parts.accepting.spawn(async {});
        assert!(parts.accept_no_more().await.is_ok());
        parts.accepting.spawn(async { panic!("a defect") });
        assert!(parts.accept_no_more().await.is_err());
    }
}
