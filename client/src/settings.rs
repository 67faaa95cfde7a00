//! What `adit up` is told, and by whom: a flag overrides its environment variable, both override the
//! file (there a server's own table first), and the file overrides the default. Opens no socket and
//! reads no clock.

mod file;
mod flags;
mod services;

use std::time::Duration;

use clap::ValueEnum;
use ipnet::IpNet;
use proto::{human, identity::Name, wire};
use serde::Serialize;

pub(crate) use self::{
    file::{SettingsFile, default_path},
    flags::{Named, SettingFlags, SshFlag},
    services::ServiceListen,
};
use crate::{
    dial::route::CarrierChoice,
    local::{listener::ListenAddr, owner::WrittenIn},
    ssh::SshClient,
};

const HOLD: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(30);

/// Where the value of a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// The command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The server's own table in the file.
    ServerTable,
    /// The top of the file, which is for all servers.
    File,
    /// None of them sets it.
    Default,
    /// What the running `adit up` uses.
    Running,
}

/// A value, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) source: Source,
}

impl<T> Setting<T> {
    /// The first value that there is; `said` is that of the command line or the environment.
    fn first(said: Option<(T, Source)>, own: Option<T>, of_all: Option<T>, default: T) -> Self {
        let own = own.map(|value| (value, Source::ServerTable));
        let of_all = of_all.map(|value| (value, Source::File));
        let (value, source) = said.or(own).or(of_all).unwrap_or((default, Source::Default));
        Self { value, source }
    }
}

/// All settings of one server's tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The addresses for applications.
    pub(crate) listen: Setting<Vec<ListenAddr>>,
    /// The networks that may use addresses that are not loopback.
    pub(crate) allow_from: Setting<Vec<IpNet>>,
    /// Whether all users of this computer may use the tunnel.
    pub(crate) any_user: Setting<bool>,
    /// How long a connection waits for the tunnel.
    pub(crate) hold: Setting<Duration>,
    /// How long running answers go on when adit is stopped.
    pub(crate) drain: Setting<Duration>,
    /// Which carriers may be used.
    pub(crate) carrier: Setting<CarrierChoice>,
    /// How long a silent session is kept.
    pub(crate) idle_timeout: Setting<Duration>,
    /// Which SSH client is used; `None` is the one that enrolled.
    pub(crate) ssh_client: Setting<Option<SshClient>>,
    /// The services besides Ollama, and their addresses for applications.
    pub(crate) services: Setting<Vec<ServiceListen>>,
}

/// A setting as text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its name in the file.
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) source: Source,
}

impl Settings {
    /// Where the networks of `server` are written that may use the tunnel.
    pub(crate) fn allow_from_is_in(&self, server: &Name) -> WrittenIn {
        match self.allow_from.source {
            Source::Flag => WrittenIn::Flag,
            Source::Environment => WrittenIn::Environment,
            Source::ServerTable => WrittenIn::TableOf(server.to_string()),
            Source::File | Source::Default | Source::Running => WrittenIn::File,
        }
    }

    /// The settings of a server.
    pub(crate) fn settle(
        flags: &SettingFlags,
        named: &Named,
        file: &SettingsFile,
        server: &Name,
    ) -> Self {
        let own = file.servers.get(server).cloned().unwrap_or_default();
        let all = file.of_all.clone();
        let said = |id: &str| named.source(id);
        Self {
            listen: Setting::first(
                said("listen").map(|source| (flags.listen.clone(), source)),
                own.listen,
                all.listen,
                vec![ListenAddr::Localhost(wire::OLLAMA_PORT)],
            ),
            allow_from: Setting::first(
                said("allow_from").map(|source| (flags.allow_from.clone(), source)),
                own.allow_from,
                all.allow_from,
                Vec::new(),
            ),
            any_user: Setting::first(
                said("any_user").map(|source| (flags.any_user, source)),
                own.any_user,
                all.any_user,
                false,
            ),
            hold: Setting::first(flags.hold.zip(said("hold")), own.hold, all.hold, HOLD),
            drain: Setting::first(flags.drain.zip(said("drain")), own.drain, all.drain, DRAIN),
            carrier: Setting::first(
                flags.carrier.zip(said("carrier")),
                own.carrier,
                all.carrier,
                CarrierChoice::default(),
            ),
            idle_timeout: Setting::first(
                flags.idle_timeout.zip(said("idle_timeout")),
                own.idle_timeout,
                all.idle_timeout,
                wire::IDLE_TIMEOUT,
            ),
            ssh_client: Setting::first(
                flags.ssh.ssh_client.zip(said("ssh_client")).map(|(client, s)| (Some(client), s)),
                own.ssh_client.map(Some),
                all.ssh_client.map(Some),
                None,
            ),
            services: Setting::first(
                said("services").map(|source| (flags.services.clone(), source)),
                own.services.map(ServiceListen::of_table),
                all.services.map(ServiceListen::of_table),
                Vec::new(),
            ),
        }
    }

