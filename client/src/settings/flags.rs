//! The settings that flags and environment variables can set.

use std::{collections::HashMap, time::Duration};

use clap::{ArgMatches, Args, builder::FalseyValueParser, parser::ValueSource};
use common::machine::process::{parse_idle_timeout, parse_time};
use ipnet::IpNet;

use super::{ServiceListen, Source};
use crate::{dial::route::CarrierChoice, local::listener::ListenAddr, ssh::SshClient};

/// Flags of the commands that open a tunnel. None has a default here: it would hide the file.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SettingFlags {
    /// Listen on this address; may be given more than once. `docker` is the address at which
    /// containers of this computer find it. One that is not loopback needs --allow-from.
    /// `unix:/PATH` is a Unix socket for this user, `unix:/PATH:GROUP` for a group, too [default:
    /// localhost:11434, IPv4 and IPv6]
    #[arg(long, value_name = "ADDR", env = "ADIT_LISTEN", value_delimiter = ',')]
    pub(super) listen: Vec<ListenAddr>,
    /// Serve another service of the server at this address, for example vllm=localhost:8000; may be
    /// given more than once
    #[arg(long = "service", value_name = "NAME=ADDR", env = "ADIT_SERVICE", value_delimiter = ',')]
    pub(super) services: Vec<ServiceListen>,
    /// Let this network use the tunnel at addresses that are not loopback, without a certificate; may
    /// be given more than once [default: no network]
    #[arg(long, value_name = "CIDR", env = "ADIT_ALLOW_FROM", value_delimiter = ',')]
    pub(super) allow_from: Vec<IpNet>,
    /// Let every user of this computer use the tunnel, not only root and the user who runs adit. On
    /// systems other than Linux, every user can use it anyway
    #[arg(long, env = "ADIT_ANY_USER", value_parser = FalseyValueParser::new())]
    pub(super) any_user: bool,
    /// Let a connection wait this long for the tunnel, then answer 503 [default: 30s]
    #[arg(long, value_name = "TIME", env = "ADIT_HOLD", value_parser = parse_time)]
    pub(super) hold: Option<Duration>,
    /// When adit is stopped, let running answers go on for this long [default: 30s]
    #[arg(long, value_name = "TIME", env = "ADIT_DRAIN", value_parser = parse_time)]
    pub(super) drain: Option<Duration>,
    /// Choose what carries the tunnel [default: auto]
    #[arg(long, value_enum, env = "ADIT_CARRIER")]
    pub(super) carrier: Option<CarrierChoice>,
    /// Keep the session and its running answers through an outage of this length (the server may
    /// allow less) [default: 30m]
    #[arg(long, value_name = "TIME", env = "ADIT_IDLE_TIMEOUT", value_parser = parse_idle_timeout)]
    pub(super) idle_timeout: Option<Duration>,
    /// Which SSH client is used.
    #[command(flatten)]
    pub(crate) ssh: SshFlag,
}

/// Which SSH client is used.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct SshFlag {
    /// Use this SSH client: builtin or system [default: the one used for enrolling, or else builtin]
    #[arg(
        long,
        value_name = "CLIENT",
        value_enum,
        env = "ADIT_SSH_CLIENT",
        hide_possible_values = true
    )]
    pub(crate) ssh_client: Option<SshClient>,
}

/// Which settings the command line and the environment set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Named(HashMap<String, Source>);

impl Named {
    /// Those of a command line, with those of its subcommand.
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let mut all = Self::of_one(matches);
        if let Some((_, subcommand)) = matches.subcommand() {
            all.0.extend(Self::of_one(subcommand).0);
        }
        all
    }

    fn of_one(matches: &ArgMatches) -> Self {
        let source = |id: &str| match matches.value_source(id)? {
            ValueSource::CommandLine => Some(Source::Flag),
            ValueSource::EnvVariable => Some(Source::Environment),
            _ => None,
        };
        let named = matches.ids().map(|id| id.as_str());
        Self(named.filter_map(|id| Some((id.to_owned(), source(id)?))).collect())
    }

    /// Which of the two sets it, if one does.
    pub(crate) fn source(&self, id: &str) -> Option<Source> {
        self.0.get(id).copied()
    }
}

#[cfg(test)]
impl FromIterator<(&'static str, Source)> for Named {
    fn from_iter<I: IntoIterator<Item = (&'static str, Source)>>(named: I) -> Self {
        Self(named.into_iter().map(|(id, source)| (id.to_owned(), source)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 9] = [
        "listen",
        "allow_from",
        "any_user",
        "hold",
        "drain",
        "carrier",
        "idle_timeout",
        "ssh_client",
        "services",
    ];

    /// A flag that is not given must not hide the file.
    #[test]
    fn what_is_named_is_what_was_typed_and_not_what_clap_fills_in() {
        let named = |args: &[&str]| {
            // Without the variables of whoever runs the tests.
            let command = SettingFlags::augment_args(clap::Command::new("up"));
            let command = command.mut_args(|arg| arg.env(None::<&str>));
            let named = Named::of(&command.get_matches_from(args));
            ALL.map(|id| named.source(id))
        };
        assert_eq!(named(&["up"]), [None; 9]);
        let all = named(&[
            "up",
            "--listen=[::1]:1",
            "--allow-from=10.0.0.0/8",
            "--any-user",
            "--hold=1s",
            "--drain=1s",
            "--carrier=udp",
            "--idle-timeout=1h",
            "--ssh-client=system",
            "--service=vllm=localhost:8000",
        ]);
        assert_eq!(all, [Some(Source::Flag); 9]);
    }
}
