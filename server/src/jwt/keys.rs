//! The keys of a provider (RFC 7517), and whether one of them has signed a token (RFC 7515).

use std::{collections::BTreeSet, io};

use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fault::TokenFault;

/// The longest token, in bytes.
const LONGEST_TOKEN: usize = 16 << 10;
/// The most keys of a provider.
const MOST_KEYS: usize = 64;

/// The algorithms that a token may be signed with. None of them has a secret that both ends know, and
/// `none` is not among them.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// The claims of a token (RFC 7519 section 4).
pub(crate) type Claims = Map<String, Value>;

/// The keys with which a provider signs tokens.
#[derive(Debug, Default)]
pub(crate) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why a token has no claims that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoClaims {
    /// The provider may have another key now.
    UnknownKey,
    Fault(TokenFault),
}

impl From<TokenFault> for NoClaims {
    fn from(fault: TokenFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<NoClaims> for TokenFault {
    fn from(no_claims: NoClaims) -> Self {
        match no_claims {
            NoClaims::UnknownKey => Self::Signature,
            NoClaims::Fault(fault) => fault,
        }
    }
}

impl KeySet {
    /// Reads a set of keys. Keys of other kinds, and those for encryption, are passed over (RFC 7517
    /// section 5).
    ///
    /// # Errors
    /// What is wrong with it, also if no key can be used.
    pub(crate) fn parse(text: &[u8]) -> io::Result<Self> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }
        let document: Document = serde_json::from_slice(text)
            .map_err(|e| io::Error::other(format!("that is not a set of keys (RFC 7517): {e}")))?;
        let keys =
            document.keys.into_iter().filter_map(Key::of).take(MOST_KEYS).collect::<Vec<_>>();
        if keys.is_empty() {
            return Err(io::Error::other("it has no key for RS256, ES256 or EdDSA"));
        }
        Ok(Self(keys))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The names of the keys.
    pub(super) fn names(&self) -> BTreeSet<Option<&str>> {
        self.0.iter().map(|key| key.id.as_deref()).collect()
    }

    /// The claims of a token that one of the keys has signed. Nothing else is judged here, not even
    /// the times.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, NoClaims> {
        let head = check_head(token)?;
        let mut validation = Validation::new(head.alg);
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        validation.validate_aud = false;
        let fits =
            |key: &&Key| key.algorithm == head.alg && (head.kid.is_none() || key.id == head.kid);
        let mut unknown = NoClaims::UnknownKey;
        for key in self.0.iter().filter(fits) {
            match decode::<Claims>(token, &key.key, &validation) {
                Ok(token) => return Ok(token.claims),
                Err(e) if *e.kind() == ErrorKind::InvalidSignature => {
                    // Without a name, the right key may be one that was not fetched yet.
                    if head.kid.is_some() {
                        unknown = TokenFault::Signature.into();
                    }
                }
                Err(_) => return Err(TokenFault::Malformed.into()),
            }
        }
        Err(unknown)
    }
}

/// The head of a token that may have been signed by a provider.
pub(super) fn check_head(token: &str) -> Result<Header, TokenFault> {
    if token.len() > LONGEST_TOKEN {
        return Err(TokenFault::TooLong);
    }
    let head = decode_header(token).map_err(|_| match algorithm(token) {
        Some(other) => TokenFault::Algorithm(other),
        None => TokenFault::Malformed,
    })?;
    if !ALGORITHMS.contains(&head.alg) {
        return Err(TokenFault::Algorithm(format!("{:?}", head.alg)));
    }
    // What is critical there has to be understood (RFC 7515 section 4.1.11): nothing is.
    if head.crit.is_some() {
        return Err(TokenFault::Malformed);
    }
    Ok(head)
}

/// The algorithm that a head names, if it is one that the library does not know, such as `none`.
fn algorithm(token: &str) -> Option<String> {
    let (head, _) = token.split_once('.')?;
    let head = data_encoding::BASE64URL_NOPAD.decode(head.as_bytes()).ok()?;
    let head: Value = serde_json::from_slice(&head).ok()?;
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    Some(head.get("alg")?.as_str()?.chars().filter(is_plain).take(20).collect())
}

