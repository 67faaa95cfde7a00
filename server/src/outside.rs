//! What this process asks of its broker. A server that has started gives up most of its rights (see
//! [`crate::sandbox`]); the broker is a process beside it that keeps them, knows no device and reads
//! nothing from the network. It looks up names, connects to the Unix sockets that the configuration
//! names, looks at the machine for `doctor`, and starts the process that replaces the server.
//! Without a broker this process does all that itself.

mod https;

pub(crate) use self::https::{Names, PROXIES, check_port};

use std::{
    collections::BTreeSet,
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use common::{
    machine::{descriptors, process, report::Failure},
    transport::{frame, unix},
};
use proto::doctor::gpu_box::{Unit, ollama::Parallel};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{io::AsyncReadExt, net::UnixStream};
use tracing::error;

/// The longest message between the two, in bytes.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;

static LIMITS: OnceLock<Limits> = OnceLock::new();

/// What this process has given up, and who does it instead.
struct Limits {
    broker: UnixStream,
    /// The TCP ports that it may connect to; `None` for all.
    ports: Option<BTreeSet<u16>>,
    /// Whether it may open only some files.
    files: bool,
}

fn broker() -> Option<&'static UnixStream> {
    LIMITS.get().map(|limits| &limits.broker)
}

/// What the broker does for the server. It is told once, before the server gives its rights up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Allowed {
    /// The path by which the server was started.
    pub(crate) program: PathBuf,
    /// Its arguments, with which the one is started that replaces it.
    pub(crate) args: Vec<OsString>,
    /// The directories to which the server may write. No program there is started.
    pub(crate) writable: Vec<PathBuf>,
    /// Whether Landlock keeps it from writing anywhere else.
    pub(crate) is_limited: bool,
    /// The Unix sockets to which it may connect.
    pub(crate) sockets: Vec<PathBuf>,
}

/// What the server asks, each on a connection of its own. The answer is a `Result`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The addresses of a name.
    Addresses { host: String, port: u16 },
    /// A connection to this socket. It follows the answer.
    Socket { path: PathBuf },
    /// The name of a user of this machine.
    Login { uid: u32 },
    /// What `doctor` has to know of other processes.
    Machine { ollama: Option<SocketAddr> },
    /// To start this program with a socket, which follows, as its standard input. It is killed when
    /// the connection ends, unless a byte has come before.
    Program { path: PathBuf },
}

/// An error, as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refused {
    code: Option<i32>,
    text: String,
}

impl From<io::Error> for Refused {
    fn from(e: io::Error) -> Self {
        Self { code: e.raw_os_error(), text: e.to_string() }
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused.code {
            Some(code) => Self::from_raw_os_error(code),
            None => Self::other(refused.text),
        }
    }
}

/// What `doctor` has to know of other processes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Around {
    /// The unit of aditd.
    pub(crate) unit: Option<Unit>,
    /// Whether Ollama has one.
    pub(crate) ollama_has_unit: bool,
    /// How many requests its environment lets it run at once, if that can be read.
    pub(crate) parallel: Option<Parallel>,
    /// What else it sets of Ollama, which a cure has to keep.
    pub(crate) set: Vec<(String, String)>,
    /// The directory of its models, if its environment names one.
    pub(crate) models: Option<PathBuf>,
}

/// Asks the broker from now on: at the other end of this socket. `ports` are the TCP ports that this
/// process may connect to, if they are limited; `files` says whether it may open only some files.
pub(crate) fn ask_at(broker: UnixStream, ports: Option<BTreeSet<u16>>, files: bool) {
    // Only the first counts: there is one start.
    let _ = LIMITS.set(Limits { broker, ports, files });
}

/// What helps where the sandbox may have refused a file of the settings; `None` where it has not.
pub(crate) fn cure(failure: &Failure) -> Option<&'static str> {
    (LIMITS.get().is_some_and(|it| it.files) && is_denied(failure)).then_some(
        "aditd gave up all files that it did not need when it started (its sandbox): if its user may read this one, `aditd replace` starts a process that may",
    )
}

/// Whether a file was denied. A failure has only the text of the error.
fn is_denied(failure: &Failure) -> bool {
    let denied = io::Error::from(Errno::ACCESS).to_string();
    failure.what().contains(&denied) || failure.causes().iter().any(|why| why.contains(&denied))
}

/// Whether this process may connect to a TCP port.
pub(crate) fn may_connect(port: u16) -> bool {
    LIMITS.get().and_then(|it| it.ports.as_ref()).is_none_or(|ports| ports.contains(&port))
}

/// Says it in the log when the broker has ended, which nothing here can start again. The server goes
/// on with what needs no broker, and what runs is not hurt. Never returns.
pub(crate) async fn report_end() {
    if let Some(broker) = broker() {
        unix::gone(broker).await;
        error!(
            "the broker of aditd (its second process) has ended: requests go on, but names cannot be looked up, services at Unix sockets cannot be reached, and `aditd replace` cannot work. Restart aditd when its answers may end"
        );
    }
    std::future::pending().await
}

