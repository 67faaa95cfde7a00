//! The table `[oidc]` of the file: the provider at which people sign in.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use common::machine::{
    config_text::WrittenPath,
    files::{self, FileError},
    process::parse_time,
};
use proto::typed;
use serde::Deserialize;
use toml::Spanned;
use zeroize::Zeroizing;

use super::jwt::{Claim, RolesFile, WrongProvider, group_roles, trust};
use crate::{
    jwt::{JwksSource, JwtSettings, ProviderUrl},
    oidc::{ClientSecret, Flow, MAX_LIFE, OidcSettings, max_life},
    policy::roles::Rules,
    state::register::default_role,
};

/// What is asked for unless configured otherwise.
const SCOPES: [&str; 3] = ["openid", "email", "offline_access"];
/// The most scopes.
const MOST: usize = 32;

/// The table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OidcFile {
    issuer: ProviderUrl,
    client_id: ClientId,
    client_secret_file: Option<Spanned<WrittenPath>>,
    scopes: Option<Scopes>,
    flow: Option<Flow>,
    user_claim: Option<Claim>,
    groups_claim: Option<Claim>,
    roles: Option<RolesFile>,
    max_life: Option<MaxLife>,
    ca: Option<Spanned<WrittenPath>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct ClientId(String);

impl TryFrom<String> for ClientId {
    type Error = &'static str;

