//! Runs the system's `ssh` as a child process. It supports all of ssh's configuration, agents and
//! hardware keys.

use std::{
    io,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use common::transport::frame;
use proto::{
    identity::Name,
    wire::{EnrollDevice, Enrolled},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, ReadBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    DOCTOR, Halves, Inspected, SshError, SshTarget,
    answer::{self, NotBegun},
    ask,
    bounds::{Patience, Tell},
    pace::Step,
    program,
};

/// How many of ssh's last lines are kept to say why it failed.
const KEPT_LINES: usize = 12;
/// The exit code of ssh when ssh itself has failed, not the command.
pub(super) const OWN_FAILURE: u32 = 255;
/// How long to wait for the end of an ssh whose output has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Whether ssh may ask for a passphrase, a password, or about an unknown host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompts {
    /// It may ask on the terminal.
    Allowed,
    /// It must not ask.
    Forbidden,
}

/// The output of a relay. Dropping it ends its ssh.
struct Relayed {
    stdout: ChildStdout,
    _child: Child,
    _said: Said,
}

impl AsyncRead for Relayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

/// Enrolls. ssh may ask questions.
pub(super) async fn enroll(
    target: &SshTarget,
    name: &Name,
    request: &EnrollDevice,
) -> Result<Enrolled, SshError> {
    let run = format!("enroll-device {name}");
    let mut child = start(target, &run, Prompts::Allowed)?;
    let patience = patience(target, Tell::Nobody);
    let said = Said::listen(child.stderr.take(), &patience);
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(SshError::Ended { to: target.to_string(), said: String::new() });
    };
    let exchange = async {
        let asked = async {
            frame::write(&mut stdin, request).await?;
            stdin.flush().await
        };
        // The command may have answered without reading everything.
        let unasked = asked.await.err();
        answer::certificate(&mut stdout).await.map_err(|why| match (why, unasked) {
            (NotBegun::Ended(_), Some(e)) => NotBegun::Ended(e),
            (why, _) => why,
        })
    };
    // ssh may be asking a person, who can also end it.
    let answer = match ask::somebody_is_there() {
        true => Ok(exchange.await),
        false => patience.bound(exchange).await,
    };
    match answer {
        Ok(Ok(enrolled)) => {
            target.pace.learn(patience.slowest());
            Ok(enrolled)
        }
        Ok(Err(e)) => Err(ended(target, &run, child, said, e).await),
        Err(silence) => Err(SshError::Silent(silence)),
    }
}

/// Starts a relay, and waits until it runs.
pub(super) async fn carry(target: &SshTarget) -> Result<Halves, SshError> {
    let to = target.to_string();
    let mut child = start(target, "relay", Prompts::Forbidden)?;
    let patience =
        patience(target, if target.keyring.may_ask() { Tell::Log } else { Tell::Nobody });
    let said = Said::listen(child.stderr.take(), &patience);
    let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(SshError::Ended { to, said: String::new() });
    };
    match patience.bound(answer::relay(&mut stdout)).await {
        Ok(Ok(())) => {
            patience.again();
            target.pace.learn(patience.slowest());
            let read = Box::new(Relayed { stdout, _child: child, _said: said });
            Ok(Halves { read, write: Box::new(stdin), round_trip: None })
        }
        Ok(Err(e)) => Err(ended(target, "relay", child, said, e).await),
        Err(silence) => Err(SshError::Silent(silence)),
    }
}

/// Asks aditd what is wrong there. How ssh logs in is not visible, and this way forwards nothing.
pub(super) async fn inspect(target: &SshTarget) -> Result<Inspected, SshError> {
    let mut child = start(target, DOCTOR, Prompts::Forbidden)?;
    let patience = patience(target, Tell::Nobody);
    let said = Said::listen(child.stderr.take(), &patience);
    // The command reads nothing.
    drop(child.stdin.take());
    let Some(mut stdout) = child.stdout.take() else {
        return Err(SshError::Ended { to: target.to_string(), said: String::new() });
    };
    let report = match patience.bound(answer::report(&mut stdout)).await {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(why)) => match ended(target, DOCTOR, child, said, why).await {
            e @ SshError::Ended { .. } => return Err(e),
            e => Err(e),
        },
        Err(silence) => return Err(SshError::Silent(silence)),
    };
    Ok(Inspected { by: "the system's ssh".to_owned(), report, forwards: None })
}

