//! The configuration file: its path and its content.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use common::machine::{
    config_text::{ConfigText, WrittenPath},
    report::Failure,
};
use ipnet::IpNet;
use proto::identity::{Name, UserName};
use serde::Deserialize;
use toml::Spanned;

use super::https::HttpsFile;
use super::jwt::JwtFile;
use super::oidc::OidcFile;
use super::services::{self, FileServices, ServiceFile, WrittenServices};
use super::values::{AboveZero, Advertised, FieldName, IdleTimeout, Life, Listen, Recheck, Whole};
use crate::{
    audit::Age,
    jwt::JwtSettings,
    limits::{LimitSettings, LimitTable, Size},
    metrics::serve::MetricsAddr,
    oidc::OidcSettings,
    policy::{
        authorize::{Address, At},
        roles::{BadRole, DeviceFile, RoleFile, Rules},
        upstream::WrittenUpstream,
    },
};

/// The configuration file that is read if none is named.
pub(crate) const SYSTEM_FILE: &str = "/etc/adit/aditd.toml";

/// The content of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub(super) state_dir: Option<WrittenPath>,
    pub(super) listen: Option<Vec<Listen>>,
    pub(super) allow_from: Option<Vec<IpNet>>,
    pub(super) upstream: Option<Spanned<WrittenUpstream>>,
    pub(super) upstream_allow: Option<Vec<SocketAddr>>,
    pub(super) device_life: Option<Life>,
    pub(super) idle_timeout: Option<IdleTimeout>,
    pub(super) advertise: Option<Advertised>,
    pub(super) tcp_relay: Option<bool>,
    pub(super) enroll_group: Option<String>,
    pub(super) enroll_socket: Option<WrittenPath>,
    pub(super) authorize: Option<Spanned<Address>>,
    pub(super) authorize_at: Option<Spanned<Vec<At>>>,
    pub(super) authorize_headers: Option<Spanned<Vec<FieldName>>>,
    pub(super) authorize_allow: Option<Spanned<Vec<String>>>,
    pub(super) authorize_ca: Option<Spanned<WrittenPath>>,
    pub(super) authorize_recheck: Option<Spanned<Recheck>>,
    #[serde(default)]
    pub(super) limits: LimitSettings,
    pub(super) max_in_flight: Option<AboveZero>,
    pub(super) max_queue: Option<Whole>,
    pub(super) queue_header: Option<bool>,
    pub(super) audit_dir: Option<WrittenPath>,
    pub(super) audit_required: Option<bool>,
    pub(super) audit_size: Option<Size>,
    pub(super) audit_keep: Option<Age>,
    pub(super) metrics: Option<MetricsAddr>,
    pub(super) sandbox: Option<bool>,
    #[serde(default)]
    pub(super) https: HttpsFile,
    pub(super) jwt: Option<JwtFile>,
    pub(super) oidc: Option<OidcFile>,
    #[serde(default)]
    pub(super) services: BTreeMap<Name, ServiceFile>,
    #[serde(default)]
    pub(super) roles: BTreeMap<Name, RoleFile>,
    #[serde(default)]
    pub(super) devices: BTreeMap<Name, DeviceFile>,
    #[serde(default)]
    pub(super) users: BTreeMap<UserName, UserFile>,
}

/// The content of the file, with its roles checked.
#[derive(Default)]
pub(super) struct Read {
    pub(super) file: ConfigFile,
    pub(super) rules: Rules,
    pub(super) limits: LimitTable,
    pub(super) services: FileServices,
    /// The tokens that count.
    pub(super) jwt: Option<JwtSettings>,
    /// Where people sign in.
    pub(super) oidc: Option<OidcSettings>,
    /// The devices that the file names.
    pub(super) devices: Vec<Name>,
}

/// The default path of the file, if it exists.
pub(crate) fn of_system() -> Option<PathBuf> {
    Some(PathBuf::from(SYSTEM_FILE)).filter(|path| path.exists())
}

/// The state directory that a file names, even if the rest of the file is wrong. `None` if it names
/// none, or cannot be read: the server reports that.
///
/// # Errors
/// Exit code 2 if it names one that cannot be used: another one would be the state of another server.
pub(super) fn state_dir(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let Ok(text) = ConfigText::read(path) else { return Ok(None) };
    let Some((written, at)) = text.text_at("state_dir") else { return Ok(None) };
    let written = WrittenPath::try_from(PathBuf::from(written));
    let written = written.map_err(|why| text.wrong_at(at, format!("state_dir: {why}")))?;
    Ok(Some(written.resolve_in(dir_of(path))))
}

/// Where relative paths begin that a configuration file names.
pub(super) fn dir_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

