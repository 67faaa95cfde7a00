//! `adit env`: prints the variables that a shell has to export so that its programs use the tunnel.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use common::machine::{
    control, json,
    report::{Exit, Failure, data},
};
use proto::identity::Name;
use serde::Serialize;

use crate::{
    commands::{
        run::environment::{self, Interfaces},
        status::{ControlRequest, Status},
    },
    profile::ProfileDir,
};

/// Flags of `env`.
#[derive(Debug, Args)]
pub(crate) struct Env {
    /// Use the server with this name [default: the only server, or the one called `default`]
    pub(crate) name: Option<Name>,
    /// Use this service of the server instead of Ollama
    #[arg(long, value_name = "SERVICE")]
    service: Option<Name>,
    #[command(flatten)]
    interfaces: Interfaces,
    /// Write it for this shell [default: the one that SHELL names]
    #[arg(long, value_enum)]
    shell: Option<Shell>,
    /// Print JSON
    #[arg(long, conflicts_with = "shell")]
    json: bool,
}

/// The variables, by name.
#[derive(Serialize)]
struct Variables<'a> {
    variables: BTreeMap<&'a str, &'a str>,
}

/// The shells, which export variables in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// sh, bash, zsh and others of their kind.
    Sh,
    /// fish.
    Fish,
    /// csh and tcsh.
    Csh,
}

impl Shell {
    /// The one at this path.
    fn at(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("fish") => Self::Fish,
            Some("csh" | "tcsh") => Self::Csh,
            _ => Self::Sh,
        }
    }

    /// The line that exports a variable. Our own values contain no quotes, but a value of the user
    /// may.
    fn export(self, name: &str, value: &str) -> String {
        let quoted = match self {
            Self::Fish => value.replace('\\', "\\\\").replace('\'', "\\'"),
            Self::Sh => value.replace('\'', "'\\''"),
            Self::Csh => value.replace('\'', "'\\''").replace('!', "\\!"),
        };
        match self {
            Self::Sh => format!("export {name}='{quoted}'"),
            Self::Fish => format!("set -gx {name} '{quoted}';"),
            Self::Csh => format!("setenv {name} '{quoted}';"),
        }
    }

    fn how_to_use(self, command: &str) -> String {
        match self {
            Self::Sh => format!("# to use it: eval \"$({command})\""),
            Self::Fish => format!("# to use it: {command} | source"),
            Self::Csh => format!("# to use it: eval `{command}`"),
        }
    }
}

/// Prints the exports for the running tunnel.
///
/// # Errors
/// If none runs.
pub(crate) async fn run(profile_dir: &ProfileDir, env: &Env) -> Result<(), Failure> {
    let status: Option<Status> = control::ask(&profile_dir.dir, &ControlRequest::Status).await?;
    let (address, speaks) = match (&env.service, status) {
        (Some(wanted), Some(status)) => {
            let (address, speaks) = of_service(status, wanted, profile_dir)?;
            (Some(address), Some(speaks))
        }
        (_, status) => (status.and_then(|status| status.listening.into_iter().next()), None),
    };
    let Some(address) = address else {
        return Err(Failure::new("no `adit up` is running, so there is no address to export")
            .hint(format!("start it: `adit up{}`", profile_dir.argument()))
            .hint("or give one program a tunnel of its own: `adit run -- COMMAND`"));
    };
    let shell = env.shell.unwrap_or_else(|| Shell::at(&std::env::var("SHELL").unwrap_or_default()));
    let variables = env.interfaces.variables(&address, speaks.as_deref());
    let around = environment::around_proxies(|name| std::env::var(name).ok());
    let exports = variables.iter().chain(&around);
    if env.json {
        let variables = exports.map(|(name, value)| (*name, value.as_str())).collect();
        return json::answer(Variables { variables });
    }
    let mut lines: Vec<String> = exports.map(|(name, value)| shell.export(name, value)).collect();
    lines.push(shell.how_to_use(&command(profile_dir, env)));
    data(lines.join("\n"))
}

/// The address of a service besides Ollama, and what it speaks.
fn of_service(
    status: Status,
    wanted: &Name,
    profile_dir: &ProfileDir,
) -> Result<(String, String), Failure> {
    let names: Vec<_> = status.services.iter().map(|it| format!("`{}`", it.name)).collect();
    let found = status.services.into_iter().find(|it| it.name == *wanted);
    let Some((kind, listening)) = found.and_then(|it| Some((it.kind?, it.listening))) else {
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Failure::new(format!("the server has no service `{wanted}` for this device"))
            .source(format!("besides Ollama it has: {names}"))
            .exit(Exit::Usage));
    };
    let address = listening.into_iter().find(|address| !address.starts_with("unix:"));
    let address = address.ok_or_else(|| {
        Failure::new(format!("the running `adit up` does not serve `{wanted}`"))
            .hint(format!(
                "start it so: `adit up{} --service {wanted}=localhost:8000`",
                profile_dir.argument()
            ))
            .hint(format!("or give one program a port: `adit run --service {wanted} -- COMMAND`"))
    })?;
    Ok((address, kind))
}

/// The same command again.
fn command(profile_dir: &ProfileDir, env: &Env) -> String {
    let openai = if env.interfaces.openai { " --openai" } else { "" };
    let anthropic = if env.interfaces.anthropic { " --anthropic" } else { "" };
    let service =
        env.service.as_ref().map(|service| format!(" --service {service}")).unwrap_or_default();
    format!("adit env{}{service}{openai}{anthropic}", profile_dir.argument())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_is_told_in_its_own_words() {
        for (path, says) in [
            ("/bin/bash", "export A='b'"),
            ("", "export A='b'"),
            ("/usr/bin/fish", "set -gx A 'b';"),
            ("/bin/tcsh", "setenv A 'b';"),
        ] {
            assert_eq!(Shell::at(path).export("A", "b"), says);
        }
        assert_eq!(Shell::Sh.export("A", "it's"), "export A='it'\\''s'");
        assert_eq!(Shell::Fish.export("A", "it's"), "set -gx A 'it\\'s';");
    }
}
