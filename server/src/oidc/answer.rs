//! What the answers of a provider mean (RFC 6749 section 5, RFC 8628 sections 3.2 and 3.5).

use proto::human::misleads;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::error::OidcError;
use crate::jwt::{ProviderUrl, plain};

/// How long people get at most, in seconds, whatever the provider allows.
pub(super) const LONGEST_WAIT: u64 = 15 * 60;

/// The answer of the token endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TokenAnswer {
    Granted(TokenSet),
    /// Nobody has signed in yet.
    Pending,
    /// The same, and the server has asked too often.
    SlowDown,
    Refused(OidcError),
}

/// Tokens of a person.
#[derive(Deserialize, PartialEq, Eq)]
pub(super) struct TokenSet {
    #[serde(deserialize_with = "secret")]
    pub(super) access_token: Zeroizing<String>,
    #[serde(default, deserialize_with = "optional_secret")]
    pub(super) id_token: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "optional_secret")]
    pub(super) refresh_token: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for TokenSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenSet(…)")
    }
}

/// The answer of the device authorization endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceAnswer {
    pub(super) device_code: Zeroizing<String>,
    pub(super) user_code: String,
    pub(super) url: String,
    pub(super) complete_url: Option<String>,
    pub(super) expires_in: u64,
    /// In seconds.
    pub(super) interval: u64,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
    #[serde(default)]
    error_description: Option<String>,
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(from).map(Zeroizing::new)
}

fn optional_secret<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Zeroizing::new))
}

/// What the token endpoint has answered.
pub(super) fn token(status: u16, body: &[u8]) -> TokenAnswer {
    if status == 200 {
        return match serde_json::from_slice(body) {
            Ok(tokens) => TokenAnswer::Granted(tokens),
            Err(_) => TokenAnswer::Refused(unreadable()),
        };
    }
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(told) if (400..500).contains(&status) && status != 429 => match told.error.as_str() {
            "authorization_pending" => TokenAnswer::Pending,
            "slow_down" => TokenAnswer::SlowDown,
            _ => TokenAnswer::Refused(told.meaning()),
        },
        _ => TokenAnswer::Refused(of_status(status)),
    }
}

/// What the device authorization endpoint of this issuer has answered.
pub(super) fn device(
    issuer: &ProviderUrl,
    status: u16,
    body: &[u8],
) -> Result<DeviceAnswer, OidcError> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(deserialize_with = "secret")]
        device_code: Zeroizing<String>,
        user_code: String,
        // An early draft, which some providers follow, calls it so.
        #[serde(alias = "verification_url")]
        verification_uri: String,
        #[serde(default)]
        verification_uri_complete: Option<String>,
        expires_in: u64,
        #[serde(default)]
        interval: Option<u64>,
    }
    if status != 200 {
        return Err(match serde_json::from_slice::<ErrorBody>(body) {
            Ok(told) if (400..500).contains(&status) && status != 429 => told.meaning(),
            _ => of_status(status),
        });
    }
    let body: Body = serde_json::from_slice(body).map_err(|_| unreadable())?;
    // The device opens it in a browser.
    let is_page = |url: &String| issuer.named(url).is_ok();
    if !is_page(&body.verification_uri) || !is_code(&body.user_code) {
        return Err(unreadable());
    }
    Ok(DeviceAnswer {
        device_code: body.device_code,
        user_code: body.user_code,
        url: body.verification_uri,
        complete_url: body.verification_uri_complete.filter(is_page),
        expires_in: body.expires_in.clamp(1, LONGEST_WAIT),
        interval: body.interval.unwrap_or(5).clamp(1, 60),
    })
}

/// What an error means that the browser has brought back (RFC 6749 section 4.1.2.1).
pub(super) fn redirected(error: &str, description: Option<&str>) -> OidcError {
    let told =
        ErrorBody { error: error.to_owned(), error_description: description.map(str::to_owned) };
    told.meaning()
}

fn is_code(text: &str) -> bool {
    (1..=64).contains(&text.chars().count()) && !text.chars().any(misleads)
}

impl ErrorBody {
    fn meaning(self) -> OidcError {
        let description = self.error_description.as_deref().map(plain).unwrap_or_default();
        let behind = |text: &str| match text {
            "" => String::new(),
            text => format!(": {text}"),
        };
        match self.error.as_str() {
            "access_denied" => OidcError::Denied,
            "expired_token" => OidcError::CodeExpired,
            // The person has to do something at the provider before it goes on.
            "invalid_grant" | "interaction_required" | "consent_required" | "login_required" => {
                OidcError::Ended(behind(&description))
            }
            "server_error" | "temporarily_unavailable" => {
                OidcError::Unavailable(plain(&self.error) + &behind(&description))
            }
            other => OidcError::Misconfigured(plain(other) + &behind(&description)),
        }
    }
}

