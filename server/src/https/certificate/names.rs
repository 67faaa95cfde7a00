//! The names and addresses for which our own CA issues the certificate.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use common::machine::network::{is_link_local, own_addresses};
use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::{CertificateSource, HttpsSettings};

/// A name or an address by which clients reach the listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct CertificateName(String);

impl FromStr for CertificateName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match ServerName::try_from(text) {
            Ok(_) => Ok(Self(text.to_ascii_lowercase())),
            Err(_) => Err(format!(
                "`{text}` is not the name of a host: write it like gpu.example.com or 192.168.1.7"
            )),
        }
    }
}

impl TryFrom<String> for CertificateName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The names now: those of the settings, else this machine's own, and the addresses at which the
/// listener can be reached.
pub(super) fn names(settings: &HttpsSettings) -> Vec<String> {
    let system = rustix::system::uname();
    let host = system.nodename().to_str().unwrap_or_default();
    let mut named = settings.names.clone();
    if let CertificateSource::Acme(acme) = &settings.source {
        // Until the authority has issued the first one.
        named.extend(acme.names.iter().map(|name| CertificateName(name.to_string())));
    }
    of(&named, &settings.listen, host, &own_addresses())
}

fn of(named: &[CertificateName], listen: &[SocketAddr], host: &str, own: &[IpAddr]) -> Vec<String> {
    let mut all: Vec<String> = named.iter().map(|name| name.0.clone()).collect();
    all.push("localhost".to_owned());
    all.extend(host.parse::<CertificateName>().ok().map(|name| name.0));
    for address in listen {
        if address.ip().is_unspecified() {
            all.extend(own.iter().filter(|ip| !is_link_local(**ip)).map(ToString::to_string));
        } else {
            all.push(address.ip().to_string());
        }
    }
    all.extend(["127.0.0.1", "::1"].map(str::to_owned));
    let mut known = std::collections::HashSet::new();
    all.retain(|name| known.insert(name.clone()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_for_the_names_of_the_settings_and_where_it_is_reached() {
        let own = ["127.0.0.1", "192.168.1.7", "fe80::1", "2001:db8::7"];
        let own = own.map(|ip| ip.parse::<IpAddr>().expect("an address"));
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let named = ["GPU.example.com".parse().expect("a name")];
        for (named, listen, all) in [
            (&named[..], at("10.0.0.1:1"), "gpu.example.com localhost box 10.0.0.1 127.0.0.1 ::1"),
            (&[], at("[::]:1"), "localhost box 127.0.0.1 192.168.1.7 2001:db8::7 ::1"),
            (&[], at("127.0.0.1:1"), "localhost box 127.0.0.1 ::1"),
        ] {
            assert_eq!(of(named, &[listen], "box", &own).join(" "), all);
        }
        assert!(!of(&[], &[], "not a host", &own).contains(&"not a host".to_owned()));
        for wrong in ["", "a b", "https://x", "x:1", "*"] {
            assert!(wrong.parse::<CertificateName>().is_err(), "{wrong}");
        }
    }
}
