//! The settings of `[jwt]`: who issues tokens, for whom they have to be, and what their claims mean.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use proto::{
    crypto::sha256,
    human::misleads,
    identity::{DeviceId, Name, UserName},
};
use reqwest::Url;
use serde::Deserialize;

use super::fetch::{ProviderTrust, plain};

/// The longest URL of a provider, in bytes.
const LONGEST_URL: usize = 2048;

/// The settings of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JwtSettings {
    /// The claim `iss`, exactly.
    pub(crate) issuer: ProviderUrl,
    /// What the claim `aud` has to name: one of these.
    pub(crate) audience: Vec<String>,
    pub(crate) jwks: JwksSource,
    /// The claim that names the user.
    pub(crate) user_claim: String,
    /// The claim that names the user's groups.
    pub(crate) groups_claim: String,
    /// The roles of groups; `None` if every token has the default role.
    pub(crate) roles: Option<GroupRoles>,
    pub(crate) default_role: Name,
    /// Whether a token narrows what a device may in its tunnel.
    pub(crate) tunnel: bool,
    /// Whose certificates the provider is believed with.
    pub(crate) trust: ProviderTrust,
}

impl JwtSettings {
    /// By which id all tokens of a user are counted. It follows from the issuer and the user.
    pub(crate) fn holder_id(&self, user: &UserName) -> DeviceId {
        let hash = sha256(format!("{}\n{user}", self.issuer).as_bytes());
        u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]).into()
    }
}

/// The address of a provider: https, or http on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ProviderUrl {
    /// As it was written: the claim `iss` is compared with it character by character.
    text: String,
    url: Url,
}

/// Where the keys of a provider are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum JwksSource {
    /// Where the provider says, in its document below `/.well-known/`.
    Discovery,
    Url(ProviderUrl),
    File(PathBuf),
}

/// The roles of groups, in the order in which they were written: the first one counts that a token
/// names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct GroupRoles(pub(crate) Vec<(String, Name)>);

impl GroupRoles {
    /// The role of somebody in these groups.
    pub(crate) fn role(&self, groups: &[String]) -> Option<&Name> {
        self.0.iter().find(|(group, _)| groups.contains(group)).map(|(_, role)| role)
    }
}

impl ProviderUrl {
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// An address that the provider here names. It is https if this one is, so that a provider that is
    /// reached safely leads nowhere else.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub(crate) fn named(&self, text: &str) -> Result<Self, String> {
        let named = text.parse::<Self>()?;
        if self.url.scheme() == "https" && named.url.scheme() != "https" {
            return Err(format!("it names `{}`, which is not https as `{self}` is", plain(text)));
        }
        Ok(named)
    }
}

impl fmt::Display for ProviderUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ProviderUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write it like https://login.example.com (http:// only on this machine)";
        let shown = plain(text);
        let url = Url::parse(text).map_err(|e| format!("`{shown}` is not a URL ({e}): {form}"))?;
        let host = url.host_str().unwrap_or_default();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_here = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
        let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_here);
        let is_plain = text.len() <= LONGEST_URL && !text.chars().any(misleads);
        if !is_safe || !is_plain || !url.username().is_empty() || url.password().is_some() {
            return Err(format!("`{shown}` is not an address of a provider: {form}"));
        }
        Ok(Self { text: text.to_owned(), url })
    }
}

impl TryFrom<String> for ProviderUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for JwksSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.starts_with('/') {
            Ok(Self::File(text.into()))
        } else {
            text.parse().map(Self::Url)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_asked_over_https_or_on_this_machine() {
        for (text, is_good) in [
            ("https://login.example.com/realms/gpu", true),
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080/", true),
            ("http://localhost", true),
            ("http://login.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("https://user:word@login.example.com", false),
            ("file:///etc/passwd", false),
            ("login.example.com", false),
            ("https://login.example.com/\u{1b}[2J", false),
            ("https://login.example.com/\u{202e}", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<ProviderUrl>().is_ok(), is_good, "{text}");
        }
        let source = |text: &str| JwksSource::try_from(text.to_owned());
        assert_eq!(
            source("/etc/adit/jwks.json"),
            Ok(JwksSource::File("/etc/adit/jwks.json".into()))
        );
        assert!(matches!(source("https://a.example/jwks"), Ok(JwksSource::Url(_))));
        assert!(source("jwks.json").is_err());
        let long = format!("https://login.example.com/{}", "\u{1b}a".repeat(LONGEST_URL));
        let refused = long.parse::<ProviderUrl>().expect_err("too long");
        assert!(refused.len() < 400 && !refused.contains('\u{1b}'), "{refused}");
    }

    #[test]
    fn a_provider_that_is_asked_over_https_names_nothing_else() {
        let provider = |text: &str| text.parse::<ProviderUrl>().expect("a provider");
        for (issuer, named, is_good) in [
            ("https://a.example", "https://a.example/jwks", true),
            ("https://a.example", "https://b.example/jwks", true),
            ("https://a.example", "http://127.0.0.1/jwks", false),
            ("https://a.example", "http://localhost/jwks", false),
            ("https://127.0.0.1", "http://127.0.0.1/jwks", false),
            ("http://127.0.0.1", "http://127.0.0.1/jwks", true),
            ("http://127.0.0.1", "https://a.example/jwks", true),
            ("http://127.0.0.1", "http://a.example/jwks", false),
            ("https://a.example", "/jwks", false),
        ] {
            let named = provider(issuer).named(named);
            assert_eq!(named.is_ok(), is_good, "{issuer}: {named:?}");
        }
    }

    #[test]
    fn the_first_group_of_the_settings_that_a_token_names_decides_its_role() {
        let role = |name: &str| name.parse::<Name>().expect("a name");
        let roles = GroupRoles(vec![("b".into(), role("admin")), ("a".into(), role("infer"))]);
        let of = |groups: &[&str]| {
            let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
            roles.role(&groups).map(Name::as_str)
        };
        assert_eq!(of(&["a", "b"]), Some("admin"));
        assert_eq!(of(&["x", "a"]), Some("infer"));
        assert_eq!(of(&["B"]), None);
        assert_eq!(of(&[]), None);
    }
}
