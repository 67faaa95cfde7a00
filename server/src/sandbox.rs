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
    ffi::OsString,
    ops::ControlFlow,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use common::{
    machine::{owner, report::Failure},
    transport::{frame, unix},
};
use proto::doctor::gpu_box::Sandbox;
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
            Ok(broker) => {
                let sandbox = give_up(&rules);
                // Otherwise nothing was given up, and the broker ends with its socket.
                if sandbox.files || sandbox.system_calls {
                    rely_on(broker, &rules, &sandbox).await;
                }
                sandbox
            }
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
fn give_up(rules: &Rules) -> Sandbox {
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
    Sandbox { failed, ..Sandbox::of(abi, system_calls != 0) }
}

#[cfg(not(target_os = "linux"))]
fn give_up(_: &Rules) -> Sandbox {
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

/// Adds what helps where the sandbox may have refused a file of the settings.
pub(crate) fn explain(failure: Failure) -> Failure {
    outside::cure(&failure).into_iter().fold(failure, Failure::hint)
}

fn this_machine() -> Machine<'static> {
    Machine {
        home: directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_owned()),
        variable: &|name| std::env::var(name).ok(),
        real: &|path| std::fs::canonicalize(path).ok(),
        links: &links,
    }
}

/// The links on the way to a path, without links on the way to themselves, and what each leads to.
fn links(path: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    // What is not there has no more of them.
    let _ = std::path::absolute(path).and_then(|path| {
        owner::walk(&path, |at, file| {
            if file.is_symlink()
                && let Ok(target) = std::fs::read_link(at)
            {
                let target = at.parent().unwrap_or(at).join(target);
                found.push((at.to_owned(), target));
            }
            ControlFlow::<()>::Continue(())
        })
    });
    found
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
    broker().map_err(failed)
}

fn broker() -> std::io::Result<UnixStream> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    // Nobody waits for it: it ends when this process has.
    let _child = Command::new("/proc/self/exe")
        .arg0(own_name())
        .arg(BROKER)
        .stdin(Stdio::from(OwnedFd::from(far)))
        .spawn()?;
    near.set_nonblocking(true)?;
    UnixStream::from_std(near)
}

/// The name by which this program was called.
fn own_name() -> OsString {
    std::env::args_os().next().unwrap_or_else(|| "aditd".into())
}

/// Leaves to the broker what this process has given up.
async fn rely_on(mut broker: UnixStream, rules: &Rules, sandbox: &Sandbox) {
    // Nothing was read from the network yet, so the broker can believe it. If it has ended already,
    // the log says so as it does later.
    let _ = frame::write(&mut broker, &allowed(rules, sandbox.files)).await;
    let ports = sandbox.tcp_ports.then(|| rules.ports().collect());
    outside::ask_at(broker, ports, sandbox.files);
}

/// What the broker does for this process.
fn allowed(rules: &Rules, is_limited: bool) -> Allowed {
    let paths = |pick: fn(&Right) -> Option<&PathBuf>| -> Vec<PathBuf> {
        rules.iter().filter_map(pick).cloned().collect()
    };
    Allowed {
        program: own_name().into(),
        args: std::env::args_os().skip(1).collect(),
        writable: paths(|right| match right {
            Right::Write(path) | Right::Remove(path) => Some(path),
            _ => None,
        }),
        is_limited,
        sockets: paths(|right| match right {
            Right::Socket(path) => Some(path),
            _ => None,
        }),
    }
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
