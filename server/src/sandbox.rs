//! Least privilege: a server that has started gives up what it does not need any more. It opens only
//! its own files (Landlock), connects only to the ports that its settings name, binds to no TCP port,
//! and makes no system call that it has no use for (seccomp). What it still needs of the rest, its
//! broker does (see [`crate::outside`]). None of this can be undone: settings that need more are
//! refused when they are read again, and count in the process that replaces this one. Where the kernel
//! cannot do it, or refuses, the server goes on, and says what is missing.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod files;
mod rules;

use std::{
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use common::{
    machine::report::Failure,
    transport::{frame, unix},
};
use proto::doctor::gpu_box::Sandbox;
use rustix::io::Errno;
use tokio::net::UnixStream;
use tracing::{info, warn};

use self::rules::{Machine, Right, Rules};
use crate::{
    config::Config,
    outside::{self, Allowed},
};

/// What is in force in this process.
static IN_FORCE: OnceLock<(Sandbox, Rules)> = OnceLock::new();

/// The argument that makes a process a broker.
pub(crate) const BROKER: &str = "broker";
/// What puts settings in force that need more rights.
const CURE: &str = "to put it in force, and lose no running answer: `aditd replace`";

/// Gives up what a server with these settings does not need after its start. To be called when the
/// sockets are open and the state is there, before another thread runs. What cannot be given up is in
/// the log, and shown by `aditd status` and `aditd doctor`.
pub async fn enter(config: &Config) {
    if !config.sandbox {
        warn!(
            "the sandbox is off (`sandbox = false` or --no-sandbox): whoever takes aditd over has all rights of its user"
        );
        let _ = IN_FORCE.set((Sandbox::default(), Rules::default()));
        return;
    }
    let mut rules = Rules::of(config, &this_machine());
    let sandbox = if cfg!(target_os = "linux") {
        match start_broker(config, &mut rules).await {
            Ok(broker) => give_up(&rules, broker),
            Err(why) => Sandbox { failed: vec![why], ..Sandbox::of(0, false) },
        }
    } else {
        Sandbox::of(0, false)
    };
    match sandbox.limits().1.is_empty() {
        true => info!("the sandbox {}", sandbox.sentence()),
        false => warn!("the sandbox is not whole: {}", sandbox.sentence()),
    }
    let _ = IN_FORCE.set((sandbox, rules));
}

/// Gives all up that the kernel lets this process give up.
#[cfg(target_os = "linux")]
fn give_up(rules: &Rules, broker: UnixStream) -> Sandbox {
    // Both count for one thread. None is there before the accounts are opened.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        let why = format!("{threads} threads run already");
        return Sandbox { failed: vec![why], ..Sandbox::of(0, false) };
    }
    drop_capabilities();
    let mut failed = Vec::new();
    let mut or_not = |result: Result<u8, String>| {
        result.unwrap_or_else(|why| {
            failed.push(why);
            0
        })
    };
    let abi = or_not(files::give_up(rules));
    let system_calls = or_not(calls::give_up());
    let sandbox = Sandbox { failed, ..Sandbox::of(abi, system_calls != 0) };
    // Otherwise nothing was given up, and the broker ends with its socket.
    if sandbox.files || sandbox.system_calls {
        outside::ask_at(broker, sandbox.tcp_ports.then(|| rules.ports().collect()));
    }
    sandbox
}

#[cfg(not(target_os = "linux"))]
fn give_up(_: &Rules, _: UnixStream) -> Sandbox {
    Sandbox::of(0, false)
}

/// What is in force in this process.
pub(crate) fn in_force() -> Sandbox {
    IN_FORCE.get().map(|(sandbox, _)| sandbox.clone()).unwrap_or_default()
}