    /// All of them as text, each value as the file would have it.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let listen = self.listen.value.iter().map(ToString::to_string).collect::<Vec<_>>();
        let networks = self.allow_from.value.iter().map(ToString::to_string).collect::<Vec<_>>();
        let services = self.services.value.iter().map(ToString::to_string).collect::<Vec<_>>();
        let client = self.ssh_client.value.map(|client| value_name(&client));
        let row = |key, value, source| Row { key, value, source };
        let time = |key, setting: &Setting<Duration>| Row {
            key,
            value: human::exact_time(setting.value),
            source: setting.source,
        };
        vec![
            row("listen", listen.join(", "), self.listen.source),
            row("allow_from", networks.join(", "), self.allow_from.source),
            row("any_user", self.any_user.value.to_string(), self.any_user.source),
            time("hold", &self.hold),
            time("drain", &self.drain),
            row("carrier", value_name(&self.carrier.value), self.carrier.source),
            time("idle_timeout", &self.idle_timeout),
            row(
                "ssh_client",
                client.unwrap_or("the one used for enrolling".to_owned()),
                self.ssh_client.source,
            ),
            row("services", services.join(", "), self.services.source),
        ]
    }
}

fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use common::machine::config_text::ConfigText;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn file(text: &str) -> SettingsFile {
        let from = ConfigText::new(Path::new("/home/me/adit.toml"), text.to_owned());
        SettingsFile::of(&from, Path::new("/home/me")).expect("a file")
    }

    fn lab() -> Name {
        "lab".parse().expect("a name")
    }

    fn of_file(text: &str) -> Vec<Row> {
        let flags = SettingFlags::default();
        Settings::settle(&flags, &Named::default(), &file(text), &lab()).rows()
    }

    /// `hold` of `lab`, in seconds, if flag or environment say `said`.
    fn hold(said: Option<(u32, Source)>, file: &SettingsFile) -> (u64, Source) {
        let flags = SettingFlags { hold: said.map(|n| SECOND * n.0), ..Default::default() };
        let named = Named::from_iter(said.map(|(_, source)| ("hold", source)));
        let settings = Settings::settle(&flags, &named, file, &lab());
        (settings.hold.value.as_secs(), settings.hold.source)
    }

    #[test]
    fn a_flag_comes_before_the_environment_the_servers_table_the_file_and_the_default() {
        let (none, all) = (SettingsFile::default(), file("hold = \"3s\""));
        let own = file("hold = \"3s\"\n[servers.lab]\nhold = \"2s\"");
        let other = file("[servers.home]\nhold = \"2s\"");
        for (said, file, is) in [
            (None, &none, (30, Source::Default)),
            (None, &other, (30, Source::Default)),
            (None, &all, (3, Source::File)),
            (None, &own, (2, Source::ServerTable)),
            (Some((1, Source::Environment)), &none, (1, Source::Environment)),
            (Some((1, Source::Environment)), &own, (1, Source::Environment)),
            (Some((1, Source::Flag)), &all, (1, Source::Flag)),
            (Some((1, Source::Flag)), &own, (1, Source::Flag)),
        ] {
            assert_eq!(hold(said, file), is, "{said:?} {file:?}");
        }
    }

    #[test]
    fn each_setting_can_be_set_in_the_file_and_is_shown_as_it_is_written_there() {
        let written = [
            ("listen", r#"["localhost:11500", "127.0.0.1:7"]"#, "localhost:11500, 127.0.0.1:7"),
            ("allow_from", r#"["172.17.0.0/16"]"#, "172.17.0.0/16"),
            ("any_user", "true", "true"),
            ("hold", "\"1m 30s\"", "1m 30s"),
            ("drain", "\"2m\"", "2m"),
            ("carrier", "\"ssh\"", "ssh"),
            ("idle_timeout", "\"1h\"", "1h"),
            ("ssh_client", "\"system\"", "system"),
            ("services", r#"{ vllm = "localhost:8000" }"#, "vllm=localhost:8000"),
        ];
        let text: String = written.map(|(key, value, _)| format!("{key} = {value}\n")).concat();
        for (text, source) in
            [(text.clone(), Source::File), (format!("[servers.lab]\n{text}"), Source::ServerTable)]
        {
            let is = written.map(|(key, _, value)| Row { key, value: value.to_owned(), source });
            assert_eq!(of_file(&text), is);
        }
        let defaults = of_file("");
        assert!(defaults.iter().all(|row| row.source == Source::Default), "{defaults:?}");
        assert_eq!(defaults[0].value, "localhost:11434");
    }
}
