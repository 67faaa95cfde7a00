//! What `authorize` has answered, without IO.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use hyper::{
    StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use proto::{
    identity::{Name, UserName},
    ollama::{answer::ServiceAnswer, model::ModelPattern},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    limits::LimitSettings,
    record::{Granted, Limits},
};

/// The longest body that is read, in bytes.
pub(super) const MOST_BODY: usize = 16 << 10;
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What an answer that allows a request says beside that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Grant {
    /// The role that the request has, in place of the device's own.
    pub role: Option<Name>,
    /// The only models that it may use, besides the lists that hold for the device and the role.
    pub models: Option<Vec<ModelPattern>>,
    /// The person who makes the request.
    pub user: Option<UserName>,
    /// Limits of the person, or of the device or key, besides those of the configuration.
    pub limits: Option<GrantedLimits>,
}

/// Limits in an answer. They can lower those of the configuration, and not remove them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantedLimits(Limits);

impl<'de> Deserialize<'de> for GrantedLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LimitsVisitor)
    }
}

/// Reads an object only: what is derived reads a list, too.
struct LimitsVisitor;

impl<'de> Visitor<'de> for LimitsVisitor {
    type Value = GrantedLimits;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with limits")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GrantedLimits, A::Error> {
        let settings = LimitSettings::deserialize(MapAccessDeserializer::new(map))?;
        settings.besides_others().map(GrantedLimits).map_err(de::Error::custom)
    }
}

impl FromStr for GrantedLimits {
    type Err = String;

    /// `at_once=2, body=1MiB`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = serde_json::Map::new();
        for limit in text.split(',').map(str::trim).filter(|limit| !limit.is_empty()) {
            let (name, value) = limit
                .split_once('=')
                .ok_or_else(|| format!("`{limit}` is not written as `at_once=2`"))?;
            let (name, value) = (name.trim(), value.trim());
            let number = value.parse::<i64>().map(serde_json::Value::from);
            let value = number.unwrap_or_else(|_| value.into());
            if all.insert(name.to_owned(), value).is_some() {
                return Err(format!("`{name}` is there twice"));
            }
        }
        serde_json::from_value(all.into()).map_err(|e| e.to_string())
    }
}

impl Grant {
    /// What concerns limits; `None` if the answer says nothing of them.
    pub(crate) fn of_limits(&self) -> Option<Arc<Granted>> {
        let limits = self.limits.map(|GrantedLimits(limits)| limits);
        (self.user.is_some() || limits.is_some()).then(|| {
            Arc::new(Granted { user: self.user.clone(), limits: limits.unwrap_or_default() })
        })
    }
}

/// An answer that denies: 401 or 403.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: u16,
    /// What the application gets of it.
    pub answer: Arc<ServiceAnswer>,
}

/// A yes with its grant, or a no.
pub(super) type Verdict = Result<Arc<Grant>, Arc<Refusal>>;

/// Whether the body says anything to us.
pub(super) fn has_body(status: StatusCode, fields: &HeaderMap) -> bool {
    !status.is_success() || is_json(fields)
}

fn is_json(fields: &HeaderMap) -> bool {
    let kind = fields.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Reads an answer. `body` is `None` if it is longer than [`MOST_BODY`].
///
/// # Errors
/// What is wrong with an answer that neither allows nor denies.
pub(super) fn read(
    status: StatusCode,
    fields: &HeaderMap,
    body: Option<&[u8]>,
) -> Result<Verdict, String> {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Ok(Err(Arc::new(refusal(status, fields, body))))
        }
        status if status.is_success() => Ok(Ok(Arc::new(grant(fields, body)?))),
        status => Err(format!("it answered {status}")),
    }
}

fn refusal(status: StatusCode, fields: &HeaderMap, body: Option<&[u8]>) -> Refusal {
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let content_type =
        fields.get(CONTENT_TYPE).and_then(text).unwrap_or_else(|| "text/plain".to_owned());
    let challenges = fields.get_all(WWW_AUTHENTICATE).iter().filter_map(text).collect();
    let answer =
        ServiceAnswer { content_type, challenges, body: body.unwrap_or_default().to_owned() };
    Refusal { status: status.as_u16(), answer: Arc::new(answer) }
}

