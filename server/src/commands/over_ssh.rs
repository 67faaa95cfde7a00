//! The commands that a device runs here over SSH: `aditd enroll-device`, which needs no invitation
//! because sshd has authenticated the user, and `aditd relay`, which carries a tunnel's datagrams
//! where no UDP port can be reached.

pub(in crate::commands) mod nearby;

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use common::{
    machine::{
        control,
        owner::become_owner_of,
        process,
        report::{Exit, Failure, data},
    },
    transport::{carrier, frame},
};
use data_encoding::{BASE64, HEXLOWER};
use proto::{
    crypto::sha256,
    doctor::Report,
    identity::Name,
    wire::{EnrollDevice, Enrolled, SSH_FAILED, SSH_MARKER, SSH_RELAY, SshFailed},
};
use serde::Serialize;
use tokio::io::AsyncWriteExt;

use crate::{
    commands::stdio,
    config::Config,
    running::{self, Answer, Request},
    session::enroll_socket::{
        self,
        elsewhere::{self, Elsewhere, ROOT},
    },
    state,
};

/// The environment variable that names the Unix socket of a server.
pub(crate) const SOCKET: &str = "ADITD_ENROLL_SOCKET";

/// Runs the work of a command before it first writes to standard output. A failure is printed on
/// standard error for people, and sent on standard output for the client.
async fn reporting_failure<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let result = work.await;
    if let Err(failure) = &result
        && !std::io::stdout().is_terminal()
    {
        let mut answer = SSH_FAILED.as_bytes().to_vec();
        let framed = frame::write(&mut answer, &SshFailed::from(failure.clone())).await;
        // If the client does not read it, the exit code and standard error still report it.
        let _ = framed.and_then(|()| {
            let mut out = std::io::stdout();
            out.write_all(&answer).and_then(|()| out.flush())
        });
    }
    result
}

/// Enrolls the device whose signing request is on standard input; prints its certificate on
/// standard output. `socket` is where a server lets a group enroll, if it is not that of the
/// configuration.
pub(crate) async fn enroll_device(
    config: Result<Config, Failure>,
    name: &str,
    socket: Option<PathBuf>,
) -> Result<(), Failure> {
    let enrolled = reporting_failure(async { enroll(&config?, name, socket).await }).await?;
    answer(&enrolled).await.map_err(|e| Failure::new("cannot send the certificate").source(e))
}

/// Prints the SHA-256 of this program.
///
/// # Errors
/// When its file cannot be read.
pub(crate) fn digest() -> Result<(), Failure> {
    let program = std::env::current_exe().and_then(std::fs::read);
    let program = program.map_err(|e| Failure::new("cannot read this program").source(e))?;
    data(HEXLOWER.encode(&sha256(&program)))
}

/// Writes a report to standard output, for the client.
///
/// # Errors
/// As the work that makes it; or when nobody reads it.
pub(super) async fn doctor(
    work: impl Future<Output = Result<Report, Failure>>,
) -> Result<(), Failure> {
    let report = reporting_failure(work).await?;
    answer(&report).await.map_err(|e| Failure::new("cannot send the report").source(e))
}

/// The marker, and a message.
async fn answer(message: &impl Serialize) -> std::io::Result<()> {
    let mut answer = SSH_MARKER.as_bytes().to_vec();
    frame::write(&mut answer, message).await?;
    let mut out = tokio::io::stdout();
    out.write_all(&answer).await?;
    out.flush().await
}

