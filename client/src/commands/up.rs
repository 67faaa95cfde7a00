//! `adit up`: starts all parts, says when the tunnel is ready, and drains when it is stopped.

pub(crate) mod bootstrap;
mod running;
mod watched;

use std::io::IsTerminal;

use clap::Args;
use common::machine::{
    control::{ClaimError, Control},
    process::{self, StopSignals},
    progress::Progress,
    report::{Exit, Failure},
};
use tokio::net::TcpListener;
use tracing::info;

pub(super) use self::running::RunningTunnel;
use self::{
    bootstrap::{BoxFlags, Target},
    running::{first_word, tell_of_ollama},
};
use crate::{
    dial::{plan::DialPlan, unmarked},
    local::{listener, owner::Owners},
    profile::{ProfileDir, SharedProfile},
    settings::{SettingFlags, Settings},
    ssh::SshTarget,
};

/// Flags of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpFlags {
    /// Use the server with this name [default: the only server, or the one called `default`]; or log
    /// in at USER@HOST, put aditd there if none runs, enroll, and use that server
    #[arg(value_name = "NAME|USER@HOST")]
    pub(crate) target: Option<Target>,
    /// What is done with a login.
    #[command(flatten)]
    pub(crate) on_box: BoxFlags,
    /// How.
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

/// Runs until it is stopped (SIGINT, SIGTERM, or SIGHUP from a closed terminal), or until the
/// server refuses this device at the first attempt. `login` is one of this process at the same box.
pub(crate) async fn run(
    profile_dir: ProfileDir,
    login: Option<SshTarget>,
    settings: &Settings,
) -> Result<(), Failure> {
    let plan = dial_plan(&profile_dir, settings, login.as_ref())?;
    let control = Control::claim(&profile_dir.dir).map_err(|e| claimed(e, &profile_dir))?;
    unmarked::keep_in(&profile_dir.dir);
    let mut stop = StopSignals::listen_at_terminal()
        .map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let listeners = listener::bind(&settings.listen.value, &profile_dir.argument())?;
    let owners = let_in(settings.any_user.value, &listeners, &profile_dir.argument())?;
    let mut running = RunningTunnel::start(plan, control, owners, listeners, settings)?;
    info!("listening on http://{}", running.listening.join(" and http://"));
    info!("connecting to {}", running.tunnel.plan().sought());

    let serving = async {
        // The system's `ssh` asks its questions itself, and they must stay readable.
        let progress = (!running.tunnel.plan().asks_by_itself())
            .then(|| Progress::show(&format!("connecting to {}", running.tunnel.plan().sought())));
        first_word(&running.tunnel).await?;
        drop(progress);
        let first = running.listening.first().map_or("localhost", String::as_str);
        info!("ready: Ollama on http://{first}");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        // Only where a person reads it: the requests count against this device's limits.
        if std::io::stderr().is_terminal() {
            tell_of_ollama(&running.tunnel, &running.listening).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = stop.asked() => {}
        refused = serving => return refused,
        ended = running.parts.ended() => return Err(ended),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    running.stop(&mut stop, settings.drain.value).await
}

/// The addresses and carriers to try. What was unlocked for `login` is used again.
///
/// # Errors
/// If this device is not enrolled at the server, or has no route to it.
pub(super) fn dial_plan(
    profile_dir: &ProfileDir,
    settings: &Settings,
    login: Option<&SshTarget>,
) -> Result<DialPlan, Failure> {
    let mut profile = profile_dir.read()?;
    if let Some(way) = &mut profile.ssh {
        way.client_now = settings.ssh_client.value;
        if let Some(login) = login {
            way.unlocked_by(login);
        }
    }
    let plan = DialPlan {
        profile: SharedProfile::new(profile),
        choice: settings.carrier.value,
        idle_timeout: settings.idle_timeout.value,
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
