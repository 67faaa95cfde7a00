//! The key or the token that a request brings: as `Authorization: Bearer` (RFC 6750 section 2.1), as the password
//! of `Authorization: Basic` (RFC 7617; the user's name is not looked at), or as `X-Api-Key`.

use std::fmt;

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::fields::values;
use crate::api_key::ApiKey;

/// The fields that may hold a key. None of them is for the service.
pub const FIELDS: [&str; 3] = ["authorization", "proxy-authorization", "x-api-key"];

/// What a request brings.
#[derive(Debug)]
pub enum Credentials {
    /// Nothing.
    None,
    /// A key. Whether there is such a key is another question.
    Key(ApiKey),
    /// What looks like a JWT (RFC 7519). Whether it counts is another question.
    Token(Token),
    /// Something that is no key, or several that differ.
    Wrong,
}

/// The text of a token. It is never shown by `Debug`, and its memory is cleared when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Reads what an application has sent: three parts of base64url with a `.` between them (RFC 7515
    /// section 7.1). `None` if it cannot be a token.
    pub fn parse(text: &str) -> Option<Self> {
        let is_part = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        let parts: Vec<_> = text.split('.').collect();
        let is_token = parts.len() == 3
            && parts.iter().all(|part| is_part(part))
            && parts[..2].iter().all(|part| !part.is_empty());
        is_token.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The token itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

enum Found {
    Key(ApiKey),
    Token(Token),
}

impl Found {
    fn parse(text: &str) -> Option<Self> {
        ApiKey::parse(text).map(Self::Key).or_else(|| Token::parse(text).map(Self::Token))
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(one), Self::Key(other)) => one.hash() == other.hash(),
            (Self::Token(one), Self::Token(other)) => one == other,
            _ => false,
        }
    }
}

/// Reads the credentials of a head that was parsed. Several fields are accepted if they hold the
/// same key or token, as some libraries send it twice.
pub fn credentials(head: &[u8]) -> Credentials {
    let mut found: Option<Found> = None;
    let of_authorization = values(head, "authorization").map(authorization);
    let of_api_key =
        values(head, "x-api-key").map(|value| Found::parse(std::str::from_utf8(value).ok()?));
    for key in of_authorization.chain(of_api_key) {
        match (key, &found) {
            (None, _) => return Credentials::Wrong,
            (Some(key), Some(before)) if !key.is_same(before) => return Credentials::Wrong,
            (Some(key), _) => found = Some(key),
        }
    }
    match found {
        None => Credentials::None,
        Some(Found::Key(key)) => Credentials::Key(key),
        Some(Found::Token(token)) => Credentials::Token(token),
    }
}

/// The token of `Authorization: Bearer`, if there is exactly one such field and it looks like a JWT.
/// Anything else there is none of ours, such as the `ollama` that some libraries send.
pub fn bearer_token(head: &[u8]) -> Option<Token> {
    let mut fields = values(head, "authorization");
    let (scheme, value) = std::str::from_utf8(fields.next()?).ok()?.split_once(' ')?;
    let is_only = fields.next().is_none() && scheme.eq_ignore_ascii_case("bearer");
    is_only.then(|| Token::parse(value.trim())).flatten()
}

fn authorization(value: &[u8]) -> Option<Found> {
    let (scheme, value) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Found::parse(value);
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = Zeroizing::new(BASE64.decode(value.as_bytes()).ok()?);
    let (_, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Found::parse(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_from_each_field_that_tools_use() {
        let (key, other) = (ApiKey::generate(), ApiKey::generate());
        let basic = |text: String| BASE64.encode(text.as_bytes());
        let key_text = key.reveal();
        for (fields, is_taken) in [
            (format!("Authorization: Bearer {key_text}\r\n"), Some(true)),
            (format!("authorization: bearer   {key_text}\r\n"), Some(true)),
            (format!("X-Api-Key: {key_text}\r\n"), Some(true)),
            (format!("Authorization: Basic {}\r\n", basic(format!("me:{key_text}"))), Some(true)),
            (format!("Authorization: Basic {}\r\n", basic(format!(":{key_text}"))), Some(true)),
            (format!("Authorization: Bearer {key_text}\r\nX-Api-Key: {key_text}\r\n"), Some(true)),
            (String::new(), None),
            ("Cookie: x\r\n".to_owned(), None),
            (format!("Authorization: {key_text}\r\n"), Some(false)),
            ("Authorization: Bearer ollama\r\n".to_owned(), Some(false)),
            ("Authorization: Basic !!!\r\n".to_owned(), Some(false)),
            (format!("Authorization: Basic {}\r\n", basic(key_text.to_owned())), Some(false)),
            (format!("Authorization: Digest {key_text}\r\n"), Some(false)),
            (format!("X-Api-Key: {key_text}\r\nX-Api-Key: {}\r\n", other.reveal()), Some(false)),
            (format!("X-Api-Key: {key_text}\r\nAuthorization: Bearer x\r\n"), Some(false)),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let found = match credentials(head.as_bytes()) {
                Credentials::None => None,
                Credentials::Key(found) => Some(found.hash() == key.hash()),
                Credentials::Token(_) | Credentials::Wrong => Some(false),
            };
            assert_eq!(found, is_taken, "{fields}");
        }
    }

    #[test]
    fn a_token_is_taken_where_a_key_is_and_only_if_it_looks_like_one() {
        const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln-_";
        let basic = |text: &str| BASE64.encode(format!("me:{text}").as_bytes());
        let key = ApiKey::generate();
        let key = key.reveal();
        for (fields, is_token, narrows) in [
            (format!("Authorization: Bearer {TOKEN}\r\n"), true, true),
            (format!("X-Api-Key: {TOKEN}\r\n"), true, false),
            (format!("Authorization: Basic {}\r\n", basic(TOKEN)), true, false),
            (format!("Authorization: bearer {TOKEN}\r\nX-Api-Key: {TOKEN}\r\n"), true, true),
            (format!("Authorization: Bearer {TOKEN}\r\nX-Api-Key: {TOKEN}x\r\n"), false, true),
            (format!("Authorization: Bearer {TOKEN}\r\nX-Api-Key: {key}\r\n"), false, true),
            ("Authorization: Bearer e30.e30.\r\n".to_owned(), true, true),
            ("Authorization: Bearer e30..\r\n".to_owned(), false, false),
            ("Authorization: Bearer a.b\r\n".to_owned(), false, false),
            ("Authorization: Bearer a.b.c.d\r\n".to_owned(), false, false),
            ("Authorization: Bearer a.b.c=\r\n".to_owned(), false, false),
            ("Authorization: Bearer ollama\r\n".to_owned(), false, false),
            (format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer x\r\n"), false, false),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let found = credentials(head.as_bytes());
            assert_eq!(matches!(found, Credentials::Token(_)), is_token, "{fields}");
            assert_eq!(bearer_token(head.as_bytes()).is_some(), narrows, "{fields}");
            assert!(!format!("{found:?}").contains(TOKEN), "{found:?}");
        }
    }
}