/// The addresses of `host`. Cancellation safe.
///
/// # Errors
/// If it has none, or nobody can say.
pub(crate) async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![(ip, port).into()]);
    }
    match broker() {
        Some(broker) => Ok(ask(broker, &Ask::Addresses { host: host.to_owned(), port }).await?.0),
        None => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
    }
}

/// A connection to a Unix socket. Cancellation safe.
///
/// # Errors
/// If nobody listens there, or it is not for this process.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let Some(broker) = broker() else { return UnixStream::connect(path).await };
    let ((), from) = ask(broker, &Ask::Socket { path: path.to_owned() }).await?;
    let socket = descriptors::receive(&from).await?.pop();
    let socket = std::os::unix::net::UnixStream::from(socket.ok_or(io::ErrorKind::InvalidData)?);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// The name of a user of this machine, if it has one.
pub(crate) async fn login(uid: u32) -> Option<String> {
    match broker() {
        Some(broker) => ask(broker, &Ask::Login { uid }).await.ok()?.0,
        None => tokio::task::spawn_blocking(move || process::login(uid)).await.ok()?,
    }
}

/// What `doctor` has to know of other processes, and what it has to know of Ollama at this address;
/// `None` if there is no broker.
pub(crate) async fn around(ollama: Option<SocketAddr>) -> Option<Around> {
    let asked = ask(broker()?, &Ask::Machine { ollama }).await;
    Some(asked.map(|(around, _)| around).unwrap_or_default())
}

/// Asks for another program in the place of this one, as a server does that is to be replaced, and
/// does without it at once: for a test of what the broker refuses.
///
/// # Errors
/// Why it is refused.
pub async fn try_launch(program: &Path) -> io::Result<()> {
    let (_, far) = UnixStream::pair()?;
    launch(program, "--version", far.into_std()?.into()).await.map(drop)
}

/// A program that was started. It is killed when this is dropped before [`Launched::keep`].
pub(crate) struct Launched {
    pub(crate) pid: u32,
    by: Option<By>,
}

enum By {
    This(Child),
    Broker(UnixStream),
}

/// Starts `program` with the arguments of this process and `more`, and this standard input.
///
/// # Errors
/// If it cannot be started.
pub(crate) async fn launch(program: &Path, more: &str, stdin: OwnedFd) -> io::Result<Launched> {
    let Some(broker) = broker() else {
        let child = command(program, std::env::args_os().skip(1), more, stdin).spawn()?;
        return Ok(Launched { pid: child.id(), by: Some(By::This(child)) });
    };
    let order = open(broker, &Ask::Program { path: program.to_owned() }).await?;
    descriptors::send(&order, &[stdin.as_fd()]).await?;
    let (pid, order) = answered(order).await?;
    Ok(Launched { pid, by: Some(By::Broker(order)) })
}

/// How a program is started that takes over from this one: with `more`, which `args` may have already.
pub(crate) fn command(
    program: &Path,
    args: impl Iterator<Item = OsString>,
    more: &str,
    stdin: OwnedFd,
) -> Command {
    let mut command = Command::new(program);
    command
        .args(args.filter(|arg| arg != more))
        .arg(more)
        .stdin(Stdio::from(stdin))
        // systemd names the process that it expects to be alive; that is the new one soon.
        .env_remove("WATCHDOG_PID");
    command
}

impl Launched {
    /// Lets it live on without this process.
    pub(crate) fn keep(mut self) {
        if let Some(By::Broker(order)) = self.by.take() {
            // The socket is empty: there is room for a byte.
            let _ = order.try_write(&[1]);
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Some(By::This(child)) = &mut self.by {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The order's end of a broker: whether the program is to live on.
pub(crate) async fn is_kept(order: &mut UnixStream) -> bool {
    order.read_u8().await.is_ok()
}

async fn ask<T: DeserializeOwned>(broker: &UnixStream, ask: &Ask) -> io::Result<(T, UnixStream)> {
    answered(open(broker, ask).await?).await
}

async fn open(broker: &UnixStream, ask: &Ask) -> io::Result<UnixStream> {
    let gone = |e: io::Error| {
        io::Error::new(e.kind(), format!("the broker of aditd has ended ({e}): restart aditd"))
    };
    let (mut near, far) = UnixStream::pair()?;
    descriptors::send(broker, &[far.as_fd()]).await.map_err(gone)?;
    drop(far);
    frame::write(&mut near, ask).await.map_err(gone)?;
    Ok(near)
}

async fn answered<T: DeserializeOwned>(mut from: UnixStream) -> io::Result<(T, UnixStream)> {
    let answer: Result<T, Refused> = frame::read_long(&mut from, MAX_MESSAGE).await?;
    Ok((answer?, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_denied_file_is_explained_by_the_sandbox() {
        let error = |errno| io::Error::from(errno);
        let read = Failure::new("cannot read `/etc/aditd.toml`");
        assert!(is_denied(&read.clone().source(error(Errno::ACCESS))));
        assert!(is_denied(&Failure::new(format!("cannot use it: {}", error(Errno::ACCESS)))));
        assert!(!is_denied(&read.clone().source(error(Errno::NOENT))));
        assert!(!is_denied(&read.source("`max_queue` is no number")));
    }
}
