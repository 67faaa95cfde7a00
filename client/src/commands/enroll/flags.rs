//! The command line of `adit enroll`, which must not contain a code.

use std::{fmt, path::PathBuf};

use clap::{Args, ValueEnum};
use common::machine::report::{Exit, Failure};
use proto::{
    device_key::{KeyUri, UriError},
    identity::Name,
    invitation::PREFIX,
};

use crate::{
    profile::DEFAULT_NAME,
    settings::SshFlag,
    ssh::{SshClient, SshTarget},
};

/// The longest word that may be a host's alias. A longer word may be part of a secret.
const SHORTEST_SECRET: usize = 24;

/// Flags of `enroll`.
#[derive(Debug, Args)]
pub(crate) struct Enroll {
    /// Enroll over SSH, without a code: USER@HOST, a host of ~/.ssh/config, or ssh://[USER@]HOST[:PORT]
    #[arg(value_name = "USER@HOST")]
    server: Option<PossibleCode>,
    /// More words, taken so that clap does not print them: a code that was split into words
    #[arg(hide = true, requires = "server")]
    more: Vec<PossibleCode>,
    /// Read the code from FILE instead of the terminal or standard input
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    pub(super) code_file: Option<PathBuf>,
    /// Store this enrollment under NAME, for `adit up NAME`
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    pub(super) name: Name,
    /// Call this device NAME on the server [default: this computer's name]
    #[arg(long, value_name = "NAME")]
    pub(super) device: Option<Name>,
    /// Run this program as aditd on the server [default: the first one found]
    #[arg(long, value_name = "PATH", value_parser = remote_command)]
    pub(super) remote_command: Option<String>,
    /// Which SSH client is used.
    #[command(flatten)]
    pub(super) ssh: SshFlag,
    /// Sign in at the company's provider: with a code from `aditd invite --sso`, or again on a device
    /// that has signed in before
    #[arg(long, conflicts_with = "server")]
    pub(super) sso: bool,
    /// Ask for a code, also if this device has kept one from an earlier sign-in
    #[arg(long, requires = "sso", conflicts_with = "code_file")]
    pub(super) new_code: bool,
    /// Only show the page for signing in; do not open a browser
    #[arg(long, conflicts_with = "server")]
    pub(super) no_browser: bool,
    /// Make and keep this device's key there: file, tpm (of this computer), or a PKCS#11 URI, such as
    /// pkcs11:token=LABEL?pin-source=file:/PATH [default: a file, or where the key is that is replaced]
    #[arg(long, value_name = "PLACE")]
    key: Option<KeyPlace>,
    /// Replace the enrollment with the same name; stop its `adit up` first
    #[arg(long)]
    pub(super) replace: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Where the key is to be. The text itself is not kept, because it may contain a PIN by mistake, and clap
/// shows what it refuses.
#[derive(Debug, Clone)]
struct KeyPlace(Result<KeyUri, UriError>);

impl From<String> for KeyPlace {
    fn from(text: String) -> Self {
        Self(text.parse())
    }
}

/// The command is run by a shell, so it may only contain characters of paths and words.
fn remote_command(text: &str) -> Result<String, &'static str> {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '~' | ' ' | '=');
    if !text.is_empty() && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("write it as a plain path")
    }
}

/// A word of the command line that may be a code by mistake, so it is never shown.
#[derive(Clone)]
struct PossibleCode(String);

impl From<String> for PossibleCode {
    fn from(word: String) -> Self {
        Self(word)
    }
}

impl fmt::Debug for PossibleCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Word(…)")
    }
}

