//! The settings of `[https.acme]`: for which names a certificate is ordered, and of whom.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use instant_acme::{Identifier, LetsEncrypt};
use reqwest::Url;
use rustls::pki_types::{DnsName, ServerName};
use serde::Deserialize;

/// The settings of certificates that are ordered by ACME (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcmeSettings {
    /// For which names and addresses: one at least.
    pub(crate) names: Vec<AcmeName>,
    /// Addresses of mail that the certificate authority may write to.
    pub(crate) contact: Vec<String>,
    /// The URL of its directory (RFC 8555 section 7.1.1).
    pub(crate) directory: DirectoryUrl,
    /// The file of the CA that the directory's own certificate is from; `None` for those that this
    /// system trusts.
    pub(crate) directory_ca: Option<PathBuf>,
    /// The profile of the certificate, if the authority has several.
    pub(crate) profile: Option<String>,
    /// The account at the authority to which ours is bound (RFC 8555 section 7.3.4).
    pub(crate) external_account: Option<ExternalAccount>,
}

impl AcmeSettings {
    /// The files that an order reads, besides those of the state directory and of the system's CAs.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let external = self.external_account.as_ref().map(|external| external.key_file.as_path());
        self.directory_ca.as_deref().into_iter().chain(external)
    }
}

/// An account that its owner has at the certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExternalAccount {
    pub(crate) id: String,
    /// The file of its MAC key, in base64url.
    pub(crate) key_file: PathBuf,
}

/// A name or an address in an ordered certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum AcmeName {
    Dns(String),
    Ip(IpAddr),
}

impl AcmeName {
    pub(super) fn identifier(&self) -> Identifier {
        match self {
            Self::Dns(name) => Identifier::Dns(name.clone()),
            Self::Ip(address) => Identifier::Ip(*address),
        }
    }

    /// The name by which the authority asks for it in a handshake (RFC 8737 section 3, RFC 8738
    /// section 6).
    pub(super) fn server_name(&self) -> String {
        match self {
            Self::Dns(name) => name.clone(),
            Self::Ip(IpAddr::V4(address)) => {
                let [a, b, c, d] = address.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            Self::Ip(IpAddr::V6(address)) => {
                let digits = address.octets().into_iter().rev();
                let digits = digits.map(|byte| format!("{:x}.{:x}.", byte & 0xf, byte >> 4));
                format!("{}ip6.arpa", digits.collect::<String>())
            }
        }
    }
}

impl fmt::Display for AcmeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for AcmeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.starts_with("*.") {
            return Err(format!(
                "`{text}` stands for many names, and a certificate for it needs a change of the DNS: name each one, or use files (`tls_cert`, `tls_key`)"
            ));
        }
        match ServerName::try_from(text.as_str()) {
            Ok(ServerName::IpAddress(address)) => Ok(Self::Ip(IpAddr::from(address))),
            Ok(ServerName::DnsName(name)) if !is_local(&name) => {
                Ok(Self::Dns(name.as_ref().to_ascii_lowercase()))
            }
            _ => Err(format!(
                "nobody issues a certificate for `{text}`: write the name by which the authority finds this server, for example gpu.example.com"
            )),
        }
    }
}

fn is_local(name: &DnsName<'_>) -> bool {
    let name = name.as_ref().to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.ends_with('.')
}

/// The URL of a directory: https.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct DirectoryUrl(Url);

impl DirectoryUrl {
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Its host, for people.
    pub(crate) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(443)
    }
}

impl Default for DirectoryUrl {
    fn default() -> Self {
        LetsEncrypt::Production.url().parse().expect("a URL")
    }
}

impl FromStr for DirectoryUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write it like https://acme.example.com/directory";
        let url = Url::parse(text).map_err(|e| format!("`{text}` is not a URL ({e}): {form}"))?;
        let is_plain = url.username().is_empty() && url.password().is_none();
        if url.scheme() != "https" || !url.has_host() || !is_plain {
            return Err(format!("`{text}` is not the address of a directory: {form}"));
        }
        Ok(Self(url))
    }
}

impl TryFrom<String> for DirectoryUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for DirectoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DirectoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Result<AcmeName, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_handshake_asks_for_an_address_by_its_reverse_name() {
        for (text, asked) in [
            ("GPU.example.com", "gpu.example.com"),
            ("192.0.2.7", "7.2.0.192.in-addr.arpa"),
            (
                "2001:db8::7",
                "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ),
        ] {
            assert_eq!(name(text).map(|name| name.server_name()), Ok(asked.to_owned()), "{text}");
        }
    }

    #[test]
    fn names_that_nobody_certifies_are_refused() {
        for (text, says) in [
            ("*.example.com", "stands for many names"),
            ("localhost", "nobody issues"),
            ("gpu.example.com.", "nobody issues"),
            ("a b", "nobody issues"),
            ("https://gpu.example.com", "nobody issues"),
            ("", "nobody issues"),
        ] {
            let why = name(text).expect_err(text);
            assert!(why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn a_directory_is_asked_over_https_only() {
        assert_eq!(DirectoryUrl::default().host(), "acme-v02.api.letsencrypt.org");
        for (text, is_good) in [
            ("https://acme.example.com/directory", true),
            ("https://127.0.0.1:14000/dir", true),
            ("http://acme.example.com/directory", false),
            ("http://127.0.0.1/dir", false),
            ("https://user:word@acme.example.com/", false),
            ("acme.example.com", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<DirectoryUrl>().is_ok(), is_good, "{text}");
        }
    }
}
