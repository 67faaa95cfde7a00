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
pub(crate) struct OutgoingPlace {
    /// The setting that names it.
    pub(crate) setting: &'static str,
    pub(crate) port: u16,
}

impl Config {
    /// Where people's sign-ins and tokens are checked. Other settings of these are in force as soon as
    /// the file is read again. A provider may send the server to other hosts, for its keys or its
    /// tokens: on the port 443, or on the issuer's own port.
    pub(crate) fn provider_places(&self) -> Vec<OutgoingPlace> {
        let place = |setting, at: &ProviderUrl| {
            Some(OutgoingPlace { setting, port: at.url().port_or_known_default()? })
        };
        let of_jwt = |jwt: &JwtSettings| match &jwt.jwks {
            JwksSource::Discovery => place("jwt.issuer", &jwt.issuer),
            JwksSource::Url(at) => place("jwt.jwks", at),
            JwksSource::File(_) => None,
        };
        let of_oidc = self.oidc.as_ref().and_then(|it| place("oidc.issuer", &it.tokens.issuer));
        self.jwt.as_ref().and_then(of_jwt).into_iter().chain(of_oidc).collect()
    }

    /// Where a certificate is ordered, which begins with a start only. The directory of a certificate
    /// authority may send the server to other hosts likewise.
    pub(crate) fn acme_place(&self) -> Option<OutgoingPlace> {
        let port = self.acme()?.directory.port();
        Some(OutgoingPlace { setting: "https.acme.directory", port })
    }

    /// The files that are read for [`Config::provider_places`], while the server runs and when the
    /// configuration is read again.
    pub(crate) fn provider_files(&self) -> Vec<&Path> {
        let tokens = self.jwt.iter().chain(self.oidc.iter().map(|it| &it.tokens));
        let of_tokens = tokens.flat_map(|tokens| {
            let keys = match &tokens.jwks {
                JwksSource::File(path) => Some(path.as_path()),
                _ => None,
            };
            keys.into_iter().chain(tokens.trust.file())
        });
        let secret = self.oidc.as_ref().and_then(|it| it.secret_file.as_deref());
        of_tokens.chain(secret).collect()
    }

    /// The files that are read for [`Config::acme_place`], while the server runs.
    pub(crate) fn acme_files(&self) -> impl Iterator<Item = &Path> {
        self.acme().into_iter().flat_map(AcmeSettings::files)
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
        let place = |setting, port| OutgoingPlace { setting, port };
        let both = [place("jwt.issuer", 8443), place("oidc.issuer", 443)];
        assert_eq!(config.provider_places(), both);
        assert_eq!((config.acme_place(), config.acme_files().count()), (None, 0));
        assert!(config.provider_files().is_empty());
        let jwks =
            "[jwt]\nissuer = 'https://a.example'\naudience = 'adit'\njwks = '/etc/adit/jwks.json'";
        std::fs::write(&file, jwks).expect("written");
        let config = read(file.clone());
        assert!(config.provider_places().is_empty());
        assert_eq!(config.provider_files(), [Path::new("/etc/adit/jwks.json")]);
        let acme = "[https]\nlisten = ['127.0.0.1:8443']\n\
                    [https.acme]\nnames = ['a.example']\nagree_to_terms = true\n\
                    directory = 'https://ca.example:9000/dir'\ndirectory_ca = '/etc/adit/ca.pem'\n\
                    external_account = { id = 'kid-1', key_file = '/etc/adit/eab.key' }";
        std::fs::write(&file, acme).expect("written");
        let config = read(file);
        assert_eq!(config.acme_place(), Some(place("https.acme.directory", 9000)));
        assert!(config.provider_places().is_empty() && config.provider_files().is_empty());
        let files = [Path::new("/etc/adit/ca.pem"), Path::new("/etc/adit/eab.key")];
        assert!(config.acme_files().eq(files));
    }
}
