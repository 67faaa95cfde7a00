//! The tunnel of `adit run` if no `adit up` runs: a separate process, which ends when the last
//! program that uses it has ended.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use common::{
    machine::{
        control::{ClaimError, Control},
        files::{self, FileError},
        process::StopSignals,
        report::Failure,
    },
    transport::frame,
};
use proto::identity::Name;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::unix::pipe};

use crate::{
    commands::up::{RunningTunnel, Tunnels, dial_plan, let_in},
    dial::{plan::DialPlan, unmarked},
    profile::ProfileDir,
    settings::{SettingFlags, Settings},
};

/// The hidden command of this process.
pub(crate) const COMMAND: &str = "hold-tunnel";
/// The flag with which its first process starts a second one and ends.
const DETACH: &str = "--detach";
/// Its log, in the directory of the profile.
pub(crate) const LOG: &str = "run.log";

/// Flags of the hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct HoldTunnel {
    /// Start another process that does it
    #[arg(long = "detach")]
    pub(crate) detach: bool,
    /// The server
    pub(crate) name: Name,
    /// As for `up`
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

/// Starts the process. When this returns, its control socket can be asked.
///
/// It is not a child of this process, so the program that replaces this process need not wait for
/// it. It stays in the same process group, so that it can ask for a passphrase at the terminal.
///
/// # Errors
/// Why it cannot start, as it has reported.
pub(super) async fn start(
    state_dir: &Path,
    config: Option<&Path>,
    profile_dir: &ProfileDir,
) -> Result<(), Failure> {
    let failed = |e| Failure::new("cannot start the tunnel").source(e);
    let (reads, writes) = std::io::pipe().map_err(failed)?;
    let state_dir = std::path::absolute(state_dir).map_err(failed)?;
    let mut first = this_program().map_err(failed)?;
    first.arg("--state-dir").arg(state_dir).args([COMMAND, DETACH, profile_dir.name.as_str()]);
    if let Some(config) = config {
        first.arg("--config").arg(std::path::absolute(config).map_err(failed)?);
    }
    first.stdin(Stdio::null()).stdout(writes).stderr(log(profile_dir)?);
    let ended = tokio::task::spawn_blocking(move || first.status()).await;
    ended.map_err(Failure::from_error)?.map_err(failed)?;
    let mut reads = pipe::Receiver::from_owned_fd(reads.into()).map_err(failed)?;
    let begun = frame::read(&mut reads).await;
    match begun.map_err(|e| Failure::new("the tunnel ended before it was ready").source(e))? {
        // If another command was quicker, its tunnel is used.
        Begun::Ready | Begun::Taken => Ok(()),
        Begun::Failed(failure) => Err(failure),
    }
}

/// What the process reports on its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Begun {
    /// Its control socket can be asked.
    Ready,
    /// Another process has the tunnel of this server.
    Taken,
    /// It cannot begin.
    Failed(Failure),
}

/// The file for the process's log. It does not use the program's standard error: a reader of that
/// would wait until a tunnel ends that others use.
fn log(profile_dir: &ProfileDir) -> Result<File, Failure> {
    if !profile_dir.is_enrolled()? {
        // If the profile cannot be read, that is the better error.
        profile_dir.read()?;
    }
    let path = profile_dir.dir.join(LOG);
    let file = files::open_append(&path)?;
    file.set_len(0).map_err(FileError::io("write", path))?;
    Ok(file)
}

/// A command that runs this program again, under the same name.
fn this_program() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "adit".into()));
    Ok(command)
}

/// Runs until no program uses the tunnel any more. Reports on standard output, as data, whether it
/// has begun: the process that waits for it shows that.
///
/// # Errors
/// If a part of the tunnel ends by itself.
pub(crate) async fn run(
    profile_dir: ProfileDir,
    detaches: bool,
    settings: &Settings,
) -> Result<(), Failure> {
    if detaches {
        return detach();
    }
    let (mut running, mut stop) = match begin(&profile_dir, settings) {
        Ok(begun) => begun,
        Err(why) => return tell(&why).await,
    };
    tell(&Begun::Ready).await?;
    let leases = running.leases.clone();
    let ended = tokio::select! {
        () = leases.none_left() => Ok(()),
        () = stop.asked() => Ok(()),
        ended = running.parts.ended() => Err(ended),
    };
    let mut tunnels = Tunnels::default();
    tunnels.add(running, settings.drain.value);
    if ended.is_err() {
        tunnels.wait_for_no_answer();
    }
    let stopped = tunnels.stop(&mut stop).await;
    ended.and(stopped)
}

async fn tell(begun: &Begun) -> Result<(), Failure> {
    let mut out = tokio::io::stdout();
    let told = async {
        frame::write(&mut out, begun).await?;
        out.flush().await
    };
    told.await.map_err(|e| Failure::new("nobody waits for this tunnel").source(e))
}

/// Starts this command again without the flag, and does not wait for it.
fn detach() -> Result<(), Failure> {
    let failed = |e| Failure::new("cannot start the tunnel").source(e);
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != DETACH);
    this_program().map_err(failed)?.args(arguments).spawn().map_err(failed)?;
    Ok(())
}

fn begin(
    profile_dir: &ProfileDir,
    settings: &Settings,
) -> Result<(RunningTunnel, StopSignals), Begun> {
    let plan = dial_plan(profile_dir, settings, None).map_err(Begun::Failed)?;
    let control = Control::claim(&profile_dir.dir).map_err(|e| match e {
        ClaimError::Taken { .. } => Begun::Taken,
        ClaimError::File(e) => Begun::Failed(e.into()),
    })?;
    unmarked::keep_in(&profile_dir.dir);
    start_running(profile_dir, plan, control, settings).map_err(Begun::Failed)
}

fn start_running(
    profile_dir: &ProfileDir,
    plan: DialPlan,
    control: Control,
    settings: &Settings,
) -> Result<(RunningTunnel, StopSignals), Failure> {
    let stop = StopSignals::listen_beside_another()
        .map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let owners = let_in(false, &[], &profile_dir.argument())?;
    Ok((RunningTunnel::start(plan, control, owners, Default::default(), settings)?, stop))
}