/// What ssh waits for is not visible, so the login and the command share one time limit.
fn patience(target: &SshTarget, tell: Tell) -> Arc<Patience> {
    let (to, bounds) = (target.to_string(), target.pace.bounds());
    let patience = Patience::new(&to, bounds, tell);
    patience.step(Step::Login, &to, Some(bounds.login_and_command()));
    Arc::new(patience)
}

fn start(target: &SshTarget, arguments: &str, prompts: Prompts) -> Result<Child, SshError> {
    spawn(target, &target.command(arguments), prompts)
}

/// Starts ssh with a command of the login shell.
fn spawn(target: &SshTarget, command_line: &str, prompts: Prompts) -> Result<Child, SshError> {
    let program = program();
    let mut command = Command::new(&program);
    // No terminal on the server, no forwarding, and a dead connection ends within half a minute.
    command.args([
        "-T",
        "-o",
        "ClearAllForwardings=yes",
        "-o",
        "ServerAliveInterval=10",
        "-o",
        "ServerAliveCountMax=3",
    ]);
    // No host key is accepted silently, whatever the configuration says.
    match prompts {
        Prompts::Forbidden => {
            command.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"])
        }
        Prompts::Allowed => command.args(["-o", "StrictHostKeyChecking=ask"]),
    };
    if let Some(port) = target.port {
        command.args(["-p", &port.to_string()]);
    }
    command.arg("--").arg(&target.destination).arg(command_line);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if prompts == Prompts::Forbidden {
        // It reconnects in the background, so it cannot ask. And Ctrl-C at the terminal must only
        // reach adit, because running answers still use this ssh.
        command.process_group(0);
    }
    command.spawn().map_err(|source| SshError::NoProgram { program, source: Arc::new(source) })
}

async fn ended(
    target: &SshTarget,
    arguments: &str,
    mut child: Child,
    said: Said,
    why: NotBegun,
) -> SshError {
    let error = match why.told(target) {
        Ok(told) => return told,
        Err(error) => error,
    };
    let status = tokio::time::timeout(LAST_WORDS, child.wait()).await.ok().and_then(Result::ok);
    let code = status.and_then(|status| status.code()).and_then(|code| u32::try_from(code).ok());
    let said = said.text().await;
    match code {
        Some(code) if code != OWN_FAILURE => {
            SshError::of_command(target, arguments, Some(code), &said)
        }
        _ => SshError::Ended {
            to: target.to_string(),
            said: if said.is_empty() { error.to_string() } else { said },
        },
    }
}

/// A command of the login shell in an ssh of its own, which may ask the person.
pub(super) struct Running {
    child: Child,
    said: Said,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no ssh.
    pub(super) fn start(target: &SshTarget, command: &str) -> Result<Self, SshError> {
        let mut child = spawn(target, command, Prompts::Allowed)?;
        let said = Said::listen(child.stderr.take(), &patience(target, Tell::Nobody));
        Ok(Self { child, said })
    }

    /// Its standard output, the first time.
    pub(super) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard input, the first time.
    pub(super) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its exit code, and the last lines that it and ssh have printed.
    pub(super) async fn end(mut self) -> (Option<u32>, String) {
        let ended = tokio::time::timeout(LAST_WORDS, self.child.wait()).await;
        let code = ended.ok().and_then(Result::ok).and_then(|status| status.code());
        (code.and_then(|code| u32::try_from(code).ok()), self.said.text().await)
    }
}

/// The last lines that ssh has printed.
#[derive(Debug)]
struct Said {
    lines: Arc<Mutex<Vec<String>>>,
    /// Cancelled when its standard error ends.
    over: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Said {
    fn listen(stderr: Option<ChildStderr>, patience: &Arc<Patience>) -> Self {
        let patience = patience.clone();
        let (lines, over) = (Arc::new(Mutex::new(Vec::<String>::new())), CancellationToken::new());
        let (keep, ends) = (lines.clone(), over.clone().drop_guard());
        let task = tokio::spawn(async move {
            let _ends = ends;
            let Some(stderr) = stderr else { return };
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::debug!("ssh: {line}");
                patience.again();
                let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push(line);
                if kept.len() > KEPT_LINES {
                    kept.remove(0);
                }
            }
        });
        Self { lines, over, _task: AbortOnDropHandle::new(task) }
    }

    /// The text so far. Waits a second for its end.
    async fn text(&self) -> String {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.over.cancelled()).await;
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}
