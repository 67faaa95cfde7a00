//! The process and its system: the time, the signals to stop, resource limits, and who holds a
//! port.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::HEXLOWER;
pub use listeners::Protocol;
use listeners::{Listener, Process, SocketState};
use time::{OffsetDateTime, macros::format_description};
use tokio::signal::unix::{Signal, SignalKind, signal};

use proto::crypto::sha256;

/// Now, in Unix seconds.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Now, in Unix milliseconds.
pub fn unix_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// The day of a Unix time, as `2026-11-21` (UTC).
pub fn day(at: i64) -> String {
    let date = OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    date.format(format_description!("[year]-[month]-[day]")).unwrap_or_default()
}

/// The minute of a Unix time, as `2026-11-21T08:00` (UTC).
pub fn minute(at: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(format_description!("[year]-[month]-[day]T[hour]:[minute]")).unwrap_or_default()
}

/// Identifies the loopback interface of this process, if that is possible: two processes that reach
/// each other over loopback get the same value. It reveals nothing else about the machine.
pub fn loopback_id() -> Option<String> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let network = std::fs::read_link("/proc/self/ns/net").ok()?;
    let hash = sha256(&[&boot, network.as_os_str().as_encoded_bytes()].concat());
    Some(HEXLOWER.encode(&hash[..8]))
}

/// Reads a length of time from the command line.
///
/// # Errors
/// How to write it.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "write a length of time: 30s, 30m, 2h or 1d".to_owned())
}

/// Reads the value of `--idle-timeout`: from the time of four keep-alives to a week.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_idle_timeout(text: &str) -> Result<Duration, String> {
    let time = parse_time(text)?;
    let allowed = proto::wire::KEEP_ALIVE * 4..=Duration::from_secs(7 * 24 * 3600);
    if allowed.contains(&time) { Ok(time) } else { Err("choose between 20s and 7d".to_owned()) }
}

/// The user who started this process, even if it has given up that user's rights since then (see
/// [`crate::machine::owner`]).
pub fn uid() -> u32 {
    static STARTED_BY: OnceLock<u32> = OnceLock::new();
    *STARTED_BY.get_or_init(|| rustix::process::getuid().as_raw())
}

/// The login name of a user of this machine, if it has one. Blocks, also for long: the list of users
/// may be on another machine.
pub fn login(uid: u32) -> Option<String> {
    nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name)
}

/// The signals that stop a program: SIGINT, SIGTERM and, for some programs, SIGHUP.
pub struct StopSignals {
    interrupt: Option<Signal>,
    terminate: Signal,
    hang_up: Option<Signal>,
}

impl StopSignals {
    /// Listens for SIGINT and SIGTERM. From now on they do not end the process by themselves.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: Some(signal(SignalKind::interrupt())?),
            terminate: signal(SignalKind::terminate())?,
            hang_up: None,
        })
    }

    /// Like [`StopSignals::listen`], and listens for SIGHUP (the terminal was closed) too, unless SIGHUP
    /// was ignored when the process was started, as by nohup(1).
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen_at_terminal() -> io::Result<Self> {
        let hang_up = match ignores_hang_up() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        Ok(Self { hang_up, ..Self::listen()? })
    }

    /// Like [`StopSignals::listen_at_terminal`], for a process that serves another one at the same
    /// terminal: Ctrl-C and Ctrl-\\ are meant for the other one, and do nothing here.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen_beside_another() -> io::Result<Self> {
        // Once a handler is installed, it stays until the process ends.
        let (_interrupt, _quit) = (signal(SignalKind::interrupt())?, signal(SignalKind::quit())?);
        Ok(Self { interrupt: None, ..Self::listen_at_terminal()? })
    }

    /// Waits for the next signal. Cancellation safe.
    pub async fn asked(&mut self) {
        tokio::select! {
            () = next(&mut self.interrupt) => {}
            _ = self.terminate.recv() => {}
            () = hung_up(&mut self.hang_up) => {}
        }
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP do not end this process, and writing to the terminal in the
/// background does not stop it (SIGTTOU).
pub fn hold_off_orders() {
    use nix::sys::signal::{SigSet, Signal};
    let mut orders = SigSet::empty();
    for order in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGTTOU] {
        orders.add(order);
    }
    let _ = orders.thread_block();
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Waits until the terminal is closed. Only the first SIGHUP counts: both the kernel and the shell
/// may send one.
async fn hung_up(hang_up: &mut Option<Signal>) {
    next(hang_up).await;
    *hang_up = None;
}

/// Whether SIGHUP is ignored, if the system tells (proc_pid_status(5)).
fn ignores_hang_up() -> bool {
    const SIGHUP: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (SIGHUP - 1)) != 0)
}

/// Protects the keys in this process's memory: no core dump is written, and no other process of the
/// same user can read the memory. A change of the process's user undoes this.
pub fn protect_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Raises the limit of file descriptors to what the system allows. Every connection needs one, and
/// the usual soft limit of 1,024 exists for programs that use `select`, which these do not.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // macOS refuses more than OPEN_MAX, even if the hard limit is higher.
    let most = if cfg!(target_os = "macos") {
        limit.maximum.map(|m| m.min(10_240)).or(Some(10_240))
    } else {
        limit.maximum
    };
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: limit.maximum });
}

/// How many file descriptors this process may have.
pub fn descriptor_limit() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(1 << 20)
}

/// Which other process holds an address of this machine, as `` `ollama` (pid 812) ``. `None` if
/// that cannot be known: only root sees the processes of other users.
pub fn port_holder(address: SocketAddr, protocol: Protocol) -> Option<String> {
    let process = holder(address, protocol)?;
    Some(format!("`{}` (pid {})", process.name, process.pid))
}

/// The process id of that process.
pub fn port_holder_pid(address: SocketAddr, protocol: Protocol) -> Option<u32> {
    holder(address, protocol).map(|process| process.pid)
}

fn holder(address: SocketAddr, protocol: Protocol) -> Option<Process> {
    let is_same = |ip: IpAddr| ip.to_canonical() == address.ip().to_canonical();
    let is_holder = |listener: &Listener| {
        let is_listening = protocol == Protocol::UDP || listener.state == SocketState::Listen;
        listener.protocol == protocol
            && is_listening
            && listener.socket.port() == address.port()
            && (is_same(listener.socket.ip())
                || listener.socket.ip().is_unspecified()
                || address.ip().is_unspecified())
            && listener.process.pid != std::process::id()
    };
    let holders = listeners::get_all().ok()?.into_iter().filter(is_holder);
    holders.min_by_key(|holder| !is_same(holder.socket.ip())).map(|holder| holder.process)
}