    /// RFC 6749 appendix A.1.
    fn try_from(id: String) -> Result<Self, Self::Error> {
        if !id.is_empty() && id.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            Ok(Self(id))
        } else {
            Err("`client_id` is what the provider calls this server")
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Scopes(String);

impl TryFrom<Vec<String>> for Scopes {
    type Error = &'static str;

    /// RFC 6749 appendix A.4.
    fn try_from(all: Vec<String>) -> Result<Self, Self::Error> {
        let is_scope = |text: &String| {
            let mut bytes = text.bytes();
            !text.is_empty() && bytes.all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
        };
        if all.len() > MOST || !all.iter().all(is_scope) {
            return Err("a scope is a word, for example \"openid\"");
        }
        let openid = (!all.iter().any(|scope| scope == "openid")).then_some("openid");
        let all: Vec<_> = openid.into_iter().chain(all.iter().map(String::as_str)).collect();
        Ok(Self(all.join(" ")))
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct MaxLife(Duration);

impl TryFrom<String> for MaxLife {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let life = parse_time(&text).map_err(|e| e.to_string())?;
        max_life(life).map(Self).map_err(str::to_owned)
    }
}

impl OidcFile {
    /// The settings. `dir` is where the file is.
    ///
    /// # Errors
    /// A role that the configuration does not have, or a file that cannot be used.
    pub(super) fn settle(self, rules: &Rules, dir: &Path) -> Result<OidcSettings, WrongProvider> {
        let ClientId(client_id) = self.client_id;
        let secret_file =
            self.client_secret_file.map(|path| (path.get_ref().resolve_in(dir), path.span().start));
        let scopes = self.scopes.map_or_else(|| SCOPES.join(" "), |Scopes(scopes)| scopes);
        Ok(OidcSettings {
            secret: secret_file.as_ref().map(secret).transpose()?,
            secret_file: secret_file.map(|(path, _)| path),
            scopes,
            flow: self.flow,
            max_life: self.max_life.map_or(MAX_LIFE, |MaxLife(life)| life),
            tokens: JwtSettings {
                issuer: self.issuer,
                audience: vec![client_id.clone()],
                jwks: JwksSource::Discovery,
                user_claim: Claim::or(self.user_claim, "sub"),
                groups_claim: Claim::or(self.groups_claim, "groups"),
                roles: self.roles.map(|roles| group_roles(roles, rules)).transpose()?,
                default_role: default_role(),
                tunnel: false,
                trust: trust(self.ca, dir)?,
            },
            client_id,
        })
    }
}

/// Reads the secret, which only its owner may read. `at` is where the file names its path.
fn secret((path, at): &(PathBuf, usize)) -> Result<ClientSecret, WrongProvider> {
    let wrong = |why: String, cure| WrongProvider { at: *at, why, cure };
    let text = files::read(path)
        .map_err(|e| wrong(format!("`client_secret_file`: {e}"), Some(cure(&e))))?;
    let text = std::str::from_utf8(&text).map(str::trim).unwrap_or_default();
    if text.is_empty() || text.chars().any(char::is_control) {
        let why = format!(
            "`client_secret_file`: `{}` has no secret: it is one line of text",
            path.display()
        );
        return Err(wrong(why, None));
    }
    Ok(ClientSecret::new(Zeroizing::new(text.to_owned())))
}

/// What gives the secret to this server, if its file cannot be read.
fn cure(error: &FileError) -> String {
    match error {
        FileError::Io { path, .. } if error.is_not_found() => format!(
            "put the secret there: `install -D -m 600 /dev/stdin {}`, then paste it and press Enter and Ctrl-D",
            typed::quoted(&path.display().to_string())
        ),
        _ => error.hint_for("`client_secret_file`"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn settle(text: &str) -> Result<OidcSettings, String> {
        let file: OidcFile = toml::from_str(text).map_err(|e| e.to_string())?;
        file.settle(&Rules::default(), Path::new("/etc/adit")).map_err(|e| e.to_string())
    }

    const LEAST: &str = "issuer = 'https://a.example'\nclient_id = 'adit'\n";

    #[test]
    fn only_the_issuer_and_the_client_have_to_be_named() {
        let settings = settle(LEAST).expect("settings");
        assert_eq!(settings.scopes, "openid email offline_access");
        assert_eq!((settings.max_life, settings.flow), (MAX_LIFE, None));
        assert_eq!(settings.tokens.audience, ["adit"]);
        assert!(settings.secret.is_none() && settings.tokens.roles.is_none());
        let scopes = |list| settle(&format!("{LEAST}scopes = {list}")).expect("settings").scopes;
        assert_eq!(scopes("['groups']"), "openid groups");
        assert_eq!(scopes("['email', 'openid']"), "email openid");
        for (wrong, says) in [
            ("issuer = 'https://a.example'", "missing field `client_id`"),
            ("client_id = 'adit'", "missing field `issuer`"),
            ("issuer = 'http://a.example'\nclient_id = 'x'", "only on this machine"),
            ("issuer = 'https://a.example'\nclient_id = ''", "what the provider calls"),
        ] {
            let why = settle(wrong).expect_err(wrong);
            assert!(why.contains(says), "{wrong}: {why}");
        }
        for (wrong, says) in [
            ("scopes = ['a b']", "a scope is a word"),
            ("scopes = ['']", "a scope is a word"),
            ("flow = 'password'", "unknown variant `password`"),
            ("max_life = '4m'", "between 5m and 30d"),
            ("max_life = '31d'", "between 5m and 30d"),
            ("max_life = 'long'", "long"),
            ("roles = { a = 'x' }", "no role `x`"),
            ("ca = '/nowhere/ca.pem'", "as `ca`"),
            ("client_secret_file = '/nowhere/secret'", "`client_secret_file`"),
            ("client_secret = 'x'", "unknown field `client_secret`"),
        ] {
            let why = settle(&format!("{LEAST}{wrong}")).expect_err(wrong);
            assert!(why.contains(says), "{wrong}: {why}");
        }
    }

    #[test]
    fn the_cure_of_an_unreadable_secret_is_about_its_own_file() {
        use std::io::ErrorKind;
        let told = |kind: ErrorKind| cure(&FileError::io("read", "/etc/ann's")(kind.into()));
        let missing = told(ErrorKind::NotFound);
        assert!(missing.contains("`install -D -m 600 /dev/stdin '/etc/ann'\\''s'`"), "{missing}");
        let refused = told(ErrorKind::PermissionDenied);
        assert!(refused.contains("owner of `/etc/ann's`"), "{refused}");
        assert!(refused.contains("with `client_secret_file`"), "{refused}");
    }

    #[test]
    fn the_secret_is_in_a_file_that_nobody_else_can_read() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let path = tmp.path().join("secret");
        let table = format!("{LEAST}client_secret_file = '{}'", path.display());
        let write = |text: &str, mode| {
            std::fs::write(&path, text).expect("written");
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, mode).expect("a mode");
        };
        write("s3cret\n", 0o600);
        let settings = settle(&table).expect("settings");
        let same = ClientSecret::new("s3cret".to_owned().into());
        assert_eq!(settings.secret, Some(same));
        assert!(!format!("{settings:?}").contains("s3cret"));
        for (text, mode) in [("s3cret", 0o644), ("", 0o600), ("two\nlines", 0o600)] {
            write(text, mode);
            let why = settle(&table).expect_err("refused");
            assert!(why.contains("`client_secret_file`") && !why.contains("s3cret"), "{why}");
        }
    }
}
