//! The way through SSH, with the system's own `ssh`: whatever its configuration, agent or hardware key can do, this can.

use std::{
    fmt, io,
    process::Stdio,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use common::{
    carrier::StreamCarrier,
    frame,
    identity::Name,
    wire::{EnrollDevice, Enrolled, SSH_MARKER},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, Command},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// A person may have to type a passphrase.
const LOGIN_WITHIN: Duration = Duration::from_secs(120);
/// What a login shell may say before the marker, in bytes.
const NOISE: usize = 64 * 1024;
/// Lines of ssh's own that are kept to say why it failed.
const KEPT_LINES: usize = 12;
/// Where `aditd` is looked for on the server, in this order.
const PLACES: &str = r#"aditd "$HOME/.local/bin/aditd" "$HOME/.cargo/bin/aditd" /usr/local/bin/aditd"#;
const NOT_FOUND: i32 = 127;

/// Where ssh goes: `[user@]host` and a port, as the user said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshWay {
    /// `user@host` or `host`; may be an alias of the user's configuration.
    destination: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// The program on the server, if it isn't found by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_command: Option<String>,
}

impl FromStr for SshWay {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "write it as USER@HOST or ssh://[USER@]HOST[:PORT]";
        let (rest, port) = match text.strip_prefix("ssh://") {
            Some(rest) => match rest.trim_end_matches('/').rsplit_once(':') {
                Some((host, port)) if !port.contains(']') => (host, Some(port.parse().map_err(|_| WHY)?)),
                _ => (rest.trim_end_matches('/'), None),
            },
            None if text.contains('@') => (text, None),
            None => return Err(WHY),
        };
        let destination = rest.replace(['[', ']'], "");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | ':' | '%' | '+');
        // ssh takes what begins with a dash for an option.
        let sound = !destination.is_empty() && !destination.starts_with(['-', '@']) && !destination.ends_with('@');
        if !sound || destination.contains("@-") || !destination.chars().all(plain) {
            return Err(WHY);
        }
        Ok(Self { destination, port, remote_command: None })
    }
}

impl fmt::Display for SshWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "ssh://{}:{port}", self.destination),
            None => f.write_str(&self.destination),
        }
    }
}

/// Whether ssh may ask for a passphrase, a password, or about an unknown host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    /// On the terminal, as ever.
    MayAsk,
    /// No.
    Silent,
}

/// Why SSH did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// There is no ssh on this computer.
    #[error("cannot run `{program}`")]
    NoProgram {
        /// What was tried.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// There is no `aditd` on the server.
    #[error("there is no aditd on {0}")]
    NoAditd(String),
    /// ssh or the command on the server ended without an answer.
    #[error("ssh to {to} ended{}", if .said.is_empty() { String::new() } else { format!(": {said}") })]
    Ended {
        /// Where to.
        to: String,
        /// What it said.
        said: String,
    },
    /// It takes too long.
    #[error("ssh to {0} does not get through")]
    Silent(String),
}

impl SshError {
    /// What cures it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoProgram { .. } => "install OpenSSH's client, or name another program in ADIT_SSH".to_owned(),
            Self::NoAditd(to) => {
                format!(
                    "install it there (`cargo install --locked --path server`) and start it with `aditd serve`; if it is elsewhere: `adit enroll {to} --remote-command /path/to/aditd`"
                )
            }
            Self::Ended { to, .. } | Self::Silent(to) => format!("try by hand what is tried here: `ssh {to}`"),
        }
    }
}

