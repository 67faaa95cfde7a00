//! An upstream as it is written in flags and in the file, before it is decided whether it may be
//! dialled.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use proto::wire::OLLAMA_PORT;
use serde::Deserialize;

use super::{Kind, Upstream, UpstreamAllow};

/// A service and its address: `http://127.0.0.1:11434`, `openai://…`, `tcp://…` for services that do
/// not speak HTTP, or `unix:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct WrittenUpstream {
    pub(super) kind: Kind,
    pub(super) place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Address(SocketAddr),
    Name(String, u16),
    Unix(PathBuf),
}

/// Why a text is not an upstream, or why it may not be dialled.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum UpstreamError {
    /// It is not an address.
    #[error(
        "`{0}` is not an upstream: write it as [http://|openai://|tcp://]127.0.0.1:PORT, or unix:/PATH"
    )]
    Malformed(String),
    /// It is an address of another machine, or of all interfaces, and is not in `upstream_allow`.
    #[error(
        "`{0}` is not a loopback address: without `upstream_allow`, aditd speaks to services on its own machine only (127.0.0.0/8, [::1], localhost or a Unix socket)"
    )]
    NotLoopback(String),
    /// It is a name, and no address with this port is in `upstream_allow`.
    #[error(
        "`{0}:{1}` is not a loopback address but a name: without `upstream_allow`, aditd speaks to services on its own machine only (127.0.0.0/8, [::1], localhost or a Unix socket)"
    )]
    NameNotAllowed(String, u16),
}

impl UpstreamError {
    /// The line of the configuration that would allow it, if one would.
    pub fn cure(&self) -> Option<String> {
        match self {
            Self::Malformed(_) => None,
            Self::NotLoopback(address) => {
                let is_unspecified = address
                    .parse::<SocketAddr>()
                    .is_ok_and(|address| address.ip().is_unspecified() || address.port() == 0);
                (!is_unspecified).then(|| {
                    format!(
                        "if it has to be another machine or a container, and what is sent there may travel unencrypted, add this line to the configuration: upstream_allow = [\"{address}\"]"
                    )
                })
            }
            Self::NameNotAllowed(host, port) => Some(format!(
                "`getent ahosts {host}` shows its addresses; if what is sent there may travel unencrypted, add them all to the configuration: upstream_allow = [\"ADDRESS:{port}\"]"
            )),
        }
    }
}

impl WrittenUpstream {
    /// The same place, where something else speaks.
    #[must_use]
    pub(crate) fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

impl FromStr for WrittenUpstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let malformed = || UpstreamError::Malformed(text.to_owned());
        let unix = [
            ("unix:", Kind::Http),
            ("http+unix:", Kind::Http),
            ("openai+unix:", Kind::OpenAi),
            ("tcp+unix:", Kind::Tcp),
        ];
        for (scheme, kind) in unix {
            if let Some(path) = text.strip_prefix(scheme) {
                let path = PathBuf::from(path);
                let is_good = path.is_absolute() && path.file_name().is_some();
                let place = is_good.then_some(Place::Unix(path)).ok_or_else(malformed)?;
                return Ok(Self { kind, place });
            }
        }
        let without_slash = |rest: &'_ str| rest.strip_suffix('/').unwrap_or(rest).to_owned();
        let (kind, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Kind::Http, without_slash(rest)),
            Some(("openai", rest)) => (Kind::OpenAi, without_slash(rest)),
            Some(("tcp", rest)) => (Kind::Tcp, rest.to_owned()),
            Some(_) => return Err(malformed()),
            None => (Kind::Http, text.to_owned()),
        };
        let place = place(&rest).ok_or_else(malformed)?;
        Ok(Self { kind, place })
    }
}

fn place(text: &str) -> Option<Place> {
    if text == "localhost" {
        return Some(Place::Address((Ipv4Addr::LOCALHOST, OLLAMA_PORT).into()));
    }
    let ip = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::from((ip, OLLAMA_PORT)));
    if let Some(address) = text.parse().ok().or_else(ip) {
        return Some(Place::Address(address));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let is_name = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    match host {
        "localhost" => Some(Place::Address((Ipv4Addr::LOCALHOST, port).into())),
        _ => is_name.then(|| Place::Name(host.to_owned(), port)),
    }
}

impl TryFrom<String> for WrittenUpstream {
    type Error = UpstreamError;

    fn try_from(text: String) -> Result<Self, UpstreamError> {
        text.parse()
    }
}

/// As `--upstream` takes it.
impl fmt::Display for WrittenUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.kind.scheme();
        match &self.place {
            Place::Address(address) => write!(f, "{scheme}://{address}"),
            Place::Name(host, port) => write!(f, "{scheme}://{host}:{port}"),
            Place::Unix(path) if self.kind == Kind::Http => write!(f, "unix:{}", path.display()),
            Place::Unix(path) => write!(f, "{scheme}+unix:{}", path.display()),
        }
    }
}

/// One on this machine, for which no list is needed.
impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        UpstreamAllow::default().admit(text.parse()?)
    }
}