fn of_status(status: u16) -> OidcError {
    OidcError::Unavailable(format!("it answered with the status {status}"))
}

fn unreadable() -> OidcError {
    OidcError::Unavailable("its answer cannot be read".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_answer_of_the_token_endpoint_has_a_meaning() {
        use OidcError::{CodeExpired, Denied, Ended, Misconfigured, Unavailable};
        use TokenAnswer::{Pending, Refused, SlowDown};
        let error = |error: &str| json!({ "error": error }).to_string();
        for (status, body, meaning) in [
            (400, error("authorization_pending"), Pending),
            (400, error("slow_down"), SlowDown),
            (400, error("access_denied"), Refused(Denied)),
            (400, error("expired_token"), Refused(CodeExpired)),
            (400, error("invalid_grant"), Refused(Ended(String::new()))),
            (400, error("interaction_required"), Refused(Ended(String::new()))),
            (401, error("invalid_client"), Refused(Misconfigured("invalid_client".into()))),
            (400, error("invalid_scope"), Refused(Misconfigured("invalid_scope".into()))),
            (400, error("server_error"), Refused(Unavailable("server_error".into()))),
            (503, error("invalid_grant"), Refused(of_status(503))),
            (429, error("slow_down"), Refused(of_status(429))),
            (400, "<html>".into(), Refused(of_status(400))),
            (302, String::new(), Refused(of_status(302))),
            (200, "{}".into(), Refused(unreadable())),
            (200, error("invalid_grant"), Refused(unreadable())),
        ] {
            assert_eq!(token(status, body.as_bytes()), meaning, "{status} {body}");
        }
        let told = json!({ "error": "invalid_grant", "error_description": "disabled\u{1b}[2J" });
        let told = token(400, told.to_string().as_bytes());
        assert_eq!(told, Refused(Ended(": disabled[2J".into())));
        let granted = json!({ "access_token": "a", "token_type": "Bearer", "refresh_token": "r" });
        let TokenAnswer::Granted(granted) = token(200, granted.to_string().as_bytes()) else {
            panic!("granted")
        };
        assert!(granted.id_token.is_none() && granted.refresh_token.is_some());
        assert_eq!(format!("{granted:?}"), "TokenSet(…)");
    }

    #[test]
    fn a_page_that_is_opened_is_the_providers_and_times_are_bounded() {
        let issuer = "https://login.example.com".parse().expect("an issuer");
        let answered = |change: serde_json::Value| {
            let mut body = json!({
                "device_code": "d", "user_code": "ABCD-EFGH", "expires_in": 600,
                "verification_uri": "https://login.example.com/device",
            });
            for (name, value) in change.as_object().expect("an object") {
                body[name] = value.clone();
            }
            device(&issuer, 200, body.to_string().as_bytes())
        };
        let plain = answered(json!({})).expect("read");
        assert_eq!((plain.interval, plain.expires_in, plain.complete_url), (5, 600, None));
        let most = answered(json!({ "expires_in": u64::MAX, "interval": 0 })).expect("read");
        assert_eq!((most.interval, most.expires_in), (1, LONGEST_WAIT));
        for wrong in [
            json!({ "verification_uri": "http://login.example.com/device" }),
            json!({ "verification_uri": "http://127.0.0.1/device" }),
            json!({ "verification_uri": "https://login.example.com/\u{1b}[2J" }),
            json!({ "verification_uri": "--version" }),
            json!({ "verification_uri": "file:///etc/passwd" }),
            json!({ "user_code": "\u{1b}[2J" }),
            json!({ "user_code": "" }),
            json!({ "device_code": null }),
        ] {
            assert_eq!(answered(wrong.clone()), Err(unreadable()), "{wrong}");
        }
        let odd = answered(json!({ "verification_uri_complete": "javascript:alert(1)" }));
        assert_eq!(odd.expect("read").complete_url, None);
        let refused = device(&issuer, 400, br#"{"error":"unauthorized_client"}"#);
        assert_eq!(refused, Err(OidcError::Misconfigured("unauthorized_client".into())));
    }
}
