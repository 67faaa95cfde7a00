//! `aditd broker`: the process beside a running server that keeps the rights which the server gives
//! up. The server starts it, with a socket as its standard input, and it ends with the server. It
//! does only what [`Allowed`] names, as the server may be in the hands of somebody else by then.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use common::{
    machine::{
        descriptors,
        report::{Exit, Failure},
    },
    transport::frame,
};
use serde::Serialize;
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::{
    doctor,
    outside::{self, Allowed, Ask, MAX_MESSAGE, Refused},
    serve::TAKE_OVER,
};

/// How many questions may be open.
const QUESTIONS: usize = 256;

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
    let allowed: Allowed = frame::read_long(&mut server, MAX_MESSAGE).await.map_err(failed)?;
    let allowed = Arc::new(allowed);
    let mut questions = JoinSet::new();
    loop {
        let Ok(files) = descriptors::receive(&server).await else { return Ok(()) };
        while questions.try_join_next().is_some() {}
        if questions.len() >= QUESTIONS {
            questions.join_next().await;
        }
        for file in files {
            questions.spawn(answer(file, allowed.clone()));
        }
    }
}

/// Standard input, which is a socket of the server.
fn server() -> io::Result<UnixStream> {
    let server = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // An error if it is no socket.
    server.peer_addr()?;
    server.set_nonblocking(true)?;
    UnixStream::from_std(server)
}

async fn answer(file: OwnedFd, allowed: Arc<Allowed>) {
    let asker = std::os::unix::net::UnixStream::from(file);
    if asker.set_nonblocking(true).is_err() {
        return;
    }
    let Ok(mut asker) = UnixStream::from_std(asker) else { return };
    let Ok(ask) = frame::read_long(&mut asker, MAX_MESSAGE).await else { return };
    let _ = match ask {
        Ask::Addresses { host, port } => {
            say(&mut asker, outside::addresses(&host, port).await).await
        }
        Ask::Login { uid } => say(&mut asker, Ok(outside::login(uid).await)).await,
        Ask::Machine { ollama } => say(&mut asker, Ok(doctor::around(ollama).await)).await,
        Ask::Socket { path } => connect(&mut asker, &path, &allowed).await,
        Ask::Program { path } => start(&mut asker, &path, &allowed).await,
    };
}

async fn say<T: Serialize>(to: &mut UnixStream, answer: io::Result<T>) -> io::Result<()> {
    frame::write(to, &answer.map_err(Refused::from)).await
}

async fn connect(asker: &mut UnixStream, path: &Path, allowed: &Allowed) -> io::Result<()> {
    let known = allowed.sockets.iter().any(|known| known == path);
    let connected = match known {
        true => UnixStream::connect(path).await,
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
async fn start(asker: &mut UnixStream, program: &Path, allowed: &Allowed) -> io::Result<()> {
    let stdin = descriptors::receive(asker).await?.pop().ok_or(io::ErrorKind::InvalidData)?;
    let child = allowed.check(program).and_then(|()| {
        let args = allowed.args.iter().filter(|arg| *arg != TAKE_OVER).cloned();
        let command = outside::command(program, args, TAKE_OVER, stdin);
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

impl Allowed {
    /// Whether a program may replace the server: it has the server's name, and the server can have
    /// made neither it nor the way to it.
    fn check(&self, program: &Path) -> io::Result<()> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if program.file_name() != self.program.file_name() {
            return refused("a program of another name does not replace aditd");
        }
        let Some(dir) = program.parent() else { return refused("it has no directory") };
        let places = [std::fs::canonicalize(dir)?, std::fs::canonicalize(program)?];
        let is_writable = |place: &std::path::PathBuf| {
            self.writable.iter().any(|dir| {
                let real = std::fs::canonicalize(dir);
                place.starts_with(dir) || real.is_ok_and(|real| place.starts_with(real))
            })
        };
        match places.iter().any(is_writable) {
            true => refused("aditd can write where that program is: put it elsewhere"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_a_program_that_the_server_cannot_have_made_replaces_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "new", "state"] {
            fs::create_dir(at(name)).expect("made");
            fs::write(at(name).join("aditd"), "").expect("written");
        }
        fs::write(at("bin/sh"), "").expect("written");
        symlink(at("state/aditd"), at("new/link")).expect("linked");
        fs::create_dir(at("to-state")).expect("made");
        symlink(at("state/aditd"), at("to-state/aditd")).expect("linked");
        symlink(at("state"), at("way")).expect("linked");
        symlink(at("bin/aditd"), at("state/link")).expect("linked");
        fs::create_dir(at("state/below")).expect("made");
        symlink(at("bin/sh"), at("state/below/aditd")).expect("linked");
        let allowed = Allowed {
            program: at("bin/aditd"),
            args: Vec::new(),
            writable: vec![at("state")],
            sockets: Vec::new(),
        };
        for (program, may) in [
            ("bin/aditd", true),
            ("new/aditd", true),
            ("bin/sh", false),
            ("state/aditd", false),
            ("state/below/aditd", false),
            ("to-state/aditd", false),
            ("way/aditd", false),
            ("bin/../state/aditd", false),
            ("nowhere/aditd", false),
        ] {
            assert_eq!(allowed.check(&at(program)).is_ok(), may, "{program}");
        }
    }
}