/// A header field counts more than the body.
fn grant(fields: &HeaderMap, body: Option<&[u8]>) -> Result<Grant, String> {
    let mut grant = match body {
        _ if !is_json(fields) => Grant::default(),
        None => return Err(format!("its answer is longer than {MOST_BODY} bytes")),
        Some(body) if body.trim_ascii().is_empty() => Grant::default(),
        Some(body) => serde_json::from_slice(body).map_err(|e| {
            format!("its answer is no JSON with `role`, `models`, `user`, `limits`: {e}")
        })?,
    };
    let text = |name: &str| -> Result<Option<String>, String> {
        let mut all = Vec::new();
        for value in fields.get_all(name) {
            let value = value.to_str().map_err(|_| format!("its `{name}` is not ASCII"))?;
            all.push(value.trim());
        }
        Ok((!all.is_empty()).then(|| all.join(",")))
    };
    let wrong = |name: &str, why: String| format!("its `{name}` is wrong: {why}");
    if let Some(role) = text("X-Adit-Role")? {
        grant.role = Some(role.parse().map_err(|e: &str| wrong("X-Adit-Role", e.to_owned()))?);
    }
    if let Some(user) = text("X-Adit-User")? {
        grant.user = Some(user.parse().map_err(|e: &str| wrong("X-Adit-User", e.to_owned()))?);
    }
    if let Some(models) = text("X-Adit-Models")? {
        let named = models.split(',').map(str::trim).filter(|model| !model.is_empty());
        let models: Result<_, _> = named.map(str::parse).collect();
        grant.models = Some(models.map_err(|e| wrong("X-Adit-Models", e))?);
    }
    if let Some(limits) = text("X-Adit-Limits")? {
        grant.limits = Some(limits.parse().map_err(|e| wrong("X-Adit-Limits", e))?);
    }
    Ok(grant)
}

/// For how long an answer with these fields may be remembered.
pub(super) fn good_for(fields: &HeaderMap) -> Duration {
    let value = fields.get(CACHE_CONTROL).and_then(|value| value.to_str().ok());
    value.map_or(Duration::ZERO, max_age)
}

