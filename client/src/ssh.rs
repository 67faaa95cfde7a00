//! SSH: enrolls a device, and carries datagrams. Uses the built-in client or, if chosen, the
//! system's ssh.

mod answer;
pub(crate) use common::machine::ask;
mod bounds;
mod builtin;
mod config;
mod error;
mod hosts;
mod keys;
mod known_hosts;
mod login;
mod pace;
mod remote;
mod session;
mod system;

use std::{
    fmt, io,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use clap::ValueEnum;
use common::transport::carrier::{OpenStream, StreamCarrier};
use keys::Keyring;
use pace::Pace;
use proto::{
    bootstrap::is_plain_path,
    doctor::Report,
    identity::Name,
    wire::{EnrollDevice, Enrolled},
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

pub(crate) use error::SshError;
pub(crate) use hosts::HostKeyError;
pub(crate) use login::LoginDenied;
pub(crate) use remote::Remote;

/// Where `aditd` is searched on the server, in this order.
const PLACES: &str = r#"aditd "$HOME/.local/bin/aditd" "$HOME/.cargo/bin/aditd" /usr/local/bin/aditd "$HOME/.local/share/adit/aditd" /usr/local/lib/adit/aditd"#;
const NOT_FOUND: u32 = 127;
/// What `adit doctor` runs on the server.
const DOCTOR: &str = "doctor --over-ssh";
/// The variable that tells `aditd relay` the port which the server had when this device enrolled.
const RELAY_PORT: &str = "ADITD_RELAY_PORT";

/// An SSH destination: `[user@]host` and a port as the user gave them, and the client to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshTarget {
    /// `user@host` or `host`, which may be an alias of the user's configuration.
    destination: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// The program on the server, if it is not in one of the usual places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remote_command: Option<String>,
    /// The client to use.
    #[serde(default, rename = "ssh_client")]
    pub(crate) client: SshClient,
    /// The client to use in this process, instead of the stored one.
    #[serde(skip)]
    pub(crate) client_now: Option<SshClient>,
    /// The directory of the server's state, if commands there could take that of another aditd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remote_state: Option<String>,
    /// The port on the server's loopback interface on which its relay listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) relay_port: Option<u16>,
    /// How slow the host has been.
    #[serde(default, skip_serializing_if = "Pace::is_usual")]
    pace: Pace,
    /// Keys and passwords that were unlocked in this process; all clones share them.
    #[serde(skip)]
    keyring: Arc<Keyring>,
}

/// What a login may do.
#[derive(Debug)]
pub(crate) struct Inspected {
    /// How the host accepted the login, for people.
    pub(crate) by: String,
    /// What aditd says is wrong there; or why it was not run.
    pub(crate) report: Result<Report, SshError>,
    /// Whether the port of the server's relay can be reached by forwarding, where it is known.
    pub(crate) forwards: Option<Result<(), SshError>>,
}

/// The client to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SshClient {
    /// adit itself
    #[default]
    Builtin,
    /// The system's `ssh`: for FIDO2 keys, Kerberos, ProxyCommand
    System,
}

impl FromStr for SshTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "write it as USER@HOST, HOST or ssh://[USER@]HOST[:PORT]";
        let rest = text.strip_prefix("ssh://").map_or(text, |rest| rest.trim_end_matches('/'));
        let (host, port) = match rest.rsplit_once(':') {
            // Text with several colons outside of brackets is an IPv6 address.
            Some((host, port))
                if !port.contains(']') && (host.ends_with(']') || !host.contains(':')) =>
            {
                (host, Some(port.parse().map_err(|_| WHY)?))
            }
            _ => (rest, None),
        };
        let destination = host.replace(['[', ']'], "");
        let plain = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | ':' | '%' | '+')
        };
        // ssh would read text that begins with a dash as an option.
        let sound = !destination.is_empty()
            && !destination.starts_with(['-', '@'])
            && !destination.ends_with('@');
        if !sound || destination.contains("@-") || !destination.chars().all(plain) {
            return Err(WHY);
        }
        Ok(Self {
            destination,
            port,
            remote_command: None,
            client: SshClient::default(),
            client_now: None,
            remote_state: None,
            relay_port: None,
            pace: Pace::default(),
            keyring: Arc::default(),
        })
    }
}

/// In the form that `adit enroll` accepts.
impl fmt::Display for SshTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, host) = match self.destination.rsplit_once('@') {
            Some((user, host)) => (format!("{user}@"), host),
            None => (String::new(), self.destination.as_str()),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match self.port {
            Some(port) => write!(f, "ssh://{user}{host}:{port}"),
            None if host.starts_with('[') => write!(f, "ssh://{user}{host}"),
            None => write!(f, "{user}{host}"),
        }
    }
}

