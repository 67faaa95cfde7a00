//! The table `[jwt]` of the file: the tokens that count.

use std::{collections::BTreeMap, fmt, path::Path};

use common::machine::config_text::WrittenPath;
use proto::identity::Name;
use serde::Deserialize;
use toml::Spanned;

use crate::{
    jwt::{GroupRoles, JwksSource, JwtSettings, ProviderTrust, ProviderUrl},
    policy::roles::Rules,
    state::register::default_role,
};

/// The most audiences.
const MOST: usize = 32;

/// The table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JwtFile {
    issuer: ProviderUrl,
    audience: Audience,
    jwks: Option<JwksSource>,
    user_claim: Option<Claim>,
    groups_claim: Option<Claim>,
    roles: Option<RolesFile>,
    #[serde(default)]
    tunnel: bool,
    ca: Option<Spanned<WrittenPath>>,
}

/// The roles of groups. Their order is that of the file, which the places tell.
pub(super) type RolesFile = BTreeMap<String, Spanned<Name>>;

/// A name, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "OneOrMore")]
struct Audience(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a name, or a list of names")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl TryFrom<OneOrMore> for Audience {
    type Error = String;

    fn try_from(given: OneOrMore) -> Result<Self, String> {
        let all = match given {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(all) => all,
        };
        if all.is_empty() || all.len() > MOST || all.iter().any(String::is_empty) {
            return Err(format!("name from 1 to {MOST} audiences, none of them empty"));
        }
        Ok(Self(all))
    }
}

/// The name of a claim.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Claim(String);

impl Claim {
    /// The name, or that of the claim in its place.
    pub(super) fn or(claim: Option<Self>, default: &str) -> String {
        claim.map_or_else(|| default.to_owned(), |Self(name)| name)
    }
}

impl TryFrom<String> for Claim {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if name.is_empty() {
            Err("a claim has a name, for example \"email\"")
        } else {
            Ok(Self(name))
        }
    }
}

/// What is wrong in a table of a provider, and its place.
#[derive(Debug)]
pub(super) struct WrongProvider {
    pub(super) at: usize,
    pub(super) why: String,
    /// What cures it besides a change of the file.
    pub(super) cure: Option<String>,
}

impl fmt::Display for WrongProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Whose certificates a provider is believed with.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn trust(
    ca: Option<Spanned<WrittenPath>>,
    dir: &Path,
) -> Result<ProviderTrust, WrongProvider> {
    ca.map_or_else(
        || Ok(ProviderTrust::default()),
        |ca| {
            let wrong = |why| WrongProvider { at: ca.span().start, why, cure: None };
            ProviderTrust::of_file(&ca.get_ref().resolve_in(dir)).map_err(wrong)
        },
    )
}

/// The roles of groups, in the order of the file.
///
/// # Errors
/// The first role that the configuration does not have.
pub(super) fn group_roles(file: RolesFile, rules: &Rules) -> Result<GroupRoles, WrongProvider> {
    let mut roles: Vec<_> = file.into_iter().collect();
    roles.sort_by_key(|(_, role)| role.span().start);
    if let Some((_, role)) = roles.iter().find(|(_, role)| !rules.knows(role.get_ref())) {
        let known: Vec<_> = rules.names().map(|name| format!("`{name}`")).collect();
        let (at, role) = (role.span().start, role.get_ref());
        let why = format!("there is no role `{role}`: the roles are {}", known.join(", "));
        return Err(WrongProvider { at, why, cure: None });
    }
    Ok(GroupRoles(roles.into_iter().map(|(group, role)| (group, role.into_inner())).collect()))
}

impl JwtFile {
    /// The settings. `dir` is where the file is.
    ///
    /// # Errors
    /// A role that the configuration does not have, or a file that cannot be used.
    pub(super) fn settle(self, rules: &Rules, dir: &Path) -> Result<JwtSettings, WrongProvider> {
        let Audience(audience) = self.audience;
        Ok(JwtSettings {
            issuer: self.issuer,
            audience,
            jwks: self.jwks.unwrap_or(JwksSource::Discovery),
            user_claim: Claim::or(self.user_claim, "sub"),
            groups_claim: Claim::or(self.groups_claim, "groups"),
            roles: self.roles.map(|roles| group_roles(roles, rules)).transpose()?,
            default_role: default_role(),
            tunnel: self.tunnel,
            trust: trust(self.ca, dir)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(text: &str) -> Result<JwtSettings, String> {
        let file: JwtFile = toml::from_str(text).map_err(|e| e.to_string())?;
        file.settle(&Rules::default(), Path::new("/etc/adit")).map_err(|e| e.to_string())
    }

    #[test]
    fn only_the_issuer_and_the_audience_have_to_be_named() {
        let settings = settle("issuer = 'https://a.example'\naudience = 'adit'").expect("settings");
        assert_eq!(
            (settings.user_claim.as_str(), settings.groups_claim.as_str()),
            ("sub", "groups")
        );
        assert_eq!((settings.audience, settings.roles), (vec!["adit".to_owned()], None));
        assert!(settings.jwks == JwksSource::Discovery && !settings.tunnel);
        for (wrong, says) in [
            ("issuer = 'https://a.example'", "missing field `audience`"),
            ("audience = 'adit'", "missing field `issuer`"),
            ("issuer = 'http://a.example'\naudience = 'adit'", "only on this machine"),
            ("issuer = 'https://a.example'\naudience = []", "name from 1 to 32"),
            ("issuer = 'https://a.example'\naudience = ['']", "name from 1 to 32"),
            ("issuer = 'https://a.example'\naudience = 1", "expected a name, or a list"),
            ("issuer = 'https://a.example'\naudience = 'x'\nuser_claim = ''", "for example"),
            ("issuer = 'https://a.example'\naudience = 'x'\njwks = 'a.json'", "not a URL"),
            ("issuer = 'https://a.example'\naudience = 'x'\nroles = { a = 'x' }", "no role `x`"),
            ("issuer = 'https://a.example'\naudience = 'x'\nca = '/nowhere/ca.pem'", "as `ca`"),
        ] {
            let why = settle(wrong).expect_err(wrong);
            assert!(why.contains(says), "{wrong}: {why}");
        }
    }

    #[test]
    fn groups_count_in_the_order_of_the_file() {
        let text = "issuer = 'https://a.example'\naudience = 'adit'\n\
                    roles = { z = 'admin', a = 'infer', m = 'models' }";
        let GroupRoles(roles) = settle(text).expect("settings").roles.expect("roles");
        let names: Vec<_> = roles.iter().map(|(group, _)| group.as_str()).collect();
        assert_eq!(names, ["z", "a", "m"]);
    }
}
