//! What the claims of a token say (RFC 7519 section 4), and whether that counts. Without a clock: the
//! time is that of the caller.

use proto::identity::{DeviceId, Name, UserName};
use serde_json::Value;

use super::{fault::TokenFault, keys::Claims, settings::JwtSettings};

/// How far the clocks of a provider and of this machine may differ, in seconds.
pub(crate) const SKEW: i64 = 60;
/// The most groups of one user.
const MOST_GROUPS: usize = 1000;

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenHolder {
    /// Follows from the issuer and the user, so that the limits of a user hold for every token.
    pub(crate) id: DeviceId,
    /// The user's name with `_` in place of what a name cannot have.
    pub(crate) name: Name,
    pub(crate) user: UserName,
    pub(crate) groups: Vec<String>,
    pub(crate) issuer: String,
    pub(crate) audience: Vec<String>,
    /// Its last second, in Unix time, with what clocks may differ.
    pub(crate) not_after: i64,
}

impl TokenHolder {
    /// The fault of the token at `now`, in Unix time, after its last second.
    pub(crate) fn expired(&self, now: i64) -> TokenFault {
        TokenFault::Expired(now - (self.not_after - SKEW))
    }
}

/// Who somebody is, by the claims of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenPerson {
    pub(crate) user: UserName,
    pub(crate) groups: Vec<String>,
}

/// Checks for whom a token was issued, by whom, and when it counts. Returns its last second, with
/// what clocks may differ.
///
/// # Errors
/// Why it does not count.
pub(super) fn check(claims: &Claims, settings: &JwtSettings, now: i64) -> Result<i64, TokenFault> {
    let not_after = time(claims, "exp").ok_or(TokenFault::Endless)?.saturating_add(SKEW);
    is_for_us(issuer(claims), &texts(claims.get("aud")), settings)?;
    if now > not_after {
        return Err(TokenFault::Expired(now - (not_after - SKEW)));
    }
    if let Some(begins) = time(claims, "nbf").filter(|begins| now < begins.saturating_sub(SKEW)) {
        return Err(TokenFault::Early(begins.saturating_sub(now)));
    }
    Ok(not_after)
}

/// Who somebody is, by claims that count.
///
/// # Errors
/// That they name no user, or one whose address is not verified.
pub(super) fn person(claims: &Claims, settings: &JwtSettings) -> Result<TokenPerson, TokenFault> {
    let user = find(claims, &settings.user_claim).and_then(Value::as_str);
    let user = user.and_then(|user| user.parse().ok());
    let user = user.ok_or_else(|| TokenFault::User(settings.user_claim.clone()))?;
    if settings.user_claim == "email" && !claims.get("email_verified").is_none_or(is_true) {
        return Err(TokenFault::Unverified);
    }
    Ok(TokenPerson { user, groups: texts(find(claims, &settings.groups_claim)) })
}

/// Whether the claims have all that the settings ask of a person.
pub(super) fn are_complete(claims: &Claims, settings: &JwtSettings) -> bool {
    let has = |name| find(claims, name).is_some();
    has(&settings.user_claim) && (settings.roles.is_none() || has(&settings.groups_claim))
}

/// Some providers write a truth value as a text.
fn is_true(value: &Value) -> bool {
    value.as_bool() == Some(true) || value.as_str() == Some("true")
}

fn issuer(claims: &Claims) -> &str {
    claims.get("iss").and_then(Value::as_str).unwrap_or_default()
}

/// Judges claims whose signature was verified. `now` is Unix time.
///
/// # Errors
/// Why they do not count.
pub(super) fn judge(
    claims: &Claims,
    settings: &JwtSettings,
    now: i64,
) -> Result<TokenHolder, TokenFault> {
    let not_after = check(claims, settings, now)?;
    let TokenPerson { user, groups } = person(claims, settings)?;
    let holder = TokenHolder {
        id: settings.holder_id(&user),
        name: name(&user),
        user,
        groups,
        issuer: issuer(claims).to_owned(),
        audience: texts(claims.get("aud")),
        not_after,
    };
    role(&holder, settings)?;
    Ok(holder)
}

