//! The errors of a connection over SSH, and their cures.

use std::{io, sync::Arc};

use common::machine::report::Failure;

use super::{HostKeyError, LoginDenied, NOT_FOUND, SshTarget, pace::Silence};

/// Why an operation over SSH failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SshError {
    /// There is no ssh on this computer.
    #[error("cannot run `{program}`")]
    NoProgram {
        /// What was tried.
        program: String,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// `ssh -G` failed, so the configuration is unknown.
    #[error("cannot read the SSH configuration: `{program} -G` failed: {said}")]
    Config {
        /// What was run.
        program: String,
        /// What it said.
        said: String,
    },
    /// There is no `aditd` on the server.
    #[error("there is no aditd on {0}")]
    NoAditd(String),
    /// The key is restricted to the relay.
    #[error("the SSH key that {0} accepts may only run `aditd relay`")]
    OnlyRelays(String),
    /// aditd was run, and refused.
    #[error("{to} says: {}", all_of(failure))]
    Refused {
        /// Where.
        to: String,
        /// What it said.
        failure: Failure,
    },
    /// Nothing listens where the server's relay was when this device enrolled.
    #[error("aditd is not running on {to}: nothing listens on its port {port}")]
    NotRunning {
        /// Where.
        to: String,
        /// The port of its loopback.
        port: u16,
    },
    /// The command ended without an answer of aditd.
    #[error(
        "`{run}` on {to} ended without an answer of aditd{}; it printed {}",
        code.map_or_else(String::new, |code| format!(" (exit code {code})")),
        if said.is_empty() { "nothing".to_owned() } else { format!("on standard error: {}", indented(said)) }
    )]
    NoAnswer {
        /// Where.
        to: String,
        /// What was asked for.
        run: String,
        /// Its exit code.
        code: Option<u32>,
        /// What it said.
        said: String,
    },
    /// The login has run no shell.
    #[error(
        "the login at {to} runs no shell: `sh -s` ended without an answer{}; it printed {}",
        code.map_or_else(String::new, |code| format!(" (exit code {code})")),
        if said.is_empty() { "nothing".to_owned() } else { indented(said) }
    )]
    NoShell {
        /// Where.
        to: String,
        /// The exit code.
        code: Option<u32>,
        /// What it printed.
        said: String,
    },
    /// ssh itself ended.
    #[error("ssh to {to} ended{}", if .said.is_empty() { String::new() } else { format!(": {}", indented(said)) })]
    Ended {
        /// Where to.
        to: String,
        /// What it said.
        said: String,
    },
    /// The connection could not be made, or was lost.
    #[error("no SSH connection to {to}: {why}")]
    Broken {
        /// Where to.
        to: String,
        /// Why not.
        why: String,
    },
    /// The host was silent for too long.
    #[error("no SSH connection to {}: {}", .0.host, .0)]
    Silent(Silence),
    /// The host's key is wrong or unknown.
    #[error(transparent)]
    HostKey(HostKeyError),
    /// The host does not let this computer in.
    #[error("{0}")]
    Denied(LoginDenied),
    /// The built-in client does not support it.
    #[error("the built-in SSH client does not support this: {what}")]
    Beyond { what: String },
}

impl SshError {
    /// How to cure it, for the connection `way`.
    pub(crate) fn hint(&self, target: &SshTarget) -> String {
        match self {
            Self::NoProgram { .. } => "install OpenSSH's client, or set ADIT_SSH to another program".to_owned(),
            Self::Config { .. } => "correct ~/.ssh/config, or set ADIT_SSH to another program".to_owned(),
            Self::NoAditd(_) => {
                format!(
                    "put it there from here: `adit up {login}` (after `adit remove {login}`, if this device is enrolled there already); if it is in another place: `adit enroll {target} --remote-command /path/to/aditd`",
                    login = target.login()
                )
            }
            Self::OnlyRelays(_) => {
                "enroll with a key that may run `aditd enroll-device` (or with a code from `aditd invite NAME`, if the server is reachable \
                 by UDP), and restrict the key afterwards"
                    .to_owned()
            }
            Self::Refused { failure, .. } if failure.hints().is_empty() => {
                format!("look at aditd there: `{} aditd status`", target.by_hand())
            }
            Self::Refused { failure, .. } => failure.hints().join("; "),
            Self::NotRunning { .. } => {
                "start it there: `aditd serve`, or `sudo systemctl start aditd` if it is a service".to_owned()
            }
            Self::NoAnswer { run, .. } => {
                let needed = match run.split_once(" enroll-device ") {
                    Some((aditd, _)) => format!("enrolling needs a key that may run `{aditd} enroll-device`: restrict it afterwards"),
                    None => format!("the tunnel needs a key that may run `{run}`, or forward to the server's loopback port"),
                };
                format!("check on the server whether `command=` in authorized_keys or the login shell runs something else; {needed}")
            }
            Self::NoShell { to, .. } => format!(
                "use a login with a shell (`command=` in authorized_keys may run something else); or, if aditd runs there, enroll alone: `adit enroll {to}`"
            ),
            Self::Ended { .. } | Self::Silent(_) | Self::Broken { .. } => {
                format!("run the same connection by hand: `{}`", target.by_hand())
            }
            Self::HostKey(e) => e.hint(&target.by_hand()),
            Self::Denied(denied) => denied.hint(),
            Self::Beyond { .. } => "use the system's ssh: `--ssh-client system`".to_owned(),
        }
    }

