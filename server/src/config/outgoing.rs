//! The places outside of this machine that the server asks over HTTPS, and the files that it reads
//! for that. The rights of the process are derived from these.

use std::path::Path;

use super::Config;
use crate::{
    https::AcmeSettings,
    jwt::{JwksSource, JwtSettings, ProviderUrl},
};

/// A place that is asked over HTTPS, or over HTTP on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingPlace {
    /// The setting that names it.
    pub setting: &'static str,
    /// A name or an address.
    pub host: String,
    pub port: u16,
}

impl Config {
    /// The places that the configuration names. A provider may send the server to other hosts, for
    /// its keys or its tokens: on the port 443, or on the issuer's own port. So may the directory of a
    /// certificate authority, for its orders. `HTTPS_PROXY` and `authorize` are not among them.
    pub fn outgoing_https(&self) -> Vec<OutgoingPlace> {
        let place = |setting, at: &ProviderUrl| {
            let (host, port) = (at.url().host_str()?, at.url().port_or_known_default()?);
            Some(OutgoingPlace { setting, host: host.to_owned(), port })
        };
        let of_jwt = |jwt: &JwtSettings| match &jwt.jwks {
            JwksSource::Discovery => place("jwt.issuer", &jwt.issuer),
            JwksSource::Url(at) => place("jwt.jwks", at),
            JwksSource::File(_) => None,
        };
        let of_oidc = self.oidc.as_ref().and_then(|it| place("oidc.issuer", &it.tokens.issuer));
        let of_acme = self.acme().map(|acme| OutgoingPlace {
            setting: "https.acme.directory",
            host: acme.directory.host().to_owned(),
            port: acme.directory.port(),
        });
        self.jwt.as_ref().and_then(of_jwt).into_iter().chain(of_oidc).chain(of_acme).collect()
    }

    /// The files that are read for those places, while the server runs and when the configuration is
    /// read again.
    pub fn provider_files(&self) -> Vec<&Path> {
        let tokens = self.jwt.iter().chain(self.oidc.iter().map(|it| &it.tokens));
        let of_tokens = tokens.flat_map(|tokens| {
            let keys = match &tokens.jwks {
                JwksSource::File(path) => Some(path.as_path()),
                _ => None,
            };
            keys.into_iter().chain(tokens.trust.file())
        });
        let secret = self.oidc.as_ref().and_then(|it| it.secret_file.as_deref());
        let of_acme = self.acme().into_iter().flat_map(AcmeSettings::files);
        of_tokens.chain(secret).chain(of_acme).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, ServeFlags};

    #[test]
    fn the_places_and_the_files_of_providers_and_authorities_are_listed() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let file = tmp.path().join("aditd.toml");
        let text = "[jwt]\nissuer = 'https://a.example:8443/x'\naudience = 'adit'\n\
                    [oidc]\nissuer = 'https://b.example'\nclient_id = 'adit'";
        std::fs::write(&file, text).expect("written");
        let read = |file| {
            let flags = Flags { state_dir: Some("/nowhere".into()), config: Some(file) };
            Config::resolve(&flags, &ServeFlags::default()).expect("settled")
        };
        let config = read(file.clone());
        let places = config.outgoing_https();
        let places: Vec<_> =
            places.iter().map(|at| (at.setting, at.host.as_str(), at.port)).collect();
        assert_eq!(places, [("jwt.issuer", "a.example", 8443), ("oidc.issuer", "b.example", 443)]);
        assert!(config.provider_files().is_empty());
        let jwks =
            "[jwt]\nissuer = 'https://a.example'\naudience = 'adit'\njwks = '/etc/adit/jwks.json'";
        std::fs::write(&file, jwks).expect("written");
        let config = read(file.clone());
        assert!(config.outgoing_https().is_empty());
        assert_eq!(config.provider_files(), [Path::new("/etc/adit/jwks.json")]);
        let acme = "[https]\nlisten = ['127.0.0.1:8443']\n\
                    [https.acme]\nnames = ['a.example']\nagree_to_terms = true\n\
                    directory = 'https://ca.example:9000/dir'\ndirectory_ca = '/etc/adit/ca.pem'\n\
                    external_account = { id = 'kid-1', key_file = '/etc/adit/eab.key' }";
        std::fs::write(&file, acme).expect("written");
        let config = read(file);
        let places = config.outgoing_https();
        let places: Vec<_> =
            places.iter().map(|at| (at.setting, at.host.as_str(), at.port)).collect();
        assert_eq!(places, [("https.acme.directory", "ca.example", 9000)]);
        let files = [Path::new("/etc/adit/ca.pem"), Path::new("/etc/adit/eab.key")];
        assert_eq!(config.provider_files(), files);
    }
}