/// The role of a holder by these settings.
///
/// # Errors
/// Why the token does not count by them.
pub(super) fn role<'s>(
    holder: &TokenHolder,
    settings: &'s JwtSettings,
) -> Result<&'s Name, TokenFault> {
    is_for_us(&holder.issuer, &holder.audience, settings)?;
    Ok(role_of(&holder.groups, settings)?.unwrap_or(&settings.default_role))
}

/// The role of somebody in these groups; `None` if groups decide nothing.
///
/// # Errors
/// That none of them has a role.
pub(super) fn role_of<'s>(
    groups: &[String],
    settings: &'s JwtSettings,
) -> Result<Option<&'s Name>, TokenFault> {
    let Some(roles) = &settings.roles else { return Ok(None) };
    let role = roles.role(groups);
    role.map(Some).ok_or_else(|| TokenFault::Group(settings.groups_claim.clone()))
}

fn is_for_us(issuer: &str, audience: &[String], settings: &JwtSettings) -> Result<(), TokenFault> {
    if issuer != settings.issuer.as_str() {
        return Err(TokenFault::Issuer(settings.issuer.to_string()));
    }
    if !audience.iter().any(|named| settings.audience.contains(named)) {
        return Err(TokenFault::Audience(settings.audience.join("` or `")));
    }
    Ok(())
}

/// A claim: by its name, or by the names on the way to it with a `.` between them.
fn find<'c>(claims: &'c Claims, name: &str) -> Option<&'c Value> {
    claims.get(name).or_else(|| {
        let mut names = name.split('.');
        let first = claims.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    })
}