/// RFC 9111 section 5.2.2. Zero if any directive forbids storing. The crate `headers` compares the
/// names of directives with regard to case, which section 5.2 forbids.
fn max_age(value: &str) -> Duration {
    let mut age = Duration::ZERO;
    for directive in value.split(',').map(|directive| directive.trim().to_ascii_lowercase()) {
        match directive.split_once('=') {
            Some(("max-age", seconds)) => {
                age = seconds.parse().map_or(Duration::ZERO, Duration::from_secs)
            }
            _ if directive == "no-store" || directive == "no-cache" => return Duration::ZERO,
            _ => {}
        }
    }
    age.min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_valid_for_its_max_age() {
        for (value, seconds) in [
            ("max-age=60", 60),
            ("private, MAX-AGE=5", 5),
            ("no-store, max-age=60", 0),
            ("max-age=60, no-cache", 0),
            ("max-age=soon", 0),
            ("max-age=-1", 0),
            ("", 0),
            ("max-age=99999999", 86_400),
        ] {
            assert_eq!(max_age(value), Duration::from_secs(seconds), "{value}");
        }
    }

    fn fields(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let named = all.iter().map(|(name, value)| {
            (hyper::header::HeaderName::from_static(name), HeaderValue::from_static(value))
        });
        named.collect()
    }

    #[test]
    fn a_yes_may_choose_a_role_models_and_a_user() {
        let json = ("content-type", "application/json; charset=utf-8");
        let ok = |of: &[(&'static str, &'static str)], body: &str| {
            read(StatusCode::OK, &fields(of), Some(body.as_bytes()))
                .map(|verdict| verdict.expect("a yes").as_ref().clone())
        };
        let shown = |grant: Grant| {
            let models =
                grant.models.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
            (
                grant.role.map(|role| role.to_string()),
                models.unwrap_or_default().join(" "),
                grant.user.map(|user| user.to_string()),
            )
        };
        assert_eq!(ok(&[], "anything"), Ok(Grant::default()));
        assert_eq!(ok(&[json], ""), Ok(Grant::default()));
        let told = ok(&[json], r#"{"role":"models","models":["llama3*","x"],"user":"ada"}"#);
        let all = (Some("models".to_owned()), "llama3* x".to_owned(), Some("ada".to_owned()));
        assert_eq!(told.map(shown), Ok(all.clone()));
        let by_field =
            [("x-adit-role", "models"), ("x-adit-models", "llama3*, x"), ("x-adit-user", "ada")];
        assert_eq!(ok(&by_field, "").map(shown), Ok(all));
        let both = ok(&[json, ("x-adit-role", "infer")], r#"{"role":"models"}"#);
        assert_eq!(both.map(shown).map(|all| all.0), Ok(Some("infer".to_owned())));
        assert_eq!(ok(&[("x-adit-models", "")], "").map(|g| g.models), Ok(Some(Vec::new())));
    }

    #[test]
    fn an_answer_that_cannot_be_read_allows_nothing() {
        let json = ("content-type", "application/json");
        for (of, body) in [
            (json, r#"{"role":7}"#),
            (json, r#"{"models":"x"}"#),
            (json, "yes"),
            (("x-adit-role", "not a role!"), ""),
        ] {
            assert!(read(StatusCode::OK, &fields(&[of]), Some(body.as_bytes())).is_err(), "{body}");
        }
        assert!(read(StatusCode::OK, &fields(&[json]), None).is_err());
        assert!(read(StatusCode::FOUND, &fields(&[]), Some(b"")).is_err());
    }

    #[test]
    fn a_yes_may_lower_limits_and_what_cannot_be_read_allows_nothing() {
        let json = ("content-type", "application/json");
        let by_field = |limits: &'static str| {
            read(StatusCode::OK, &fields(&[("x-adit-limits", limits)]), None)
        };
        let by_json = |limits: &str| {
            let body = format!("{{\"limits\":{limits}}}");
            read(StatusCode::OK, &fields(&[json]), Some(body.as_bytes()))
        };
        let limits = |verdict: Result<Verdict, String>| {
            let grant = verdict.expect("read").expect("a yes");
            grant.of_limits().map(|granted| granted.limits)
        };
        let all = Limits {
            requests_per_minute: 30.try_into().ok(),
            burst: 5.try_into().ok(),
            at_once: 2.try_into().ok(),
            body: Some(1 << 20),
            tokens_per_day: Some(1000),
        };
        let text = "requests_per_minute=30, burst = 5, at_once=2,body=1MiB, tokens_per_day=1000";
        assert_eq!(limits(by_field(text)), Some(all));
        let text = r#"{"requests_per_minute":30,"burst":5,"at_once":2,"body":"1MiB","tokens_per_day":1000}"#;
        assert_eq!(limits(by_json(text)), Some(all));
        assert_eq!(limits(by_json("null")), None);
        assert_eq!(limits(by_field("body=10")).and_then(|limits| limits.body), Some(10));
        for bad in [
            "at_once",
            "at_once=0",
            "at_once=-1",
            "at_once=many",
            "at_once=1, at_once=2",
            "tokens_per_day=none",
            "tokens_per_day=0",
            "tokens_per_day=1.5",
            "body=1 parsec",
            "requests_per_second=1",
            "burst=2",
        ] {
            let why = by_field(bad).expect_err(bad);
            assert!(why.starts_with("its `X-Adit-Limits` is wrong: "), "{why}");
        }
        for bad in [
            "7",
            "[]",
            r#"{"at_once":0}"#,
            r#"{"at_once":"none"}"#,
            r#"{"at_once":null}"#,
            r#"{"burst":2}"#,
            r#"{"at_once":1,"at_once":2}"#,
            r#"{"more":1}"#,
        ] {
            let why = by_json(bad).expect_err(bad);
            assert!(why.contains("no JSON with"), "{why}");
        }
    }

    #[test]
    fn a_no_is_kept_for_the_application() {
        let told = fields(&[("content-type", "text/html"), ("www-authenticate", "Bearer")]);
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            let verdict = read(status, &told, Some(b"<p>no")).expect("read");
            let no = verdict.expect_err("a no");
            assert_eq!((no.status, &no.answer.body[..]), (status.as_u16(), &b"<p>no"[..]));
            assert_eq!(
                (&*no.answer.content_type, &no.answer.challenges[..]),
                ("text/html", &["Bearer".to_owned()][..])
            );
        }
        let long = read(StatusCode::FORBIDDEN, &told, None).expect("read").expect_err("a no");
        assert!(long.answer.body.is_empty(), "our own sentence stands in its place");
    }
}