impl Enroll {
    /// The server that is named, if one is. Otherwise the device enrolls by a code, and flags for
    /// SSH are refused.
    pub(super) async fn server(&self) -> Result<Option<SshTarget>, Failure> {
        let Some(PossibleCode(word)) = &self.server else {
            return match self.flag_of_ssh() {
                Some((flag, hint)) => {
                    let what = format!(
                        "`{flag}` is for enrolling over SSH, but without USER@HOST this device enrolls by code"
                    );
                    Err(Failure::new(what).hint(hint).exit(Exit::Usage))
                }
                None => Ok(None),
            };
        };
        if looks_like_a_code(word) {
            return Err(code_on_the_command_line());
        }
        match word.parse::<SshTarget>() {
            Ok(target) if self.more.is_empty() => {
                // A single word may be part of a secret or a misspelt command. It is not sent to a
                // resolver unless it looks like a host name.
                let alone = !word.contains(['@', ':', '.']);
                if alone && (word.len() > SHORTEST_SECRET || !target.is_known().await) {
                    return Err(Failure::new("this is not a host for enrolling over SSH")
                        .source("neither the SSH configuration of this computer nor the network knows it")
                        .hint("write USER@HOST, or the name of a `Host` in ~/.ssh/config")
                        .hint("to enroll by code: run `adit enroll` alone, and paste the code when it asks")
                        .exit(Exit::Usage));
                }
                Ok(Some(target))
            }
            Ok(_) => Err(Failure::new("more than one server is named")
                .hint("name one server: `adit enroll USER@HOST`")
                .hint("to enroll by code: run `adit enroll` alone, and paste the code when it asks")
                .exit(Exit::Usage)),
            Err(why) => Err(Failure::new("this is not a server for enrolling over SSH")
                .source(why)
                .hint("to enroll by code: run `adit enroll` alone, and paste the code when it asks")
                .exit(Exit::Usage)),
        }
    }

    /// Where the key is to be, if that was said.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn key_place(&self) -> Result<Option<KeyUri>, Failure> {
        let Some(KeyPlace(place)) = &self.key else { return Ok(None) };
        match place {
            Ok(place) => Ok(Some(place.clone())),
            Err(why) => Err(Failure::new("the value of `--key` is wrong")
                .source(why.clone())
                .hint("write for example `--key 'pkcs11:token=LABEL?module-path=/PATH&pin-source=file:/PATH'`, `--key tpm` or `--key file`")
                .exit(Exit::Usage)),
        }
    }

    /// The failure that this device was given a name, if the code has one for it.
    pub(super) fn refuse_device_name(&self) -> Result<(), Failure> {
        if self.device.is_none() {
            return Ok(());
        }
        let what = "`--device` is for enrolling over SSH and for signing in, but this code has a name for the device";
        Err(Failure::new(what)
            .hint("leave it out: a device that enrolls by such a code gets the name from `aditd invite NAME` on the server")
            .exit(Exit::Usage))
    }

    fn flag_of_ssh(&self) -> Option<(&'static str, &'static str)> {
        // The environment variable may be set for other commands.
        let named = std::env::var("ADIT_SSH_CLIENT")
            .ok()
            .and_then(|name| SshClient::from_str(&name, true).ok());
        if self.remote_command.is_some() {
            Some(("--remote-command", "leave it out, or name the server: `adit enroll USER@HOST`"))
        } else if self.ssh.ssh_client.is_some() && self.ssh.ssh_client != named {
            Some(("--ssh-client", "leave it out, or name the server: `adit enroll USER@HOST`"))
        } else {
            None
        }
    }
}

/// Whether a word may be a code, part of one, or one with a typing error.
pub(super) fn looks_like_a_code(word: &str) -> bool {
    let word = word.trim().to_ascii_lowercase();
    word.starts_with(PREFIX)
        && word.len() > SHORTEST_SECRET
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c.is_whitespace())
}

/// The failure that a code was given instead of a server or a file.
pub(super) fn code_on_the_command_line() -> Failure {
    Failure::new("do not pass the code as an argument: other users can see it")
        .hint("run `adit enroll` alone, and paste the code when it asks; or give it a file: `adit enroll --code-file FILE`")
        .exit(Exit::Usage)
}