/// A text, or a list of texts.
pub(crate) fn texts(value: Option<&Value>) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(text).take(MOST_GROUPS).collect(),
        Some(value) => text(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// A time in whole seconds. It may have a fraction (RFC 7519 section 2).
pub(crate) fn time(claims: &Claims, name: &str) -> Option<i64> {
    let value = claims.get(name)?;
    value.as_i64().or_else(|| {
        let seconds = value.as_f64()?;
        // A number that is too large for a time is one that never comes.
        (0.0..1e15).contains(&seconds).then_some(seconds as i64)
    })
}

fn name(user: &UserName) -> Name {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let text: String = user.as_str().chars().map(plain).take(63).collect();
    text.parse().unwrap_or_else(|_| "user".parse().expect("a name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jwt::settings::{GroupRoles, JwksSource};

    const NOW: i64 = 1_800_000_000;

    fn settings() -> JwtSettings {
        let role = |name: &str| name.parse().expect("a role");
        JwtSettings {
            issuer: "https://login.example.com".parse().expect("an issuer"),
            audience: vec!["adit".into(), "gpu".into()],
            jwks: JwksSource::Discovery,
            user_claim: "email".into(),
            groups_claim: "groups".into(),
            roles: Some(GroupRoles(vec![
                ("admins".into(), role("admin")),
                ("users".into(), role("infer")),
            ])),
            default_role: role("infer"),
            tunnel: false,
            trust: Default::default(),
        }
    }

    fn judged(change: Value) -> Result<TokenHolder, TokenFault> {
        let mut claims = json!({
            "iss": "https://login.example.com",
            "aud": "adit",
            "exp": NOW + 300,
            "sub": "auth0|17",
            "email": "alice+gpu@example.com",
            "groups": ["users"],
        });
        for (name, value) in change.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        judge(claims.as_object().expect("an object"), &settings(), NOW)
    }

    #[test]
    fn a_good_token_names_its_holder() {
        let holder = judged(json!({})).expect("good");
        assert_eq!(holder.user.as_str(), "alice+gpu@example.com");
        assert_eq!(holder.name.as_str(), "alice_gpu_example.com");
        assert_eq!(role(&holder, &settings()).map(Name::as_str), Ok("infer"));
        let other = judged(json!({ "email": "bob@example.com" })).expect("good");
        assert_ne!(holder.id, other.id);
        let later = judged(json!({ "exp": NOW + 900, "aud": ["x", "gpu"] })).expect("good");
        assert_eq!(holder.id, later.id, "the limits of a user hold for each token");
    }

    #[test]
    fn each_claim_is_judged() {
        use TokenFault::{Audience, Early, Endless, Expired, Group, Issuer, Unverified, User};
        let issuer = || Issuer("https://login.example.com".into());
        let audience = || Audience("adit` or `gpu".into());
        let user = || User("email".into());
        let group = || Group("groups".into());
        for (change, fault) in [
            (json!({ "iss": "https://login.example.com/" }), Some(issuer())),
            (json!({ "iss": null }), Some(issuer())),
            (json!({ "iss": ["https://login.example.com"] }), Some(issuer())),
            (json!({ "aud": "other" }), Some(audience())),
            (json!({ "aud": "Adit" }), Some(audience())),
            (json!({ "aud": [] }), Some(audience())),
            (json!({ "aud": null }), Some(audience())),
            (json!({ "aud": ["other", "gpu"] }), None),
            (json!({ "exp": null }), Some(Endless)),
            (json!({ "exp": "tomorrow" }), Some(Endless)),
            (json!({ "exp": -1 }), Some(Expired(NOW + 1))),
            (json!({ "exp": NOW - 60 }), None),
            (json!({ "exp": NOW - 61 }), Some(Expired(61))),
            (json!({ "exp": 1e300 }), Some(Endless)),
            (json!({ "exp": i64::MAX }), None),
            (json!({ "exp": NOW as f64 + 0.5 }), None),
            (json!({ "nbf": NOW + 60 }), None),
            (json!({ "nbf": NOW + 61 }), Some(Early(61))),
            (json!({ "nbf": i64::MAX }), Some(Early(i64::MAX - NOW))),
            (json!({ "email": null }), Some(user())),
            (json!({ "email": "" }), Some(user())),
            (json!({ "email": "a b" }), Some(user())),
            (json!({ "email": "\u{430}lice@example.com" }), Some(user())),
            (json!({ "email": ["a@example.com"] }), Some(user())),
            (json!({ "email_verified": false }), Some(Unverified)),
            (json!({ "email_verified": "false" }), Some(Unverified)),
            (json!({ "email_verified": "True" }), Some(Unverified)),
            (json!({ "email_verified": null }), Some(Unverified)),
            (json!({ "email_verified": 1 }), Some(Unverified)),
            (json!({ "email_verified": true }), None),
            (json!({ "email_verified": "true" }), None),
            (json!({ "groups": [] }), Some(group())),
            (json!({ "groups": null }), Some(group())),
            (json!({ "groups": ["Users", "use", "users2", 7] }), Some(group())),
            (json!({ "groups": "users" }), None),
        ] {
            let judged = judged(change.clone());
            assert_eq!(judged.err(), fault, "{change}");
        }
    }

    #[test]
    fn settings_that_change_hold_for_tokens_that_were_good() {
        let holder = judged(json!({})).expect("good");
        let mut now = settings();
        now.roles = Some(GroupRoles(vec![("admins".into(), "admin".parse().expect("a role"))]));
        assert_eq!(role(&holder, &now), Err(TokenFault::Group("groups".into())));
        now.roles = None;
        assert_eq!(role(&holder, &now).map(Name::as_str), Ok("infer"));
        now.audience = vec!["gpu".into()];
        assert!(matches!(role(&holder, &now), Err(TokenFault::Audience(_))));
        now.issuer = "https://other.example.com".parse().expect("an issuer");
        assert!(matches!(role(&holder, &now), Err(TokenFault::Issuer(_))));
    }

    #[test]
    fn a_claim_may_lie_within_another_one() {
        let claims = json!({
            "realm_access": { "roles": ["a"] },
            "https://example.com/groups": ["b"],
            "x.y": ["c"],
            "x": { "y": ["d"] },
        });
        let claims = claims.as_object().expect("an object");
        let found = |name: &str| texts(find(claims, name));
        assert_eq!(found("realm_access.roles"), ["a"]);
        assert_eq!(found("https://example.com/groups"), ["b"]);
        assert_eq!(found("x.y"), ["c"]);
        for absent in ["", ".", "x.z", "x.y.z", "realm_access.roles.0"] {
            assert!(found(absent).is_empty(), "{absent}");
        }
    }
}
