//! The authorization request of a browser with Proof Key for Code Exchange (RFC 6749 section 4.1.1,
//! RFC 7636).

use data_encoding::BASE64URL_NOPAD;
use proto::crypto::{fill_random, sha256};
use reqwest::Url;
use zeroize::Zeroizing;

/// 256 random bits, as base64url: a state, a nonce, or a code verifier.
pub(super) fn random() -> String {
    let mut bytes = [0; 32];
    fill_random(&mut bytes);
    BASE64URL_NOPAD.encode(&bytes)
}

/// The code challenge of a verifier, by the method `S256` (RFC 7636 section 4.2).
fn challenge(verifier: &str) -> String {
    BASE64URL_NOPAD.encode(&sha256(verifier.as_bytes()))
}

/// What one request is bound to.
#[derive(Clone)]
pub(super) struct Binding {
    pub(super) state: String,
    pub(super) nonce: String,
    pub(super) verifier: Zeroizing<String>,
    pub(super) redirect_uri: String,
}

impl Binding {
    /// For a browser that is sent back to this port of the device (RFC 8252 section 7.3).
    pub(super) fn new(port: u16) -> Self {
        Self {
            state: random(),
            nonce: random(),
            verifier: random().into(),
            redirect_uri: format!("http://127.0.0.1:{port}/"),
        }
    }

    /// The page that the browser opens.
    pub(super) fn url(&self, endpoint: &Url, client_id: &str, scopes: &str) -> String {
        let mut url = endpoint.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", client_id)
            .append_pair("redirect_uri", &self.redirect_uri)
            .append_pair("scope", scopes)
            .append_pair("state", &self.state)
            .append_pair("nonce", &self.nonce)
            .append_pair("code_challenge", &challenge(&self.verifier))
            .append_pair("code_challenge_method", "S256");
        // A refresh token is only given with consent (OpenID Connect Core 1.0, section 11).
        if scopes.split(' ').any(|scope| scope == "offline_access") {
            url.query_pairs_mut().append_pair("prompt", "consent");
        }
        url.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_the_rfc() {
        // RFC 7636 appendix B.
        assert_eq!(
            challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
        assert!(random().len() == 43 && random() != random());
    }

    #[test]
    fn the_page_has_all_that_the_answer_is_compared_with() {
        let binding = Binding::new(4567);
        let endpoint = "https://login.example.com/authorize?tenant=a b".parse().expect("a URL");
        let url: Url =
            binding.url(&endpoint, "adit&x", "openid offline_access").parse().expect("a URL");
        let of = |name: &str| {
            url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        for (name, value) in [
            ("tenant", "a b"),
            ("response_type", "code"),
            ("client_id", "adit&x"),
            ("redirect_uri", "http://127.0.0.1:4567/"),
            ("scope", "openid offline_access"),
            ("state", binding.state.as_str()),
            ("nonce", binding.nonce.as_str()),
            ("code_challenge_method", "S256"),
            ("prompt", "consent"),
        ] {
            assert_eq!(of(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(of("code_challenge"), Some(challenge(&binding.verifier)));
        assert!(!url.as_str().contains(binding.verifier.as_str()));
        let plain = binding.url(&endpoint, "adit", "openid");
        assert!(!plain.contains("prompt"), "{plain}");
    }
}