/// A user in the configuration.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserFile {
    /// The limits of all devices and keys of this user together.
    #[serde(default)]
    limits: LimitSettings,
}

/// Reads the file; with `places` without what it says of other files, roles and limits.
pub(super) fn read(path: &Path, places: bool) -> Result<Read, Failure> {
    let (text, dir) = (ConfigText::read(path)?, dir_of(path));
    let mut file: ConfigFile = text.parse()?;
    if places {
        file = ConfigFile {
            authorize: None,
            authorize_ca: None,
            https: HttpsFile::default(),
            jwt: None,
            oidc: None,
            ..file
        };
        return Ok(Read { file, ..Read::default() });
    }
    if let Some((at, why)) = asks_nobody(&file).or_else(|| asks_elsewhere(&file)) {
        return Err(text.wrong_at(at, why));
    }
    let limits = LimitTable {
        default: file.limits,
        roles: file.roles.iter().map(|(name, role)| (name.to_string(), role.limits)).collect(),
        devices: file
            .devices
            .iter()
            .map(|(name, device)| (name.to_string(), device.limits))
            .collect(),
        users: file.users.iter().map(|(name, user)| (name.to_string(), user.limits)).collect(),
    };
    let devices = file.devices.keys().cloned().collect();
    let written = WrittenServices {
        upstream: file.upstream.take(),
        allow: file.upstream_allow.take().unwrap_or_default(),
        tables: std::mem::take(&mut file.services),
        roles: &file.roles,
    };
    let services = services::settle(written).map_err(|wrong| {
        let failure = text.wrong_at(wrong.at, &wrong.why);
        wrong.cure.into_iter().fold(failure, Failure::hint)
    })?;
    let rules = Rules::new(std::mem::take(&mut file.roles), std::mem::take(&mut file.devices));
    let rules = rules.map_err(|e| text.wrong_at(place_of(text.as_str(), &e), &e))?;
    let jwt = file.jwt.take().map(|jwt| jwt.settle(&rules, dir)).transpose();
    let jwt = jwt.map_err(|e| text.wrong_at(e.at, &e))?;
    let oidc = file.oidc.take().map(|oidc| oidc.settle(&rules, dir)).transpose();
    let oidc = oidc.map_err(|e| {
        let failure = text.wrong_at(e.at, &e);
        e.cure.into_iter().fold(failure, Failure::hint)
    })?;
    Ok(Read { file, rules, limits, services, jwt, oidc, devices })
}

/// A part of `authorize` without the other part, so that nobody would be asked: its position, and
/// why.
fn asks_nobody(file: &ConfigFile) -> Option<(usize, String)> {
    if file.authorize.is_none() {
        let alone = [
            file.authorize_at
                .as_ref()
                .map(|at| (at.span().start, "`authorize_at` is set, but `authorize` is not")),
            file.authorize_headers
                .as_ref()
                .map(|at| (at.span().start, "`authorize_headers` is set, but `authorize` is not")),
            file.authorize_allow
                .as_ref()
                .map(|at| (at.span().start, "`authorize_allow` is set, but `authorize` is not")),
            file.authorize_ca
                .as_ref()
                .map(|at| (at.span().start, "`authorize_ca` is set, but `authorize` is not")),
            file.authorize_recheck
                .as_ref()
                .map(|at| (at.span().start, "`authorize_recheck` is set, but `authorize` is not")),
        ];
        return alone.into_iter().flatten().next().map(|(at, why)| (at, why.to_owned()));
    }
    let empty = file.authorize_at.as_ref().filter(|at| at.get_ref().is_empty())?;
    let why = "`authorize_at` is empty: name \"enroll\", \"request\" or both, or leave out `authorize` too";
    Some((empty.span().start, why.to_owned()))
}

/// `authorize` on another machine that `authorize_allow` does not name: its position, and why.
fn asks_elsewhere(file: &ConfigFile) -> Option<(usize, String)> {
    let authorize = file.authorize.as_ref()?;
    let server = authorize.get_ref().elsewhere()?;
    let allowed = file.authorize_allow.as_ref().map(Spanned::get_ref);
    if allowed.is_some_and(|allowed| allowed.contains(&server)) {
        return None;
    }
    let why = format!(
        "`authorize` is on another machine: allow its exact address with authorize_allow = [\"{server}\"]"
    );
    Some((authorize.span().start, why))
}

fn place_of(text: &str, bad: &BadRole) -> usize {
    match bad {
        BadRole::BuiltIn(_, at) => *at,
        BadRole::NoRoutes(name) => text.find(&format!("roles.{name}")).unwrap_or_default(),
    }
}