impl SshTarget {
    /// Enrolls this device under `name` with a signing request (DER in base64).
    ///
    /// # Errors
    /// The error of ssh or of the server.
    pub(crate) async fn enroll(
        &self,
        name: &Name,
        request: &EnrollDevice,
    ) -> Result<Enrolled, SshError> {
        match self.client() {
            SshClient::Builtin => Remote::open(self).await?.enroll(self, name, request).await,
            SshClient::System => system::enroll(self, name, request).await,
        }
    }

    /// Logs in, and finds out what the login may do. Never asks a person.
    ///
    /// # Errors
    /// Why there is no login.
    pub(crate) async fn inspect(&self) -> Result<Inspected, SshError> {
        match self.client() {
            SshClient::Builtin => builtin::inspect(self).await,
            SshClient::System => system::inspect(self).await,
        }
    }

    /// Returns a carrier at once, while SSH is still logging in.
    ///
    /// # Errors
    /// None at present: [`SshCarrier::ready`] returns the error of a login that fails.
    pub(crate) fn open(&self) -> Result<(Arc<StreamCarrier>, SshCarrier), SshError> {
        let (ready, dead, failed) =
            (CancellationToken::new(), CancellationToken::new(), Arc::default());
        let (target, state) =
            (self.clone(), Opening { ready: ready.clone(), failed: Arc::clone(&failed) });
        let opening = async move {
            state.opened(match target.client() {
                SshClient::Builtin => builtin::carry(&target).await,
                SshClient::System => system::carry(&target).await,
            })
        };
        let (carrier, moving) = StreamCarrier::after(opening);
        let ended = dead.clone();
        let carrying = async move {
            let _end = ended.drop_guard();
            let why = moving.await;
            tracing::debug!("the SSH carrier ended: {why}");
        };
        let task = tokio::spawn(carrying.in_current_span());
        Ok((
            carrier,
            SshCarrier {
                ready,
                dead,
                failed,
                to: self.to_string(),
                _task: AbortOnDropHandle::new(task),
            },
        ))
    }

    /// From now on no questions are asked, because logins run in the background.
    pub(crate) fn ask_no_more(&self) {
        self.keyring.ask_no_more();
    }

    /// Whether both have the same destination and port.
    pub(crate) fn leads_to_the_same(&self, other: &Self) -> bool {
        (&self.destination, self.port) == (&other.destination, other.port)
    }

    /// Means the aditd that `known` means, if both lead to the same login: beside another aditd,
    /// commands of that login would take the state of the other one. A program that is set already
    /// stays; if it is another one than that of `known`, so does the state that it finds itself.
    pub(crate) fn at_the_aditd_of(mut self, known: &Self) -> Self {
        let command = self.remote_command.as_ref();
        let is_other = command.is_some() && command != known.remote_command.as_ref();
        if self.leads_to_the_same(known) && !is_other {
            self.remote_command.clone_from(&known.remote_command);
            self.remote_state.clone_from(&known.remote_state);
        }
        self
    }

    /// Whether this computer knows the host, from its SSH configuration or by its name.
    pub(crate) async fn is_known(&self) -> bool {
        let Ok(host) = config::of(&self.destination, self.port).await else { return true };
        let named = self.destination.rsplit_once('@').map_or(&*self.destination, |(_, host)| host);
        let configured = !host.host_name.eq_ignore_ascii_case(named)
            || !host.jumps.is_empty()
            || host.beyond.is_some();
        configured || tokio::net::lookup_host((&*host.host_name, host.port)).await.is_ok()
    }

    /// The host's name as the user gave it, up to its first dot.
    pub(crate) fn host_label(&self) -> String {
        let host = self.destination.rsplit_once('@').map_or(&*self.destination, |(_, host)| host);
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        let label = host.split('.').next().filter(|_| !is_address);
        label.unwrap_or(host).replace([':', '%'], "-")
    }

    /// Uses the keys and passwords that were unlocked for another login of this process.
    pub(crate) fn unlocked_by(&mut self, other: &Self) {
        self.keyring = other.keyring.clone();
    }

    /// The command with which a person connects to the same destination, and runs a command there.
    pub(crate) fn by_hand_with(&self, command: &str) -> String {
        format!("{} {command}", self.by_hand())
    }

    /// The form that `adit up` and `adit remove` take for a login: a word alone is the name of a server
    /// there.
    pub(crate) fn login(&self) -> String {
        let text = self.to_string();
        if text.contains(['@', '/']) { text } else { format!("ssh://{text}") }
    }

    /// The command with which a person connects to the same destination.
    pub(crate) fn by_hand(&self) -> String {
        let port = self.port.map_or_else(String::new, |port| format!(" -p {port}"));
        format!("{}{port} {}", program(), self.destination)
    }