impl Key {
    /// A key that may sign tokens.
    fn of(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(of) if of.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            _ => return None,
        };
        let named = jwk.common.key_algorithm.map(|named| named.to_string());
        let is_for_it = named.is_none_or(|named| named == format!("{algorithm:?}"));
        let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        if !is_for_it || !signs {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithm, key })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use jsonwebtoken::{EncodingKey, encode};
    use serde_json::json;

    use super::*;

    /// A key of a provider, for tests.
    pub(crate) struct Signer {
        pub(crate) head: Header,
        pub(crate) key: EncodingKey,
        pub(crate) jwk: Value,
    }

    impl Signer {
        pub(crate) fn new(algorithm: Algorithm, id: Option<&str>) -> Self {
            let kind = match algorithm {
                Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
                Algorithm::EdDSA => &rcgen::PKCS_ED25519,
                _ => &rcgen::PKCS_RSA_SHA256,
            };
            let pair = rcgen::KeyPair::generate_for(kind).expect("a key");
            let der = pair.serialize_der();
            let key = match algorithm {
                Algorithm::ES256 => EncodingKey::from_ec_der(&der),
                Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
                _ => EncodingKey::from_rsa_der(&pkcs1(&der)),
            };
            let mut jwk = match algorithm {
                Algorithm::EdDSA => {
                    let public = data_encoding::BASE64URL_NOPAD.encode(pair.public_key_raw());
                    json!({ "kty": "OKP", "crv": "Ed25519", "x": public })
                }
                _ => {
                    let jwk = Jwk::from_encoding_key(&key, algorithm).expect("a JWK");
                    serde_json::to_value(jwk).expect("JSON")
                }
            };
            if let Some(id) = id {
                jwk["kid"] = id.into();
            }
            let head = Header { kid: id.map(str::to_owned), ..Header::new(algorithm) };
            Self { head, key, jwk }
        }

        pub(crate) fn sign(&self, claims: &Value) -> String {
            encode(&self.head, claims, &self.key).expect("signed")
        }
    }

    /// The key within PKCS #8 (RFC 5958): behind 26 bytes for an RSA key of 2048 bits and more.
    fn pkcs1(der: &[u8]) -> Vec<u8> {
        der[26..].to_vec()
    }

    pub(crate) fn set(signers: &[&Signer]) -> KeySet {
        let keys: Vec<_> = signers.iter().map(|signer| signer.jwk.clone()).collect();
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("keys")
    }

    fn part(value: &Value) -> String {
        data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes())
    }

    #[test]
    fn a_token_counts_if_a_key_of_the_provider_has_signed_it() {
        for algorithm in ALGORITHMS {
            let (one, other) =
                (Signer::new(algorithm, Some("1")), Signer::new(algorithm, Some("1")));
            let token = one.sign(&json!({ "sub": "alice" }));
            let claims = set(&[&one]).verify(&token).expect("signed");
            assert_eq!(claims["sub"], "alice", "{algorithm:?}");
            let fault = set(&[&other]).verify(&token).expect_err("another key");
            assert_eq!(fault, TokenFault::Signature.into(), "{algorithm:?}");
            let (rest, signature) = token.rsplit_once('.').expect("three parts");
            let head = rest.split_once('.').expect("two parts").0;
            let forged = format!("{head}.{}.{signature}", part(&json!({ "sub": "root" })));
            assert!(set(&[&one]).verify(&forged).is_err(), "{algorithm:?}");
            assert!(set(&[&one]).verify(&format!("{rest}.")).is_err(), "{algorithm:?}");
        }
    }

    #[test]
    fn a_key_with_another_name_may_be_a_new_one_of_the_provider() {
        let (old, new) =
            (Signer::new(Algorithm::ES256, Some("1")), Signer::new(Algorithm::ES256, Some("2")));
        let token = new.sign(&json!({}));
        assert_eq!(set(&[&old]).verify(&token), Err(NoClaims::UnknownKey));
        assert!(set(&[&old, &new]).verify(&token).is_ok());
        assert_eq!(KeySet::default().verify(&token), Err(NoClaims::UnknownKey));
        // Without names, each key is tried.
        let (one, other) =
            (Signer::new(Algorithm::ES256, None), Signer::new(Algorithm::ES256, None));
        assert!(set(&[&one, &other]).verify(&other.sign(&json!({}))).is_ok());
        assert_eq!(set(&[&one]).verify(&other.sign(&json!({}))), Err(NoClaims::UnknownKey));
    }

    #[test]
    fn no_other_algorithm_counts_whatever_the_keys_are() {
        let rsa = Signer::new(Algorithm::RS256, Some("1"));
        let keys = set(&[&rsa]);
        let payload = part(&json!({ "sub": "root" }));
        for alg in ["none", "None", "NONE", "HS256", "HS512", "PS256", "RS1", ""] {
            let head = part(&json!({ "alg": alg, "kid": "1" }));
            for signature in ["", "AAAA"] {
                let fault = keys.verify(&format!("{head}.{payload}.{signature}"));
                assert!(
                    matches!(fault, Err(NoClaims::Fault(TokenFault::Algorithm(_)))),
                    "{alg}: {fault:?}"
                );
            }
        }
        // The public key as the secret of an HMAC.
        let modulus = rsa.jwk["n"].as_str().expect("one").as_bytes();
        let head = Header { kid: Some("1".into()), ..Header::new(Algorithm::HS256) };
        let token = encode(&head, &json!({}), &EncodingKey::from_secret(modulus)).expect("signed");
        assert!(keys.verify(&token).is_err());
        let mut critical = Signer::new(Algorithm::ES256, None);
        critical.head.crit = Some(vec!["x".into()]);
        let token = critical.sign(&json!({}));
        assert_eq!(set(&[&critical]).verify(&token), Err(TokenFault::Malformed.into()));
    }

    #[test]
    fn what_is_no_token_is_told_apart_from_one_that_is_not_valid() {
        let keys = set(&[&Signer::new(Algorithm::ES256, None)]);
        let long = format!("{}.e30.AAAA", "A".repeat(LONGEST_TOKEN));
        assert_eq!(keys.verify(&long), Err(TokenFault::TooLong.into()));
        for text in ["", ".", "..", "a.b.c", "e30.e30.e30", "a.b.c.d", "e30.e30", "\u{0}.é.x"] {
            assert_eq!(keys.verify(text), Err(TokenFault::Malformed.into()), "{text}");
        }
    }

    #[test]
    fn keys_that_cannot_sign_tokens_are_passed_over() {
        let signer = Signer::new(Algorithm::ES256, Some("1"));
        let with = |field: &str, value: &str| {
            let mut jwk = signer.jwk.clone();
            jwk[field] = value.into();
            jwk
        };
        let parse = |keys: Value| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
        let secret = json!({ "kty": "oct", "k": "AAAA", "alg": "HS256" });
        for key in [secret, with("use", "enc"), with("alg", "ES384"), json!({}), json!(1)] {
            assert!(parse(json!([key])).is_err(), "{key}");
            assert_eq!(parse(json!([key, signer.jwk])).expect("one").len(), 1, "{key}");
        }
        assert!(KeySet::parse(b"").is_err() && KeySet::parse(b"[]").is_err());
    }
}