impl SshWay {
    /// Enrolls this device under `name` with a signing request (DER in base64).
    ///
    /// # Errors
    /// With what ssh or the server said.
    pub async fn enroll(&self, name: &Name, csr: String) -> Result<Enrolled, SshError> {
        let mut child = self.start(&format!("enroll-device {name}"), Login::MayAsk)?;
        let said = Said::listen(child.stderr.take());
        let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(SshError::Ended { to: self.to_string(), said: String::new() });
        };
        let exchange = async {
            frame::write(&mut stdin, &EnrollDevice { csr }).await?;
            stdin.flush().await?;
            past_marker(&mut stdout).await?;
            frame::read::<Enrolled>(&mut stdout).await
        };
        match tokio::time::timeout(LOGIN_WITHIN, exchange).await {
            Ok(Ok(enrolled)) => Ok(enrolled),
            Ok(Err(e)) => Err(self.why(child, said, e).await),
            Err(_) => Err(SshError::Silent(self.to_string())),
        }
    }

    /// Opens a carrier: at once, while ssh is still logging in.
    ///
    /// # Errors
    /// If ssh can't be started.
    pub fn open(&self) -> Result<(Arc<StreamCarrier>, SshCarrier), SshError> {
        let mut child = self.start("relay", Login::Silent)?;
        let said = Said::listen(child.stderr.take());
        let (ready, dead) = (CancellationToken::new(), CancellationToken::new());
        let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(SshError::Ended { to: self.to_string(), said: String::new() });
        };
        let logged_in = ready.clone();
        let opening = async move {
            past_marker(&mut stdout).await?;
            logged_in.cancel();
            Ok((stdout, stdin))
        };
        let (carrier, moving) = StreamCarrier::after(opening);
        let ended = dead.clone();
        let task = tokio::spawn(async move {
            let _end = ended.drop_guard();
            let why = moving.await;
            tracing::debug!("the SSH carrier ended: {why}");
            // Held until now: dropping it ends ssh.
            drop(child);
        });
        let carrying = SshCarrier { ready, dead, said, to: self.to_string(), _task: AbortOnDropHandle::new(task) };
        Ok((carrier, carrying))
    }

    fn start(&self, arguments: &str, login: Login) -> Result<Child, SshError> {
        let program = std::env::var("ADIT_SSH").unwrap_or_else(|_| "ssh".to_owned());
        let remote = match &self.remote_command {
            Some(command) => format!("exec {command} {arguments}"),
            None => format!(
                "for a in {PLACES}; do if command -v \"$a\" >/dev/null 2>&1; then exec \"$a\" {arguments}; fi; done; exit {NOT_FOUND}"
            ),
        };
        let mut command = Command::new(&program);
        // No terminal there, no forwarding, and the end of a dead connection within half a minute.
        command.args(["-T", "-o", "ClearAllForwardings=yes", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]);
        if login == Login::Silent {
            command.args(["-o", "BatchMode=yes"]);
        }
        if let Some(port) = self.port {
            command.args(["-p", &port.to_string()]);
        }
        command.arg("--").arg(&self.destination).arg(format!("sh -c '{remote}'"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        if login == Login::Silent {
            // It comes back by itself, in the middle of the night too: there is nobody to ask. And Ctrl-C in the terminal is for us:
            // running answers go on over this very process.
            command.process_group(0);
        }
        command.spawn().map_err(|source| SshError::NoProgram { program, source })
    }

    async fn why(&self, mut child: Child, said: Said, error: io::Error) -> SshError {
        let code = tokio::time::timeout(Duration::from_secs(5), child.wait()).await.ok().and_then(Result::ok);
        if code.and_then(|status| status.code()) == Some(NOT_FOUND) {
            return SshError::NoAditd(self.to_string());
        }
        let said = said.text().await;
        let said = if said.is_empty() { error.to_string() } else { said };
        SshError::Ended { to: self.to_string(), said }
    }
}

/// A running ssh that carries datagrams. Dropping it ends it.
#[derive(Debug)]
pub struct SshCarrier {
    ready: CancellationToken,
    dead: CancellationToken,
    said: Said,
    to: String,
    _task: AbortOnDropHandle<()>,
}

impl SshCarrier {
    /// Waits until ssh is logged in and the relay runs.
    ///
    /// # Errors
    /// If it ends before, with what it said.
    pub async fn ready(&self) -> Result<(), SshError> {
        tokio::select! {
            () = self.ready.cancelled() => Ok(()),
            () = self.dead.cancelled() => Err(SshError::Ended { to: self.to.clone(), said: self.said.text().await }),
            () = tokio::time::sleep(LOGIN_WITHIN) => Err(SshError::Silent(self.to.clone())),
        }
    }

    /// Whether it has ended.
    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }
}

/// Reads up to and with the marker, and not a byte more.
async fn past_marker(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let marker = SSH_MARKER.as_bytes();
    let mut read = Vec::new();
    // The marker may be the first that comes, without the line that would end before it.
    while !read.ends_with(marker) {
        if read.len() > NOISE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what answers there is not aditd"));
        }
        read.push(from.read_u8().await?);
    }
    Ok(())
}

/// The last lines that ssh has said.
#[derive(Debug)]
struct Said {
    lines: Arc<Mutex<Vec<String>>>,
    /// It says nothing more.
    over: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Said {
    fn listen(stderr: Option<ChildStderr>) -> Self {
        let (lines, over) = (Arc::new(Mutex::new(Vec::<String>::new())), CancellationToken::new());
        let (keep, ends) = (lines.clone(), over.clone().drop_guard());
        let task = tokio::spawn(async move {
            let _ends = ends;
            let Some(stderr) = stderr else { return };
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::debug!("ssh: {line}");
                let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push(line);
                if kept.len() > KEPT_LINES {
                    kept.remove(0);
                }
            }
        });
        Self { lines, over, _task: AbortOnDropHandle::new(task) }
    }

    /// What it said, to its end if that comes soon.
    async fn text(&self) -> String {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.over.cancelled()).await;
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n    ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_what_ssh_takes_and_never_an_option() {
        for (text, shown) in [
            ("me@gpu", "me@gpu"),
            ("ssh://gpu", "gpu"),
            ("ssh://me@gpu.lan:2222", "ssh://me@gpu.lan:2222"),
            ("ssh://me@gpu.lan/", "me@gpu.lan"),
            ("ssh://[fd00::1]:22", "ssh://fd00::1:22"),
        ] {
            assert_eq!(text.parse::<SshWay>().expect(text).to_string(), shown);
        }
        for bad in [
            "gpu",
            "",
            "ssh://",
            "-oProxyCommand=x@y",
            "ssh://-x",
            "me@-x",
            "a b@c",
            "me@gpu;rm",
            "ssh://gpu:port",
            "@gpu",
            "me@",
        ] {
            assert!(bad.parse::<SshWay>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_a_login_shell_says_is_passed_over_and_its_endless_talk_is_not() {
        let mut stream = &b"Welcome!\nLast login: now\n\nadit/1 ready\nrest"[..];
        past_marker(&mut stream).await.expect("found");
        assert_eq!(stream, b"rest");
        assert!(past_marker(&mut &vec![b'x'; 100_000][..]).await.is_err());
    }
}
