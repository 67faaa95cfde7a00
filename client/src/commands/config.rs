//! `adit config`: every setting, its value, and where it comes from.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::Args;
use common::machine::{
    format,
    report::{Failure, data},
};
use proto::identity::Name;
use serde_json::{Map, Value, json};

use crate::{
    commands::status::{self, Status},
    profile::{self, DEFAULT_NAME, ProfileDir},
    settings::{Named, Row, SettingFlags, Settings, SettingsFile, Source, default_path},
};

/// Flags of `config`.
#[derive(Debug, Args)]
pub(crate) struct Config {
    /// Show the settings of the server with this name [default: of each server]
    name: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: SettingFlags,
}

/// Where this device's files are.
pub(crate) struct Places {
    /// The state directory, and where that comes from.
    pub(crate) state_dir: (PathBuf, Source),
    /// The file of settings, if one was named.
    pub(crate) file: Option<PathBuf>,
}

/// Prints the settings that `adit up` would use with the same flags, but the addresses in use where
/// one runs.
///
/// # Errors
/// If the state directory cannot be read.
pub(crate) async fn run(
    places: &Places,
    config: &Config,
    named: &Named,
    file: &SettingsFile,
) -> Result<(), Failure> {
    let known = profile::known(&places.state_dir.0)?;
    let names = match &config.name {
        Some(name) => vec![name.clone()],
        // What would be used after the first enrollment.
        None if known.is_empty() => vec![DEFAULT_NAME.parse().map_err(Failure::new)?],
        None => known.clone(),
    };
    let mut servers: Vec<(Name, Vec<Row>)> = Vec::new();
    for name in names {
        let mut rows = Settings::settle(&config.flags, named, file, &name).rows();
        let profile_dir = ProfileDir::new(&places.state_dir.0, name.clone());
        let status = status::ask(&profile_dir).await.ok().flatten();
        // A second server of one `adit up` has a port of its own.
        if let Some(in_use) = status.and_then(|status| listening(&status))
            && let Some(row) = rows.iter_mut().find(|row| row.key == "listen")
            && row.source != Source::Flag
            && row.value != in_use
        {
            (row.value, row.source) = (in_use, Source::Running);
        }
        servers.push((name, rows));
    }
    let path = places.file.clone().or_else(default_path);
    data(match config.json {
        true => as_json(places, path.as_deref(), &servers)?,
        false => as_text(places, path.as_deref(), &servers, &file.unknown(&known)),
    })
}

/// Where a running adit listens, as the file would have it.
fn listening(status: &Status) -> Option<String> {
    let addresses: Vec<SocketAddr> =
        status.listening.iter().filter_map(|address| address.parse().ok()).collect();
    let port = addresses.first()?.port();
    let both = [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    Some(match addresses == both {
        true => format!("localhost:{port}"),
        false => status.listening.join(", "),
    })
}

fn as_json(
    places: &Places,
    path: Option<&Path>,
    servers: &[(Name, Vec<Row>)],
) -> Result<String, Failure> {
    let settings = |rows: &[Row]| -> Map<String, Value> {
        let setting = |row: &Row| json!({ "value": row.value, "source": row.source });
        rows.iter().map(|row| (row.key.to_owned(), setting(row))).collect()
    };
    let servers: Vec<Value> = servers
        .iter()
        .map(|(name, rows)| json!({ "name": name, "settings": settings(rows) }))
        .collect();
    let (dir, source) = &places.state_dir;
    format::to_json(&json!({
        "schema": 1,
        "file": { "path": path, "exists": path.is_some_and(Path::exists) },
        "state_dir": { "value": dir, "source": source },
        "servers": servers,
    }))
}

fn as_text(
    places: &Places,
    path: Option<&Path>,
    servers: &[(Name, Vec<Row>)],
    unknown: &[(&Name, Option<&str>)],
) -> String {
    let file = match path {
        Some(path) if path.exists() => path.display().to_string(),
        Some(path) => format!("{} (does not exist)", path.display()),
        None => "none".to_owned(),
    };
    let mut text = format!("Settings file  {file}\n");
    for (name, near) in unknown {
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        text += &format!("Not used       [servers.{name}]: there is no such server{near}\n");
    }
    let (dir, source) = &places.state_dir;
    let (dir, from) = (dir.display().to_string(), told("state_dir", *source, DEFAULT_NAME));
    let rows = servers.iter().flat_map(|(name, rows)| {
        rows.iter().map(|Row { key, value, source }| {
            let from = told(key, *source, name.as_str());
            [name.to_string(), (*key).to_owned(), value.clone(), from]
        })
    });
    let of_all = ["(all)".to_owned(), "state_dir".to_owned(), dir, from];
    let rows = std::iter::once(of_all).chain(rows);
    text += "\n";
    text += &match servers {
        [_] => format::table(["SETTING", "VALUE", "FROM"], rows.map(|[_, a, b, c]| [a, b, c])),
        _ => format::table(["SERVER", "SETTING", "VALUE", "FROM"], rows),
    };
    text
}

/// Where a value comes from, for people.
fn told(key: &str, source: Source, server: &str) -> String {
    match source {
        Source::Flag => format!("flag --{}", key.replace('_', "-")),
        Source::Environment => format!("environment, ADIT_{}", key.to_uppercase()),
        Source::ServerTable => format!("file, [servers.{server}]"),
        Source::File => "file".to_owned(),
        Source::Running => "the running `adit up`".to_owned(),
        Source::Default => "default".to_owned(),
    }
}
