//! `adit run`: runs one program that uses the tunnel through a port of its own.
//!
//! The program replaces this process (exec(2)), so its exit code, signals and terminal are its own.
//! The tunnel is that of a running `adit up`, or one in a separate process (`run/tunnel.rs`) that
//! ends with the last program that uses it.

pub(crate) mod environment;
pub(crate) mod tunnel;

use std::{
    ffi::OsString,
    io,
    net::SocketAddr,
    os::{
        fd::{IntoRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    time::Duration,
};

use clap::Args;
use common::machine::{
    control, process,
    report::{Exit, Failure, say},
};
use proto::{identity::Name, typed::quoted, wire::Service};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use self::environment::Interfaces;
use crate::{
    commands::status::ControlRequest,
    local::lease::LeaseAnswer,
    profile::{self, ProfileDir},
};

/// How long to wait for a tunnel that is stopping and lets its answers end.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often to try: another command may start or stop the tunnel between two attempts.
const ATTEMPTS: usize = 5;
/// A file descriptor that programs do not use: they use the lowest numbers, and shells some from 10
/// on.
const LEASE_FD: i32 = 100;

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Use the server with this name [default: the only server, or the one called `default`]
    #[arg(long, value_name = "NAME")]
    pub(crate) server: Option<Name>,
    /// Use this service of the server instead of Ollama
    #[arg(long, value_name = "NAME")]
    service: Option<Name>,
    #[command(flatten)]
    interfaces: Interfaces,
    /// The program and its arguments, best after `--`
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// Becomes the program. Returns only if that fails.
///
/// # Errors
/// If this device is not enrolled or not allowed, or if the program can't be started.
pub(crate) async fn run(
    state_dir: &Path,
    config: Option<&Path>,
    profile_dir: ProfileDir,
    run: Run,
) -> Result<(), Failure> {
    refuse_other_rights()?;
    let waits = "The program starts now; its requests wait for the tunnel";
    let wanted = run.service.as_ref();
    let Lent { address, stream: lease, service } =
        lease(state_dir, config, &profile_dir, wanted, waits).await?;
    inherit(lease).map_err(|e| Failure::new("cannot keep the tunnel for the program").source(e))?;
    let [program, arguments @ ..] = run.command.as_slice() else {
        return Err(Failure::new("no program is named").exit(Exit::Usage));
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    let speaks = wanted.map(|_| service.as_ref().map_or("http", Service::speaks));
    command.envs(run.interfaces.variables(&address.to_string(), speaks));
    command.envs(environment::around_proxies(|name| std::env::var(name).ok()));
    let error = command.exec();
    let failure = not_started(program, &error);
    let servers = profile::known(state_dir).unwrap_or_default();
    Err(match servers.into_iter().find(|server| *server.as_str() == **program) {
        Some(server) => failure.hint(with_the_server(&server, arguments)),
        None => failure,
    })
}

/// Other commands take the name of a server as a word: here such a word is a program.
fn with_the_server(server: &Name, arguments: &[OsString]) -> String {
    let words = arguments.iter().map(|word| word.to_string_lossy()).skip_while(|word| word == "--");
    let words: Vec<_> = words.map(|word| quoted(&word)).collect();
    let command = if words.is_empty() { "COMMAND".to_owned() } else { words.join(" ") };
    format!("`{server}` is a server: `adit run --server {server} -- {command}`")
}

/// If root has taken the rights of the state directory's owner, the program would run with them
/// too. That is refused, because the user did not ask for it.
fn refuse_other_rights() -> Result<(), Failure> {
    let uid = rustix::process::geteuid().as_raw();
    if uid == process::uid() {
        return Ok(());
    }
    Err(Failure::new("this device's keys belong to another user, and `adit run` starts programs only as the user who calls it")
        .hint(format!("to run the program as that user: `sudo -u '#{uid}' adit run …`"))
        .exit(Exit::Usage))
}

/// A port in the tunnel.
pub(in crate::commands) struct Lent {
    pub(in crate::commands) address: SocketAddr,
    /// The port belongs to this process until this is closed.
    pub(in crate::commands) stream: OwnedFd,
    /// The service, as the server describes it.
    service: Option<Service>,
}

/// Gets a port in the running tunnel, or starts a tunnel first. The port belongs to this process
/// until the returned connection is closed. `waits` says what happens where there is no tunnel yet.
///
/// # Errors
/// If this device is not enrolled or not allowed.
pub(super) async fn lease(
    state_dir: &Path,
    config: Option<&Path>,
    profile_dir: &ProfileDir,
    service: Option<&Name>,
    waits: &str,
) -> Result<Lent, Failure> {
    let request = service.cloned().map_or(ControlRequest::Lease, ControlRequest::LeaseOf);
    for _ in 0..ATTEMPTS {
        let asked = control::ask_for_grant(&profile_dir.dir, &request).await;
        match asked.map_err(|e| Failure::from(e).hint(restart(profile_dir)))? {
            Some((LeaseAnswer::Lent { address, waits_for, service }, stream)) => {
                if let Some(why) = waits_for {
                    say(format!("adit: there is no tunnel yet: {why}\n{waits}"));
                }
                let stream = stream.into_std().and_then(|stream| {
                    stream.set_nonblocking(false)?;
                    Ok(stream)
                });
                let stream = stream.map_err(Failure::from_error)?.into();
                return Ok(Lent { address, stream, service });
            }
            Some((LeaseAnswer::Failed(failure), _)) => return Err(failure),
            Some((LeaseAnswer::Stopping, _)) => gone(profile_dir).await?,
            None => tunnel::start(state_dir, config, profile_dir).await?,
        }
    }
    Err(Failure::new("the tunnel is started and stopped by other commands all the time")
        .hint(format!("to see which: `adit status{}`", profile_dir.argument())))
}

/// Waits until the process of a tunnel that is stopping has ended.
async fn gone(profile_dir: &ProfileDir) -> Result<(), Failure> {
    say("adit: waiting for the running adit, which is stopping");
    let ended = async {
        while control::is_running(&profile_dir.dir) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(STOPPED_WITHIN, ended).await.map_err(|_| {
        Failure::new("the running adit is still stopping")
            .hint(format!("to see what it waits for: `adit status{}`", profile_dir.argument()))
    })
}

fn restart(profile_dir: &ProfileDir) -> String {
    format!(
        "if the running adit is an older version, stop it and start it again: `adit up{}`",
        profile_dir.argument()
    )
}

/// Passes the lease to the program. It ends when the program has closed it and has ended.
fn inherit(lease: OwnedFd) -> io::Result<()> {
    let lease = fcntl_dupfd_cloexec(lease, LEASE_FD)?;
    fcntl_setfd(&lease, FdFlags::empty())?;
    // This process does not close it: exec(2) passes it on.
    let _ = lease.into_raw_fd();
    Ok(())
}

/// The exit codes of shells and env(1): 127 if the program does not exist, 126 if it cannot be run.
fn not_started(program: &OsString, error: &io::Error) -> Failure {
    let shown = program.to_string_lossy();
    let failure = Failure::new(format!("cannot run `{shown}`")).source(error.to_string());
    match error.kind() {
        io::ErrorKind::NotFound => failure
            .hint(format!("to see whether it is installed: `command -v {shown}`"))
            .exit(Exit::NotFound),
        _ => failure.exit(Exit::NotRunnable),
    }
}
