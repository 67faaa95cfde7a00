//! Where `authorize` is: on this machine.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::Deserialize;

use crate::policy::upstream::{LoopbackAddr, Upstream};

/// The address of the service: `http://127.0.0.1:9000/check` or `unix:/run/check.sock:/check`.
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
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an address for `authorize`: write it like http://127.0.0.1:9000/check or unix:/run/check.sock:/check"
            )
        };
        let (location, path) = if let Some(rest) = text.strip_prefix("unix:") {
            let (socket, path) = rest.rsplit_once(":/").unwrap_or((rest, ""));
            if !socket.starts_with('/') {
                return Err(wrong());
            }
            (AuthorityAddr::Unix(socket.into()), path)
        } else {
            let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let upstream: Upstream =
                format!("http://{authority}").parse().map_err(|e| format!("{e}"))?;
            (AuthorityAddr::Tcp(upstream.address()), path)
        };
        if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(wrong());
        }
        Ok(Self { location, path: format!("/{path}") })
    }
}

impl Address {
    /// A command that asks there.
    pub(crate) fn by_hand(&self) -> String {
        match &self.location {
            AuthorityAddr::Tcp(address) => {
                format!("curl -i -d '{{}}' 'http://{}{}'", address.get(), self.path)
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
            AuthorityAddr::Unix(socket) => write!(f, "unix:{}:{}", socket.display(), self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_accepted() {
        for (text, shown) in [
            ("http://127.0.0.1:9000/check", "http://127.0.0.1:9000/check"),
            ("http://localhost:9000", "http://127.0.0.1:9000/"),
            ("http://[::1]:9/a/b?c=d", "http://[::1]:9/a/b?c=d"),
            ("unix:/run/check.sock:/check", "unix:/run/check.sock:/check"),
            ("unix:/run/check.sock", "unix:/run/check.sock:/"),
        ] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(shown));
        }
        for bad in [
            "http://10.0.0.1:1/x",
            "http://gpu.lan:1/x",
            "https://127.0.0.1/x",
            "unix:run.sock",
            "127.0.0.1:9000",
            "http://127.0.0.1:1/a b",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