/// Checks that settings that were read again need no right that was given up.
///
/// # Errors
/// Which right, and which setting needs it.
pub(crate) fn check(config: &Config) -> Result<(), Failure> {
    let Some((_, has)) = IN_FORCE.get().filter(|(sandbox, _)| sandbox.on) else { return Ok(()) };
    let wanted = Rules::of_reload(config, &this_machine());
    let missing = has.missing(&wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let needs = missing.iter().map(|need| {
        let (of, right) = (&need.of, &need.right);
        format!("`{of}` needs the right to {right}")
    });
    let what = "the new settings need rights that aditd gave up when it started (its sandbox)";
    Err(Failure::new(what).source(needs.collect::<Vec<_>>().join("; ")).hint(CURE))
}

/// What helps where the sandbox may have refused a file of the settings.
pub(crate) fn explain(failure: Failure) -> Failure {
    match IN_FORCE.get() {
        Some((sandbox, _)) if sandbox.files && is_denied(&failure) => failure.hint(
            "aditd gave up all files that it did not need when it started (its sandbox): if its user may read this one, `aditd replace` starts a process that may",
        ),
        _ => failure,
    }
}

/// Whether a file was denied. A failure has only the text of the error.
fn is_denied(failure: &Failure) -> bool {
    let denied = std::io::Error::from(Errno::ACCESS).to_string();
    failure.what().contains(&denied) || failure.causes().iter().any(|why| why.contains(&denied))
}

fn this_machine() -> Machine<'static> {
    Machine {
        home: directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_owned()),
        variable: &|name| std::env::var(name).ok(),
        real: &|path| std::fs::canonicalize(path).ok(),
    }
}

/// Starts the broker: this program, under the name by which it was called. Adds to the rules what
/// this process then needs of itself.
///
/// # Errors
/// Why there is none, in words.
async fn start_broker(config: &Config, rules: &mut Rules) -> Result<UnixStream, String> {
    if config.upstreams().any(|(_, upstream)| upstream.socket().is_some()) {
        let port = unix::keep_listener().await;
        let port = port.map_err(|e| format!("cannot listen on loopback: {e}"))?;
        rules.add_port(port, "services at Unix sockets");
    }
    let failed = |e| format!("cannot start the broker, a second process of aditd: {e}");
    broker(rules).await.map_err(failed)
}

async fn broker(rules: &Rules) -> std::io::Result<UnixStream> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| "aditd".into());
    // Nobody waits for it: it ends when this process has.
    let _child = Command::new("/proc/self/exe")
        .arg0(&name)
        .arg(BROKER)
        .stdin(Stdio::from(OwnedFd::from(far)))
        .spawn()?;
    near.set_nonblocking(true)?;
    let mut near = UnixStream::from_std(near)?;
    let paths = |pick: fn(&Right) -> Option<&PathBuf>| -> Vec<PathBuf> {
        rules.iter().filter_map(pick).cloned().collect()
    };
    let allowed = Allowed {
        program: Path::new(&name).to_owned(),
        args: args.collect(),
        writable: paths(|right| match right {
            Right::Write(path) | Right::Remove(path) => Some(path),
            _ => None,
        }),
        sockets: paths(|right| match right {
            Right::Socket(path) => Some(path),
            _ => None,
        }),
    };
    frame::write(&mut near, &allowed).await?;
    Ok(near)
}

/// Root keeps only what lets it read files of others, which Landlock then limits.
#[cfg(target_os = "linux")]
fn drop_capabilities() {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::FOWNER;
    if let Ok(had) = capabilities(None) {
        let left = CapabilitySets {
            effective: had.effective & kept,
            permitted: had.permitted & kept,
            inheritable: CapabilitySet::empty(),
        };
        let _ = set_capabilities(None, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_denied_file_is_explained_by_the_sandbox() {
        let error = |errno| std::io::Error::from(errno);
        let read = Failure::new("cannot read `/etc/aditd.toml`");
        assert!(is_denied(&read.clone().source(error(Errno::ACCESS))));
        assert!(is_denied(&Failure::new(format!("cannot use it: {}", error(Errno::ACCESS)))));
        assert!(!is_denied(&read.clone().source(error(Errno::NOENT))));
        assert!(!is_denied(&read.source("`max_queue` is no number")));
    }
}