    /// Whether aditd has answered, and is too old to know the command `doctor`.
    pub(crate) fn knows_no_doctor(&self) -> bool {
        matches!(self, Self::Refused { failure, .. } if failure.what().contains("unrecognized subcommand"))
    }

    /// The error for a command that ended without an answer.
    pub(super) fn of_command(
        target: &SshTarget,
        arguments: &str,
        code: Option<u32>,
        said: &str,
    ) -> Self {
        let to = target.to_string();
        if code == Some(NOT_FOUND) {
            return Self::NoAditd(to);
        }
        // An aditd before 0.2 prints its failure only on standard error: the error comes last, with
        // its hints after it.
        let begins_a_line = |at: usize| at == 0 || said[..at].ends_with('\n');
        match said.rmatch_indices("error: ").find(|(at, _)| begins_a_line(*at)) {
            Some((at, prefix)) => {
                Self::Refused { to, failure: failure_in(&said[at + prefix.len()..]) }
            }
            None => Self::NoAnswer { to, run: target.run(arguments), code, said: said.to_owned() },
        }
    }
}

/// Reads a failure from its text for people.
fn failure_in(text: &str) -> Failure {
    let (error, hints) = text.split_once("\n\nhint: ").unwrap_or((text, ""));
    let (what, causes) = error.split_once("\n  Caused by: ").unwrap_or((error, ""));
    let mut failure = Failure::new(what);
    if !causes.is_empty() {
        failure = failure.source(causes.replace("\n  Caused by: ", ": "));
    }
    hints.lines().fold(failure, |failure, hint| failure.hint(hint.trim()))
}

/// What failed and why, in one line.
fn all_of(failure: &Failure) -> String {
    let causes = failure.causes().iter().map(String::as_str);
    std::iter::once(failure.what()).chain(causes).collect::<Vec<_>>().join(": ")
}

/// Text of another program, indented below our own.
fn indented(said: &str) -> String {
    said.replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_of_a_missing_aditd_names_a_login_and_no_server() {
        for (target, login) in
            [("gpu", "ssh://gpu"), ("me@gpu", "me@gpu"), ("ssh://gpu:2222", "ssh://gpu:2222")]
        {
            let target: SshTarget = target.parse().expect("a way");
            let hint = SshError::NoAditd(target.to_string()).hint(&target);
            assert!(hint.contains(&format!("`adit up {login}`")), "{hint}");
            assert!(hint.contains(&format!("`adit remove {login}`")), "{hint}");
            assert!(hint.contains(&format!("`adit enroll {target} --remote")), "{hint}");
        }
    }

    #[test]
    fn what_aditd_says_is_told_from_what_something_else_says() {
        let target: SshTarget = "me@gpu".parse().expect("a way");
        let said =
            "INFO error: none\nerror: no room\n  Caused by: a crowd\n\nhint: wait\n      or go";
        let SshError::Refused { failure, .. } =
            SshError::of_command(&target, "relay", Some(1), said)
        else {
            panic!("it is aditd's")
        };
        assert_eq!(failure, Failure::new("no room").source("a crowd").hint("wait").hint("or go"));
        assert!(matches!(
            SshError::of_command(&target, "relay", Some(NOT_FOUND), ""),
            SshError::NoAditd(_)
        ));
        let other = SshError::of_command(&target, "relay", Some(2), "terminal\nerror").to_string();
        assert!(
            other.contains("`aditd relay`")
                && other.contains("exit code 2")
                && other.contains("terminal\n    error"),
            "{other}"
        );
    }
}
