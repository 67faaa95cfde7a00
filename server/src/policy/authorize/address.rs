//! Where `authorize` is: on this machine, or by HTTPS on another that its owner has named.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

use rustls::pki_types::ServerName;

use crate::policy::upstream::{LoopbackAddr, Upstream};

/// The address of the service: `http://127.0.0.1:9000/check`, `unix:/run/check.sock:/check` or
/// `https://auth.lan:8443/check`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    pub(super) location: AuthorityAddr,
    pub(super) path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AuthorityAddr {
    Tcp(LoopbackAddr),
    Unix(PathBuf),
    /// By TLS.
    Https(Server),
}

/// A server that proves its name by a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Its name, or its IP address without brackets.
    pub(super) name: ServerName<'static>,
    pub(super) port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.to_str();
        match name.contains(':') {
            true => write!(f, "[{name}]:{}", self.port),
            false => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Address {
    /// The TCP port that is dialled; `None` for a Unix socket.
    pub(crate) fn port(&self) -> Option<u16> {
        match &self.location {
            AuthorityAddr::Tcp(address) => Some(address.get().port()),
            AuthorityAddr::Https(server) => Some(server.port),
            AuthorityAddr::Unix(_) => None,
        }
    }

    /// The path of its Unix socket, if it has one.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match &self.location {
            AuthorityAddr::Unix(path) => Some(path),
            _ => None,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an address for `authorize`: write it like http://127.0.0.1:9000/check, unix:/run/check.sock:/check or https://auth.lan:8443/check"
            )
        };
        let (location, path) = if let Some(rest) = text.strip_prefix("unix:") {
            let (socket, path) = rest.rsplit_once(":/").unwrap_or((rest, ""));
            if !socket.starts_with('/') {
                return Err(wrong());
            }
            (AuthorityAddr::Unix(socket.into()), path)
        } else if let Some(rest) = text.strip_prefix("https://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            (AuthorityAddr::Https(server(authority).ok_or_else(wrong)?), path)
        } else {
            let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let upstream: Upstream =
                format!("http://{authority}").parse().map_err(|e| format!("{e}"))?;
            (AuthorityAddr::Tcp(upstream.loopback().ok_or_else(wrong)?), path)
        };
        if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(wrong());
        }
        Ok(Self { location, path: format!("/{path}") })
    }
}

/// Reads `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn server(authority: &str) -> Option<Server> {
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']')?;
            name.parse::<Ipv6Addr>().ok()?;
            (name, port)
        }
        None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None if port.is_empty() => 443,
        None => return None,
    };
    Some(Server { name: ServerName::try_from(name.to_owned()).ok()?, port })
}

impl Address {
    /// The server, if the service is on another machine: its owner has to name that.
    pub(crate) fn elsewhere(&self) -> Option<String> {
        let AuthorityAddr::Https(server) = &self.location else { return None };
        let is_here = match &server.name {
            ServerName::IpAddress(ip) => IpAddr::from(*ip).to_canonical().is_loopback(),
            name => name.to_str() == "localhost",
        };
        (!is_here).then(|| server.to_string())
    }

    /// Whether it is reached by HTTPS.
    pub(crate) fn is_https(&self) -> bool {
        matches!(self.location, AuthorityAddr::Https(_))
    }

    /// What the header `Host` says there.
    pub(super) fn host(&self) -> String {
        match &self.location {
            AuthorityAddr::Https(server) => server.to_string(),
            _ => "localhost".to_owned(),
        }
    }

    /// A command that asks there.
    pub(crate) fn by_hand(&self) -> String {
        match &self.location {
            AuthorityAddr::Tcp(address) => {
                format!("curl -i -d '{{}}' 'http://{}{}'", address.get(), self.path)
            }
            AuthorityAddr::Https(server) => {
                format!("curl -i -d '{{}}' 'https://{server}{}'", self.path)
            }
            AuthorityAddr::Unix(socket) => {
                format!(
                    "curl -i -d '{{}}' --unix-socket '{}' 'http://localhost{}'",
                    socket.display(),
                    self.path
                )
            }
        }
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            AuthorityAddr::Tcp(address) => write!(f, "http://{}{}", address.get(), self.path),
            AuthorityAddr::Https(server) => write!(f, "https://{server}{}", self.path),
            AuthorityAddr::Unix(socket) => write!(f, "unix:{}:{}", socket.display(), self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_reached_by_https_only() {
        for (text, shown) in [
            ("http://127.0.0.1:9000/check", "http://127.0.0.1:9000/check"),
            ("http://localhost:9000", "http://127.0.0.1:9000/"),
            ("http://[::1]:9/a/b?c=d", "http://[::1]:9/a/b?c=d"),
            ("unix:/run/check.sock:/check", "unix:/run/check.sock:/check"),
            ("unix:/run/check.sock", "unix:/run/check.sock:/"),
            ("https://auth.lan/check?x", "https://auth.lan:443/check?x"),
            ("https://[fd00::1]:8443", "https://[fd00::1]:8443/"),
        ] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(shown));
        }
        for bad in [
            "http://10.0.0.1:1/x",
            "http://gpu.lan:1/x",
            "https://auth.lan:0/x",
            "https://a b/x",
            "https://[auth.lan]/x",
            "https:///x",
            "unix:run.sock",
            "127.0.0.1:9000",
            "http://127.0.0.1:1/a b",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_elsewhere_has_to_be_named() {
        for (text, named) in [
            ("http://127.0.0.1:9000/check", None),
            ("unix:/run/check.sock", None),
            ("https://localhost:9/x", None),
            ("https://127.0.0.1:9/x", None),
            ("https://[::1]:9/x", None),
            ("https://auth.lan/x", Some("auth.lan:443")),
            ("https://10.0.0.1:9/x", Some("10.0.0.1:9")),
            ("https://[fd00::1]/x", Some("[fd00::1]:443")),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.elsewhere().as_deref(), named, "{text}");
        }
    }
}
