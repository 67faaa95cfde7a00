//! `adit down`: ends a running tunnel as Ctrl-C in its terminal does. The other tunnels of the same
//! `adit up` go on.

use std::time::{Duration, Instant};

use clap::Args;
use common::machine::{
    control, json,
    report::{Failure, say},
    service as machine,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::identity::Name;
use serde::Serialize;

use crate::{
    commands::{
        service::{self, Places},
        status::{ControlRequest, Status},
    },
    profile::{self, ProfileDir},
};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Running answers are waited for as long as the tunnel itself does, which has a bound of its own;
/// after this long it hangs.
const WITHIN: Duration = Duration::from_secs(600);
const NOW_WITHIN: Duration = Duration::from_secs(15);

/// Flags of `down`.
#[derive(Debug, Args)]
pub(crate) struct Down {
    /// End the tunnel to the server with this name; its `adit up` goes on with other servers
    /// [default: the only server, or the one called `default`]
    pub(crate) name: Option<Name>,
    /// Do not wait for running answers
    #[arg(long)]
    now: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What has become of a tunnel.
#[derive(Serialize)]
struct Ended<'a> {
    /// The server's name on this device.
    server: &'a Name,
    was_up: bool,
    /// The other servers, with which its `adit up` goes on.
    goes_on_with: &'a [Name],
}

impl Down {
    fn print(&self, server: &Name, was_up: bool, goes_on_with: &[Name]) -> Result<(), Failure> {
        if self.json { json::answer(Ended { server, was_up, goes_on_with }) } else { Ok(()) }
    }
}

/// Ends it, and waits for its end.
///
/// # Errors
/// If none runs, or it does not end.
pub(crate) async fn run(
    profile_dir: &ProfileDir,
    down: &Down,
    places: &Places,
) -> Result<(), Failure> {
    let Some(status) = ask(profile_dir).await? else {
        // A tunnel that was never set up is the better error.
        profile_dir.read()?;
        down.print(&profile_dir.name, false, &[])?;
        say(format!("No tunnel `{}` is up.", profile_dir.name));
        return Ok(());
    };
    let pid = status.pid;
    let others = served_with(profile_dir, pid).await?;
    if !others.is_empty() {
        let request = ControlRequest::End { now: down.now };
        let _: Option<Status> = control::ask(&profile_dir.dir, &request).await?;
    } else if down.now {
        // A manager would only send what is sent here, and wait.
        signal(pid)?;
        while ask(profile_dir).await?.is_some_and(|status| status.pid == pid && !status.stopping) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let _ = signal(pid);
    } else {
        let service = service::of(profile_dir, places)?;
        let stopped =
            tokio::task::spawn_blocking(move || machine::stop_if_runs(&service, pid)).await;
        let stopped = stopped.map_err(|e| Failure::new("cannot stop the service").source(e))??;
        if !stopped && !status.stopping {
            signal(pid)?;
        }
    }
    let within = if down.now { NOW_WITHIN } else { WITHIN };
    let began = Instant::now();
    while ask(profile_dir).await?.is_some_and(|status| status.pid == pid) {
        if began.elapsed() > within {
            return Err(Failure::new(format!("the tunnel `{}` does not end", profile_dir.name))
                .source(format!("its process {pid} was told to end"))
                .hint(format!("to end it at once: `kill -9 {pid}`")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    down.print(&profile_dir.name, true, &others)?;
    let others: Vec<_> = others.iter().map(|other| format!("`{other}`")).collect();
    let rest = if others.is_empty() {
        String::new()
    } else {
        format!("; its `adit up` goes on with {}", others.join(" and "))
    };
    say(format!("The tunnel `{}` is down{rest}.", profile_dir.name));
    Ok(())
}

/// The other servers to which the process `pid` holds a tunnel.
async fn served_with(profile_dir: &ProfileDir, pid: u32) -> Result<Vec<Name>, Failure> {
    let mut others = Vec::new();
    for name in profile::known(profile_dir.state_dir())? {
        let other = ProfileDir::new(profile_dir.state_dir(), name);
        let is_other = other.name != profile_dir.name;
        if is_other && ask(&other).await?.is_some_and(|status| status.pid == pid) {
            others.push(other.name);
        }
    }
    Ok(others)
}

async fn ask(profile_dir: &ProfileDir) -> Result<Option<Status>, Failure> {
    Ok(control::ask(&profile_dir.dir, &ControlRequest::Status).await?)
}

fn signal(pid: u32) -> Result<(), Failure> {
    let id = i32::try_from(pid).map_err(|e| Failure::new("the process has no id").source(e))?;
    match kill(Pid::from_raw(id), Signal::SIGTERM) {
        // It has ended meanwhile.
        Err(nix::errno::Errno::ESRCH) | Ok(()) => Ok(()),
        Err(e) => Err(Failure::new(format!("cannot end the process {pid}")).source(e)),
    }
}
