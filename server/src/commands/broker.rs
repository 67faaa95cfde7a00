//! `aditd broker`: the process beside a running server that keeps the rights which the server gives
//! up. The server starts it, with a socket as its standard input, and it ends with the server. It
//! does only what [`Allowed`] names, as the server may be in the hands of somebody else by then.

mod look_ups;
mod successor;

use std::{
    io,
    net::ToSocketAddrs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    sync::Arc,
};

use common::{
    machine::{
        descriptors, process,
        report::{Exit, Failure},
    },
    transport::{frame, unix},
};
use serde::Serialize;
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use self::{look_ups::LookUps, successor::Trust};
use crate::{
    doctor,
    outside::{self, Allowed, Ask, MAX_MESSAGE, Refused},
    serve::TAKE_OVER,
};

/// How many questions may be open, without look-ups.
const QUESTIONS: usize = 256;
/// How many names may be looked up at the same time, and how many look-ups may be open.
const NAMES: (usize, usize) = (64, 256);
/// The same of users.
const LOGINS: (usize, usize) = (4, 64);

/// Answers the server until it ends.
///
/// # Errors
/// If no server has started this process.
pub(crate) async fn run() -> Result<(), Failure> {
    let failed = |e: io::Error| {
        Failure::new("cannot be the broker of aditd")
            .source(e)
            .hint("only `aditd serve` starts it")
            .exit(Exit::Usage)
    };
    // The server may need it until its last answer has ended: it ends with the server, and by no signal
    // that a terminal or systemd sends to both.
    let orders = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ];
    let _orders = orders.map(signal);
    let mut server = server().map_err(failed)?;
    let allowed: Allowed = match frame::read_long(&mut server, MAX_MESSAGE).await {
        Ok(allowed) => allowed,
        // The server could give nothing up, and needs no broker.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    Arc::new(Broker::new(allowed)).answer_all(&server).await;
    Ok(())
}

/// Standard input, which is a socket of the server.
fn server() -> io::Result<UnixStream> {
    let server = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // An error if it is no socket.
    server.peer_addr()?;
    server.set_nonblocking(true)?;
    UnixStream::from_std(server)
}

struct Broker {
    allowed: Allowed,
    trust: Trust,
    questions: Arc<Semaphore>,
    names: LookUps,
    logins: LookUps,
}

impl Broker {
    fn new(allowed: Allowed) -> Self {
        let (names, logins) = (LookUps::new(NAMES), LookUps::new(LOGINS));
        let (trust, questions) = (Trust::of_this_process(), Arc::new(Semaphore::new(QUESTIONS)));
        Self { allowed, trust, questions, names, logins }
    }

    /// Answers until the server has ended.
    async fn answer_all(self: &Arc<Self>, server: &UnixStream) {
        let mut running = JoinSet::new();
        loop {
            let files = match descriptors::receive(server).await {
                Ok(files) => files,
                // This process has too many files open for the moment. The asker sees its connection
                // end.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => continue,
                Err(_) => return,
            };
            while running.try_join_next().is_some() {}
            for file in files {
                // It is never closed.
                let Ok(place) = self.questions.clone().acquire_owned().await else { return };
                running.spawn(self.clone().answer(file, place));
            }
        }
    }

    async fn answer(self: Arc<Self>, file: OwnedFd, place: OwnedSemaphorePermit) {
        let asker = std::os::unix::net::UnixStream::from(file);
        if asker.set_nonblocking(true).is_err() {
            return;
        }
        let Ok(mut asker) = UnixStream::from_std(asker) else { return };
        let Ok(ask) = frame::read_long(&mut asker, MAX_MESSAGE).await else { return };
        let asker = &mut asker;
        let _ = match ask {
            Ask::Addresses { host, port } => {
                drop(place);
                let find = move || -> io::Result<Vec<_>> {
                    Ok((&*host, port).to_socket_addrs()?.collect())
                };
                say_unless_gone(asker, async { self.names.look_up(find).await? }).await
            }
            Ask::Login { uid } => {
                drop(place);
                say_unless_gone(asker, self.logins.look_up(move || process::login(uid))).await
            }
            Ask::Machine { ollama } => {
                say_unless_gone(asker, async { Ok(doctor::around(ollama).await) }).await
            }
            Ask::Socket { path } => self.connect(asker, &path).await,
            Ask::Program { path } => self.start(asker, &path).await,
        };
    }

    async fn connect(&self, asker: &mut UnixStream, path: &Path) -> io::Result<()> {
        let known = self.allowed.sockets.iter().any(|known| known == path);
        let connected = match known {
            true => unless_gone(asker, UnixStream::connect(path)).await?,
            false => Err(io::ErrorKind::PermissionDenied.into()),
        };
        match connected {
            Ok(socket) => {
                say(asker, Ok(())).await?;
                descriptors::send(asker, &[socket.as_fd()]).await
            }
            Err(e) => say(asker, io::Result::<()>::Err(e)).await,
        }
    }

    /// Starts the program that replaces the server, and waits until it is kept or not.
    async fn start(&self, asker: &mut UnixStream, program: &Path) -> io::Result<()> {
        let stdin = descriptors::receive(asker).await?.pop().ok_or(io::ErrorKind::InvalidData)?;
        let child = self.trust.check(program, &self.allowed).and_then(|real| {
            let args = self.allowed.args.iter().cloned();
            // The path that was checked: the server may be able to change what another one leads to.
            let mut command = outside::command(&real, args, TAKE_OVER, stdin);
            command.arg0(program);
            tokio::process::Command::from(command).spawn()
        });
        let mut child = match child {
            Ok(child) => child,
            Err(e) => return say(asker, io::Result::<u32>::Err(e)).await,
        };
        say(asker, Ok(child.id().unwrap_or_default())).await?;
        if !outside::is_kept(asker).await {
            child.kill().await?;
        }
        // Otherwise it would stay in the list of processes when it has ended.
        child.wait().await.map(drop)
    }
}

async fn say<T: Serialize>(to: &mut UnixStream, answer: io::Result<T>) -> io::Result<()> {
    frame::write(to, &answer.map_err(Refused::from)).await
}

async fn say_unless_gone<T: Serialize>(
    asker: &mut UnixStream,
    answer: impl Future<Output = io::Result<T>>,
) -> io::Result<()> {
    let answer = unless_gone(asker, answer).await?;
    say(asker, answer).await
}

/// What comes of it.
///
/// # Errors
/// If the asker closes its connection before. It has nothing more to say until it has its answer.
async fn unless_gone<T>(asker: &UnixStream, what: impl Future<Output = T>) -> io::Result<T> {
    tokio::select! {
        done = what => Ok(done),
        () = unix::gone(asker) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests;