    pub(crate) fn client(&self) -> SshClient {
        self.client_now.unwrap_or(self.client)
    }

    /// The command on the server, for people.
    fn run(&self, arguments: &str) -> String {
        format!("{} {arguments}", self.remote_command.as_deref().unwrap_or("aditd"))
    }

    /// The command line for the shell on the server, which searches for `aditd`.
    fn command(&self, arguments: &str) -> String {
        // The relay finds the server's port itself, unless this user may not read the server's
        // state.
        let port = self.relay_port.map(|port| format!("export {RELAY_PORT}={port}; "));
        let port = port.unwrap_or_default();
        let state = self.remote_state.as_deref().filter(|state| is_plain_path(state));
        let state = state.map(|state| format!("export ADITD_STATE_DIR={state}; "));
        let state = state.unwrap_or_default();
        let remote = match &self.remote_command {
            Some(command) => format!("exec {command} {arguments}"),
            None => format!(
                "for a in {PLACES}; do if command -v \"$a\" >/dev/null 2>&1; then exec \"$a\" {arguments}; fi; done; exit {NOT_FOUND}"
            ),
        };
        format!("sh -c '{port}{state}{remote}'")
    }
}

/// The system's ssh program.
fn program() -> String {
    std::env::var("ADIT_SSH").unwrap_or_else(|_| "ssh".to_owned())
}

/// Both directions of an open carrier. They own the connections below them.
type Halves = OpenStream<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>;

/// Tells the result of opening a carrier.
struct Opening {
    ready: CancellationToken,
    failed: Arc<Mutex<Option<SshError>>>,
}

impl Opening {
    fn opened<T>(&self, result: Result<T, SshError>) -> io::Result<T> {
        match result {
            Ok(opened) => {
                self.ready.cancel();
                Ok(opened)
            }
            Err(e) => {
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e.clone());
                Err(io::Error::other(e))
            }
        }
    }
}

/// A running SSH connection that carries datagrams. Dropping it ends it.
#[derive(Debug)]
pub struct SshCarrier {
    ready: CancellationToken,
    dead: CancellationToken,
    failed: Arc<Mutex<Option<SshError>>>,
    to: String,
    _task: AbortOnDropHandle<()>,
}

impl SshCarrier {
    /// Waits until SSH is logged in and the relay runs.
    ///
    /// # Errors
    /// If it ends before that, with its error.
    pub(crate) async fn ready(&self) -> Result<(), SshError> {
        tokio::select! {
            () = self.ready.cancelled() => Ok(()),
            () = self.dead.cancelled() => {
                let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(failed.unwrap_or_else(|| SshError::Ended { to: self.to.clone(), said: String::new() }))
            }
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
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
            ("me@gpu:2222", "ssh://me@gpu:2222"),
            ("gpu", "gpu"),
            ("ssh://[fd00::1]:22", "ssh://[fd00::1]:22"),
            ("ssh://[fd00::1]", "ssh://[fd00::1]"),
            ("me@fd00::1", "ssh://me@[fd00::1]"),
        ] {
            let target = text.parse::<SshTarget>().expect(text);
            assert_eq!(target.to_string(), shown);
            assert_eq!(target.to_string().parse(), Ok(target), "adit takes what it shows");
        }
        let by_hand = |text: &str| text.parse::<SshTarget>().expect(text).by_hand();
        assert!(
            by_hand("me@gpu:2222").ends_with(" -p 2222 me@gpu")
                && by_hand("ssh://gpu").ends_with("ssh gpu")
        );
        for bad in [
            "",
            "me@gpu:port",
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
            assert!(bad.parse::<SshTarget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_enrollment_again_means_the_aditd_that_is_known_unless_another_one_is_named() {
        let of = |destination: &str, command: Option<&str>| SshTarget {
            remote_command: command.map(ToOwned::to_owned),
            ..destination.parse().expect("a destination")
        };
        let own = Some("/home/me/.local/share/adit/aditd");
        let known =
            SshTarget { remote_state: Some("/home/me/state".to_owned()), ..of("me@gpu", own) };
        for (destination, command, is_known) in [
            ("me@gpu", None, true),
            ("me@gpu", own, true),
            ("me@gpu", Some("/usr/bin/aditd"), false),
            ("me@gpu:2222", None, false),
            ("you@gpu", None, false),
        ] {
            let again = of(destination, command).at_the_aditd_of(&known);
            let (command, state) = match is_known {
                true => (own, known.remote_state.as_deref()),
                false => (command, None),
            };
            assert_eq!(
                (again.remote_command.as_deref(), again.remote_state.as_deref()),
                (command, state),
                "{destination}"
            );
            assert_eq!(again.destination, of(destination, None).destination);
        }
    }
}
