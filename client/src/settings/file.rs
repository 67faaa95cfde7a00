//! The file of the settings: where it is, and what it may contain.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use common::machine::{
    config_text::{ConfigText, WithUnit, WrittenPath, nearest},
    process::{parse_idle_timeout, parse_time},
    report::Failure,
};
use proto::{identity::Name, wire::DEFAULT_SERVICE};
use serde::{Deserialize, Deserializer, de};

use ipnet::IpNet;

use super::ServiceListen;
use crate::{dial::route::CarrierChoice, local::listener::ListenAddr, ssh::SshClient};

/// The content of the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettingsFile {
    /// The state directory.
    pub(crate) state_dir: Option<PathBuf>,
    /// The settings of all servers.
    pub(super) of_all: Table,
    /// Those of single servers, which come before.
    pub(super) servers: BTreeMap<Name, Table>,
}

/// The settings of a tunnel in one table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) listen: Option<Vec<ListenAddr>>,
    pub(super) allow_from: Option<Vec<IpNet>>,
    pub(super) any_user: Option<bool>,
    #[serde(default, deserialize_with = "time")]
    pub(super) hold: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    pub(super) drain: Option<Duration>,
    pub(super) carrier: Option<CarrierChoice>,
    #[serde(default, deserialize_with = "idle_timeout")]
    pub(super) idle_timeout: Option<Duration>,
    pub(super) ssh_client: Option<SshClient>,
    #[serde(default, deserialize_with = "services")]
    pub(super) services: Option<BTreeMap<Name, ListenAddr>>,
}

/// The file as it is written. It repeats [`Table`], because serde cannot both flatten a table and
/// refuse unknown settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    state_dir: Option<WrittenPath>,
    listen: Option<Vec<ListenAddr>>,
    allow_from: Option<Vec<IpNet>>,
    any_user: Option<bool>,
    #[serde(default, deserialize_with = "time")]
    hold: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    drain: Option<Duration>,
    carrier: Option<CarrierChoice>,
    #[serde(default, deserialize_with = "idle_timeout")]
    idle_timeout: Option<Duration>,
    ssh_client: Option<SshClient>,
    #[serde(default, deserialize_with = "services")]
    services: Option<BTreeMap<Name, ListenAddr>>,
    #[serde(default)]
    servers: BTreeMap<Name, Table>,
}

impl SettingsFile {
    /// Reads the file `named`, or else the usual one, which need not exist.
    ///
    /// # Errors
    /// Exit code 2 if it cannot be read, or its content is wrong.
    pub(crate) fn read(named: Option<&Path>) -> Result<Self, Failure> {
        let usual = default_path();
        let from = match (named, &usual) {
            (Some(path), _) => Some(ConfigText::read(path)?),
            (None, Some(path)) => ConfigText::read_if_there(path)?,
            (None, None) => None,
        };
        let beside = named.or(usual.as_deref()).and_then(Path::parent).unwrap_or(Path::new("/"));
        from.map_or_else(|| Ok(Self::default()), |from| Self::of(&from, beside))
    }

    /// Like [`SettingsFile::read`], for commands that need the state directory alone: if the file is
    /// wrong, that is taken from it, and the failure is returned beside it.
    ///
    /// # Errors
    /// Exit code 2 if the file cannot be read.
    pub(crate) fn read_state_dir(named: Option<&Path>) -> Result<(Self, Option<Failure>), Failure> {
        let wrong = match Self::read(named) {
            Ok(file) => return Ok((file, None)),
            Err(wrong) => wrong,
        };
        let Some(path) = named.map(Path::to_path_buf).or_else(default_path) else {
            return Err(wrong);
        };
        let written = ConfigText::read(&path)?.text_at("state_dir");
        let beside = path.parent().unwrap_or(Path::new("/"));
        let state_dir = written.map(|(written, _)| beside.join(written));
        Ok((Self { state_dir, ..Self::default() }, Some(wrong)))
    }

    /// The content of `from`; a relative path in it begins at the directory `beside`.
    ///
    /// # Errors
    /// Exit code 2 if it is wrong.
    pub(super) fn of(from: &ConfigText, beside: &Path) -> Result<Self, Failure> {
        let Written {
            state_dir,
            listen,
            allow_from,
            any_user,
            hold,
            drain,
            carrier,
            idle_timeout,
            ssh_client,
            services,
            servers,
        } = from.parse()?;
        let of_all = Table {
            listen,
            allow_from,
            any_user,
            hold,
            drain,
            carrier,
            idle_timeout,
            ssh_client,
            services,
        };
        Ok(Self { state_dir: state_dir.map(|dir| dir.resolve_in(beside)), of_all, servers })
    }

