//! Where bytes are forwarded: to services on this machine, and nowhere else, by type.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use common::transport;
use proto::{
    identity::Name,
    wire::{Code, OLLAMA_PORT, Service, ServiceKind},
};
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::policy::Permit;

/// How long a connection may take: longer than a busy machine needs to accept, shorter than a
/// person waits.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A loopback TCP address. The type can hold no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopbackAddr(SocketAddr);

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
    pub fn get(self) -> SocketAddr {
        self.0
    }
}

/// A service and its address: `http://127.0.0.1:11434`, or `tcp://…` for services that do not speak
/// HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Upstream {
    /// Whether it speaks HTTP.
    pub kind: ServiceKind,
    address: LoopbackAddr,
}

/// Why a text is not an upstream.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum UpstreamError {
    /// It is not an address.
    #[error("`{0}` is not an upstream: write it as [http://|tcp://]127.0.0.1:PORT")]
    Malformed(String),
    /// It is an address of another machine, or of all interfaces.
    #[error(
        "`{0}` is not a loopback address: aditd speaks to services on its own machine only (127.0.0.0/8, [::1] or localhost)"
    )]
    NotLoopback(String),
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            kind: ServiceKind::Http,
            address: LoopbackAddr(SocketAddr::from((Ipv4Addr::LOCALHOST, OLLAMA_PORT))),
        }
    }
}

impl Upstream {
    /// Where the service listens.
    pub fn address(&self) -> LoopbackAddr {
        self.address
    }

    /// The description that devices get.
    pub fn as_service(&self, name: Name) -> Service {
        Service { name, kind: self.kind, port: Some(self.address.0.port()) }
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let (kind, rest) = match text.split_once("://") {
            Some(("http", rest)) => (ServiceKind::Http, rest.strip_suffix('/').unwrap_or(rest)),
            Some(("tcp", rest)) => (ServiceKind::Tcp, rest),
            Some(_) => return Err(UpstreamError::Malformed(text.to_owned())),
            None => (ServiceKind::Http, text),
        };
        let address = match rest.rsplit_once(':') {
            Some(("localhost", port)) => {
                port.parse().ok().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            }
            None if rest == "localhost" => {
                Some(SocketAddr::from((Ipv4Addr::LOCALHOST, OLLAMA_PORT)))
            }
            _ => rest.parse().ok().or_else(|| {
                rest.parse::<IpAddr>().ok().map(|ip| SocketAddr::from((ip, OLLAMA_PORT)))
            }),
        };
        let address = match address {
            Some(address) => address,
            // A host name would be looked up, and could lead to another machine.
            None if rest
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) =>
            {
                return Err(UpstreamError::NotLoopback(rest.to_owned()));
            }
            None => return Err(UpstreamError::Malformed(text.to_owned())),
        };
        Ok(Self { kind, address: address.try_into()? })
    }
}

impl TryFrom<String> for Upstream {
    type Error = UpstreamError;

    fn try_from(text: String) -> Result<Self, UpstreamError> {
        text.parse()
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ServiceKind::Http => "http",
            ServiceKind::Tcp => "tcp",
        };
        write!(f, "{scheme}://{}", self.address.0)
    }
}

/// Connects to the service of the permit.
///
/// # Errors
/// The code that the client gets.
///
/// # Cancel safety
/// Cancel safe: nothing is left behind.
pub(crate) async fn dial(permit: &Permit) -> Result<TcpStream, Code> {
    let LoopbackAddr(address) = permit.upstream().address;
    let tcp = match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(Code::UpstreamRefused);
        }
        Ok(Err(e)) if common::transport::accept::is_shortage(&e) => return Err(Code::Busy),
        Ok(Err(_)) | Err(_) => return Err(Code::UpstreamSilent),
    };
    transport::prepare_local(&tcp).map_err(|_| Code::Busy)?;
    Ok(tcp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_that_is_not_loopback_is_refused() {
        for bad in [
            "192.168.1.7:11434",
            "http://0.0.0.0:11434",
            "tcp://[::]:1",
            "gpu.lan:11434",
            "http://example.com:80",
            "[::ffff:10.0.0.1]:1",
        ] {
            assert!(matches!(bad.parse::<Upstream>(), Err(UpstreamError::NotLoopback(_))), "{bad}");
        }
        for bad in ["", "https://127.0.0.1:1", "127.0.0.1:99999", "unix:/x", "http://"] {
            assert!(matches!(bad.parse::<Upstream>(), Err(UpstreamError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn usual_ways_to_write_an_upstream_are_accepted() {
        for (text, shown) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost:11434/", "http://127.0.0.1:11434"),
            ("localhost", "http://127.0.0.1:11434"),
            ("127.0.0.1", "http://127.0.0.1:11434"),
            ("tcp://[::1]:5432", "tcp://[::1]:5432"),
        ] {
            assert_eq!(text.parse::<Upstream>().expect(text).to_string(), shown);
        }
    }
}