async fn enroll(config: &Config, name: &str, socket: Option<PathBuf>) -> Result<Enrolled, Failure> {
    let name: Name = name.parse().map_err(|why| {
        Failure::new(format!("`{name}` can't be a device's name"))
            .source(why)
            .hint("choose another name: run the same command again with `--device NAME`")
            .exit(Exit::Usage)
    })?;
    let unreadable = |why: String| {
        Failure::new("cannot read the device's request").source(why).exit(Exit::Usage)
    };
    let request: EnrollDevice = frame::read(&mut tokio::io::stdin()).await.map_err(|e| {
        unreadable(e.to_string())
            .hint("only `adit enroll USER@HOST` runs this command; to invite a device, run `aditd invite DEVICE`")
    })?;
    if !request.own_knock {
        return Err(Failure::new("this device's adit is older than aditd and could not connect")
            .hint("bring adit and aditd to the same version"));
    }
    let csr = BASE64.decode(request.csr.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
    let key_storage = request.key_storage;
    // The running server enrolls the device, by its own settings, so that there is only one way to
    // enroll.
    let request =
        Request::Enroll { name: name.clone(), csr: csr.clone(), key_storage, uid: process::uid() };
    let asked = match become_owner_of(&config.state_dir) {
        Ok(()) => control::ask(&config.state_dir, &request).await,
        Err(e) => Err(e),
    };
    let unavailable = match asked {
        Ok(Some(Answer::Enrolled(enrolled))) => return Ok(*enrolled),
        Ok(Some(Answer::Failed(failure))) => return Err(failure),
        Ok(Some(_)) => return Err(running::of_another_version()),
        Ok(None) => no_state(&config.state_dir),
        Err(e) => Err(e.into()),
    };
    // The state belongs to another user, or no server runs on it. The server may still allow a
    // group that this user belongs to.
    let socket = socket.unwrap_or_else(|| config.enroll_socket.clone());
    if let Some(answer) = enroll_socket::ask(&socket, None, &name, &csr, key_storage).await {
        return answer;
    }
    // Or it runs with another configuration. Root is trusted here anyway; any other user could have
    // made a socket to enroll devices at a server of his own, so a person has to choose it.
    let (trusted, others): (Vec<_>, Vec<_>) =
        elsewhere::find(&socket).await.into_iter().partition(|found| found.uid == ROOT);
    for found in trusted {
        if let Some(answer) =
            enroll_socket::ask(&found.path, Some(ROOT), &name, &csr, key_storage).await
        {
            return answer;
        }
    }
    let chosen = |failure: Failure| others.iter().fold(failure, |f, found| f.hint(choose(found)));
    const BY_CODE: &str =
        "or with a code: its owner runs `aditd invite NAME`; then `adit enroll` without USER@HOST";
    const WHO: &str = "these users may enroll devices: root, the owner of the server's state, and the members of the group in `aditd serve --enroll-group GROUP`";
    let user = person(process::uid());
    if let Some(group) = enroll_socket::not_a_member(&socket).await {
        let what = format!(
            "the aditd that runs on {} enrolls members of the group `{group}`, and `{user}` is not one",
            nearby::host()
        );
        return Err(Failure::new(what)
            .hint(format!(
                "its owner adds you: `sudo usermod -aG {group} {user}`; then the same command again"
            ))
            .hint(BY_CODE));
    }
    Err(match unavailable {
        Err(failure)
            if nearby::first_listening(&nearby::candidates(config, None)).await.is_some() =>
        {
            let what = format!(
                "`{user}` may not enroll devices at the aditd that runs on {}",
                nearby::host()
            );
            chosen(Failure::new(what).source(failure.what().to_owned())).hint(WHO).hint(BY_CODE)
        }
        Err(failure) => chosen(failure).hint(WHO),
        Ok(()) => match nearby::first_listening(&nearby::candidates(config, None)).await {
            Some(_) => {
                let what = format!(
                    "the aditd that runs on {} has another state than `{}`",
                    nearby::host(),
                    config.state_dir.display()
                );
                chosen(Failure::new(what)).hint(WHO)
            }
            None => nearby::not_running(
                &config.state_dir,
                &format!("no process serves its state in `{}`", config.state_dir.display()),
            ),
        },
    })
}

/// What `aditd init` cures; the reader is at another machine.
fn no_state(dir: &Path) -> Result<(), Failure> {
    match state::is_there(dir) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(format!("there is no server state in `{}`", dir.display()))
            .hint("start the server there with `aditd serve`, as the user of this login")),
        Err(e) => Err(e.into()),
    }
}

/// How a member enrolls at a server of a user who is not root.
fn choose(found: &Elsewhere) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "aditd".into());
    choose_of(&person(found.uid), &found.path, &program)
}

/// A user of this machine, for people.
fn person(uid: u32) -> String {
    process::login(uid).unwrap_or_else(|| format!("uid {uid}"))
}

fn choose_of(owner: &str, socket: &Path, program: &Path) -> String {
    let lets = format!("the aditd of another user, `{owner}`, lets you enroll");
    match (plain(socket), plain(program)) {
        (Some(socket), Some(program)) => format!(
            "{lets}. If that one is meant: add `--remote-command 'env {SOCKET}={socket} {program}'` to `adit enroll`"
        ),
        _ => format!(
            "{lets}, but not over SSH: `--remote-command` cannot name its files. If that one is meant: its owner runs `aditd invite NAME`; then `adit enroll` without USER@HOST"
        ),
    }
}

/// A path that is one word in `--remote-command`, and no assignment for `env`.
fn plain(path: &Path) -> Option<&str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '~');
    path.to_str().filter(|path| path.chars().all(is_plain))
}

/// Relays between standard input and output and the server of this machine, until the stream ends.
/// `known` is the port that the device was told when it enrolled.
pub(crate) async fn relay(
    config: Result<Config, Failure>,
    to: Option<SocketAddr>,
    known: Option<u16>,
) -> Result<(), Failure> {
    let to = reporting_failure(async {
        match to {
            Some(to) => Ok(to),
            None => nearby::server(&config?, known).await,
        }
    })
    .await?;
    let mut out = stdio::output();
    let gone = |e: std::io::Error| Failure::new("the relay has lost its SSH connection").source(e);
    out.write_all(format!("{SSH_RELAY}{SSH_MARKER}").as_bytes()).await.map_err(gone)?;
    out.flush().await.map_err(gone)?;
    let end = carrier::relay(stdio::input(), out, to).await;
    if end.kind() == std::io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(gone(end)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_adit_refuses_is_not_proposed() {
        let choose =
            |socket: &str, program: &str| choose_of("ann", Path::new(socket), Path::new(program));
        let typed = choose("/srv/ann_1/e-1.sock", "/usr/bin/aditd");
        let command =
            "`--remote-command 'env ADITD_ENROLL_SOCKET=/srv/ann_1/e-1.sock /usr/bin/aditd'`";
        assert!(typed.contains(command), "{typed}");
        let aditd = "/usr/bin/aditd";
        for (socket, program) in [
            ("/srv/of the team", aditd),
            ("/srv/ann+1/e.sock", aditd),
            ("/srv/ann's/e.sock", aditd),
            ("/srv/$HOME/e.sock", aditd),
            ("/srv/\u{e4}/e.sock", aditd),
            ("/srv/e.sock", "/opt/a=b/aditd"),
            ("/srv/e.sock", "/usr/bin/aditd (deleted)"),
        ] {
            let cure = choose(socket, program);
            assert!(
                !cure.contains("--remote-command '") && cure.contains("aditd invite"),
                "{cure}"
            );
        }
    }
}