    /// The servers that have a table but are not `known`, each with the known name that was most
    /// likely meant.
    pub(crate) fn unknown<'a>(&'a self, known: &'a [Name]) -> Vec<(&'a Name, Option<&'a str>)> {
        let unknown = self.servers.keys().filter(|name| !known.contains(name));
        unknown.map(|name| (name, nearest(name.as_str(), known.iter().map(Name::as_str)))).collect()
    }

    /// The addresses in a server's own table.
    pub(crate) fn listen(&self, server: &Name) -> Option<Vec<ListenAddr>> {
        self.servers.get(server)?.listen.clone()
    }

    /// The services in a server's own table.
    pub(crate) fn services(&self, server: &Name) -> Vec<ServiceListen> {
        let own = self.servers.get(server).and_then(|table| table.services.clone());
        own.map(ServiceListen::of_table).unwrap_or_default()
    }

    /// Whether a server has a table of its own.
    pub(crate) fn has_table(&self, server: &Name) -> bool {
        self.servers.contains_key(server)
    }
}

/// The usual path of the file: `~/.config/adit/adit.toml` on Linux.
pub(crate) fn default_path() -> Option<PathBuf> {
    let dirs = directories::ProjectDirs::from("", "", "adit")?;
    Some(dirs.config_dir().join("adit.toml"))
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    value(WithUnit::<'s'>::deserialize(from)?.0, "a length of time", parse_time)
}

fn idle_timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    value(WithUnit::<'s'>::deserialize(from)?.0, "a valid idle time-out", parse_idle_timeout)
}

/// `ollama` is always served, at `listen`.
fn services<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<Name, ListenAddr>>, D::Error> {
    let table = BTreeMap::<Name, ListenAddr>::deserialize(from)?;
    match table.keys().find(|name| name.as_str() == DEFAULT_SERVICE) {
        Some(name) => Err(de::Error::custom(format!(
            "`{name}` is always served: choose its address with `listen`"
        ))),
        None => Ok(Some(table)),
    }
}

fn value<T, E: de::Error>(
    text: String,
    what: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, E> {
    parse(&text).map(Some).map_err(|why| E::custom(format!("`{text}` is not {what}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<SettingsFile, Failure> {
        let from = ConfigText::new(Path::new("/home/me/adit.toml"), text.to_owned());
        SettingsFile::of(&from, Path::new("/home/me"))
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, why) in [
            ("hol = \"1s\"", 1, "did you mean `hold`?"),
            ("\n\nlissten = []", 3, "did you mean `listen`?"),
            ("[servers.lab]\nidletimeout = \"1h\"", 2, "did you mean `idle_timeout`?"),
            ("[server.lab]\nhold = \"1s\"", 1, "did you mean `servers`?"),
            ("[servers.lab]\nstate_dir = \"/\"", 2, "the settings here are `listen`, "),
            ("hold = \"soon\"", 1, "`soon` is not a length of time: write a length of time"),
            ("\nhold = 30", 2, "write line 2 as `hold = \"30s\"`"),
            ("idle_timeout = \"1s\"", 1, "not a valid idle time-out: choose between"),
            ("carrier = \"pigeon\"", 1, "pigeon"),
            ("listen = [\"gpu.lan:1\"]", 1, "localhost:PORT"),
            ("allow_from = [\"10.0.0.0/99\"]", 1, "allow_from"),
            ("listen = \"localhost:1\"", 1, "expected a list in brackets"),
            ("any_user = \"yes\"", 1, "expected `true` or `false`"),
            ("hold = \"1s\"\nhold = \"2s\"", 2, "duplicate"),
            ("[services]\nvllm = 8000", 2, ""),
            ("services = { ollama = \"localhost:1\" }", 1, "with `listen`"),
            ("[servers.\"a b\"]\nhold = \"1s\"", 1, ""),
            ("hold = ", 1, ""),
            ("state_dir = \"~/keys\"", 1, "without `~`"),
        ] {
            let told = parsed(text).expect_err(text).to_string();
            assert!(told.contains(&format!("line {line}")), "{text}: {told}");
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn a_server_that_is_not_known_is_told_with_the_nearest() {
        let file = parsed("[servers.lba]\n[servers.home]\n[servers.elsewhere]").expect("read");
        let known: Vec<Name> = ["lab", "home"].map(|name| name.parse().expect("a name")).into();
        let unknown: Vec<_> =
            file.unknown(&known).into_iter().map(|(name, near)| (name.as_str(), near)).collect();
        assert_eq!(unknown, [("elsewhere", None), ("lba", Some("lab"))]);
    }

    #[test]
    fn a_relative_state_directory_begins_at_the_file() {
        for (written, is) in [("keys", "/home/me/keys"), ("/keys", "/keys")] {
            let file = parsed(&format!("state_dir = \"{written}\"")).expect("read");
            assert_eq!(file.state_dir, Some(PathBuf::from(is)));
        }
    }
}
