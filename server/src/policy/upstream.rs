//! Where bytes are forwarded. An [`Upstream`] is on this machine, or its exact address is in the
//! owner's list: by type, for only [`UpstreamAllow::admit`] makes one of any other kind.

mod dial;
mod written;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{
    identity::Name,
    ollama::route::Api,
    wire::{OLLAMA_PORT, Service, ServiceKind},
};
use serde::Deserialize;

pub(crate) use self::dial::{UnixJoins, connect, dial};
use self::written::Place as WrittenPlace;
pub use self::written::{UpstreamError, WrittenUpstream};

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// HTTP, with the routes of Ollama.
    Http,
    /// Anything over TCP. Its bytes are not read.
    Tcp,
    /// HTTP, with the routes of vLLM, the server of llama.cpp and LM Studio.
    OpenAi,
}

impl Kind {
    /// Whether it speaks HTTP, so that the gate reads its requests.
    pub fn is_http(self) -> bool {
        self.on_wire() == ServiceKind::Http
    }

    /// Whose routes it has.
    pub fn api(self) -> Api {
        match self {
            Self::OpenAi => Api::OpenAi,
            Self::Http | Self::Tcp => Api::Ollama,
        }
    }

    fn on_wire(self) -> ServiceKind {
        match self {
            Self::Http | Self::OpenAi => ServiceKind::Http,
            Self::Tcp => ServiceKind::Tcp,
        }
    }

    fn scheme(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::OpenAi => "openai",
        }
    }
}

/// A loopback TCP address. The type can hold no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoopbackAddr(SocketAddr);

impl TryFrom<SocketAddr> for LoopbackAddr {
    type Error = UpstreamError;

    fn try_from(address: SocketAddr) -> Result<Self, UpstreamError> {
        match address.ip().to_canonical() {
            ip if ip.is_loopback() && address.port() != 0 => Ok(Self(address)),
            _ => Err(UpstreamError::NotLoopback(address.to_string())),
        }
    }
}

impl LoopbackAddr {
    pub(crate) fn get(self) -> SocketAddr {
        self.0
    }
}

/// A TCP address that is not loopback and that the owner has spelled out in `upstream_allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AllowedAddr(SocketAddr);

/// A name. It is looked up each time, and every address that it has then must be in `upstream_allow`,
/// or loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AllowedName {
    host: String,
    port: u16,
    allow: UpstreamAllow,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Loopback(LoopbackAddr),
    /// A Unix socket of this machine.
    Unix(PathBuf),
    Allowed(AllowedAddr),
    Name(AllowedName),
}

/// A service that may be dialled: what it speaks, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// What it speaks.
    pub kind: Kind,
    place: Place,
}

impl Default for Upstream {
    fn default() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, OLLAMA_PORT));
        Self { kind: Kind::Http, place: Place::Loopback(LoopbackAddr(address)) }
    }
}

impl Upstream {
    /// The TCP address that is dialled; `None` for a name and for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.place {
            Place::Loopback(address) => Some(address.get()),
            Place::Allowed(address) => Some(address.0),
            Place::Unix(_) | Place::Name(_) => None,
        }
    }

    /// The TCP port that is dialled; `None` for a Unix socket.
    pub(crate) fn port(&self) -> Option<u16> {
        match &self.place {
            Place::Name(name) => Some(name.port),
            _ => self.address().map(|address| address.port()),
        }
    }

    /// Its address, if that is loopback.
    pub(crate) fn loopback(&self) -> Option<LoopbackAddr> {
        match &self.place {
            Place::Loopback(address) => Some(*address),
            _ => None,
        }
    }

    /// The path of its Unix socket, if it has one.
    pub fn socket(&self) -> Option<&Path> {
        match &self.place {
            Place::Unix(path) => Some(path),
            _ => None,
        }
    }

    /// Whether it is not on this machine's loopback interface and not a Unix socket: what is sent to
    /// it leaves this machine, or goes to a container, and nothing encrypts it.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.place, Place::Allowed(_) | Place::Name(_))
    }

    /// What travels unencrypted, in words, for one that is elsewhere.
    pub(crate) fn unencrypted(&self, service: &Name) -> String {
        let what = match self.kind {
            Kind::Tcp => "all bytes of the service",
            Kind::Http | Kind::OpenAi => "the prompts and answers of the service",
        };
        format!(
            "{what} `{service}` travel unencrypted between this machine and {self}: who can read that network can read them"
        )
    }

    /// The description that devices get.
    pub(crate) fn as_service(&self, name: Name) -> Service {
        let port = match &self.place {
            Place::Loopback(address) => Some(address.get().port()),
            _ => None,
        };
        Service { name, kind: self.kind.on_wire(), port, api: self.kind.api() }
    }

    /// The same place, where something else speaks.
    #[must_use]
    pub(crate) fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.kind.scheme();
        match &self.place {
            Place::Loopback(address) => write!(f, "{scheme}://{}", address.get()),
            Place::Allowed(address) => write!(f, "{scheme}://{}", address.0),
            Place::Name(name) => write!(f, "{scheme}://{}:{}", name.host, name.port),
            Place::Unix(path) if self.kind == Kind::Http => write!(f, "unix:{}", path.display()),
            Place::Unix(path) => write!(f, "{scheme}+unix:{}", path.display()),
        }
    }
}

/// The addresses other than loopback to which `aditd` may connect: `upstream_allow`. Empty, it allows
/// none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UpstreamAllow(Arc<[SocketAddr]>);

impl UpstreamAllow {
    /// The upstream that is written so, if it may be dialled.
    ///
    /// # Errors
    /// [`UpstreamError::NotLoopback`] if it is not on this machine and not in the list.
    pub(crate) fn admit(&self, written: WrittenUpstream) -> Result<Upstream, UpstreamError> {
        let WrittenUpstream { kind, place } = written;
        let place = match place {
            WrittenPlace::Unix(path) => Place::Unix(path),
            WrittenPlace::Address(address) => match LoopbackAddr::try_from(address) {
                Ok(loopback) => Place::Loopback(loopback),
                Err(_) if self.has(address) => Place::Allowed(AllowedAddr(address)),
                Err(refused) => return Err(refused),
            },
            // Whether the name has only these addresses is seen when it is dialled.
            WrittenPlace::Name(host, port) => {
                if !self.0.iter().any(|allowed| allowed.port() == port) {
                    return Err(UpstreamError::NameNotAllowed(host, port));
                }
                Place::Name(AllowedName { host, port, allow: self.clone() })
            }
        };
        Ok(Upstream { kind, place })
    }

    fn has(&self, address: SocketAddr) -> bool {
        let same = |a: &SocketAddr| {
            a.port() == address.port() && a.ip().to_canonical() == address.ip().to_canonical()
        };
        address.port() != 0 && !address.ip().is_unspecified() && self.0.iter().any(same)
    }
}

impl FromIterator<SocketAddr> for UpstreamAllow {
    fn from_iter<I: IntoIterator<Item = SocketAddr>>(addresses: I) -> Self {
        Self(addresses.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
