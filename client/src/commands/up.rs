//! `adit up`: starts all parts, says when the tunnel is ready, and drains when it is stopped.

mod running;
mod watched;

use std::time::Duration;

use clap::{Args, builder::FalseyValueParser};
use common::machine::{
    control::{ClaimError, Control},
    process::{self, StopSignals, parse_idle_timeout, parse_time},
    report::{Exit, Failure},
};
use proto::identity::Name;
use tokio::net::TcpListener;
use tracing::info;

pub(super) use self::running::RunningTunnel;
use self::running::first_word;
use crate::{
    dial::{plan::DialPlan, route::CarrierChoice},
    local::{
        listener::{self, ListenAddr},
        owner::Owners,
    },
    profile::{ProfileDir, SharedProfile},
    ssh::SshClient,
};

/// Flags of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpFlags {
    /// Use the server with this name [default: the only server, or the one called `default`]
    pub(crate) name: Option<Name>,
    /// Listen on this loopback address; may be given more than once [default: localhost:11434, IPv4
    /// and IPv6]
    #[arg(long, value_name = "ADDR", env = "ADIT_LISTEN", value_delimiter = ',')]
    listen: Vec<ListenAddr>,
    /// Let every user of this computer use the tunnel, not only root and the user who runs adit. On
    /// systems other than Linux, every user can use it anyway
    #[arg(long, env = "ADIT_ANY_USER", value_parser = FalseyValueParser::new())]
    any_user: bool,
    /// Let a connection wait this long for the tunnel, then answer 503
    #[arg(long, value_name = "TIME", env = "ADIT_HOLD", default_value = "30s", value_parser = parse_time)]
    hold: Duration,
    /// When adit is stopped, let running answers go on for this long
    #[arg(long, value_name = "TIME", env = "ADIT_DRAIN", default_value = "30s", value_parser = parse_time)]
    pub(super) drain: Duration,
    /// Choose what carries the tunnel
    #[arg(long, value_enum, env = "ADIT_CARRIER", default_value = "auto")]
    carrier: CarrierChoice,
    /// Keep the session and its running answers through an outage of this length (the server may
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

/// Runs until it is stopped (SIGINT, SIGTERM, or SIGHUP from a closed terminal), or until the
/// server refuses this device at the first attempt.
pub(crate) async fn run(profile_dir: ProfileDir, flags: UpFlags) -> Result<(), Failure> {
    let plan = dial_plan(&profile_dir, &flags)?;
    let control = Control::claim(&profile_dir.dir).map_err(|e| claimed(e, &profile_dir))?;
    let mut stop = StopSignals::listen_at_terminal()
        .map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let listeners = listener::bind(&flags.listen, &profile_dir.argument())?;
    let owners = let_in(flags.any_user, &listeners, &profile_dir.argument())?;
    let mut running = RunningTunnel::start(plan, control, owners, listeners, &flags)?;
    info!("listening on http://{}", running.listening.join(" and http://"));
    info!("connecting to {}", running.tunnel.plan().sought());

    let serving = async {
        first_word(&running.tunnel).await?;
        let first = running.listening.first().map_or("localhost", String::as_str);
        info!("ready: Ollama on http://{first}");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        std::future::pending().await
    };
    tokio::select! {
        () = stop.asked() => {}
        refused = serving => return refused,
        ended = running.parts.ended() => return Err(ended),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    running.stop(&mut stop, flags.drain).await
}

/// The addresses and carriers to try.
///
/// # Errors
/// If this device is not enrolled at the server, or has no route to it.
pub(super) fn dial_plan(profile_dir: &ProfileDir, flags: &UpFlags) -> Result<DialPlan, Failure> {
    let mut profile = profile_dir.read()?;
    if let Some(way) = &mut profile.ssh {
        way.client_now = flags.ssh_client;
    }
    let plan = DialPlan {
        profile: SharedProfile::new(profile),
        choice: flags.carrier,
        idle_timeout: flags.idle_timeout,
    };
    if let Some(none) = plan.no_way() {
        let hint = none.general_hint().unwrap_or_default();
        return Err(Failure::from_error(none).hint(hint).exit(Exit::Usage));
    }
    Ok(plan)
}

/// Which users of this computer are let in. `name` is the server's name as an argument of a
/// command.
pub(super) fn let_in(
    any_user: bool,
    listeners: &[TcpListener],
    name: &str,
) -> Result<Owners, Failure> {
    let listening = listeners.first().and_then(|listener| listener.local_addr().ok());
    let Some(listening) = listening.filter(|_| !any_user) else { return Ok(Owners::any()) };
    Owners::own(listening).map_err(|e| {
        Failure::new("cannot keep other users of this computer out of the tunnel")
            .source(format!("the kernel does not tell who makes a connection: {e}"))
            .hint(format!("to let every user of this computer in: `adit up{name} --any-user`"))
    })
}

pub(super) fn claimed(error: ClaimError, profile_dir: &ProfileDir) -> Failure {
    match error {
        ClaimError::Taken { pid } => {
            Failure::new(format!("cannot start the tunnel `{}`", profile_dir.name))
                .source(format!("adit up {error}"))
                .hint(format!("to see what it does: `adit status{}`", profile_dir.argument()))
                .hint(format!("to stop it: {}", process::how_to_stop(pid)))
        }
        ClaimError::File(e) => e.into(),
    }
}
