//! The key that a request brings: as `Authorization: Bearer` (RFC 6750 section 2.1), as the password
//! of `Authorization: Basic` (RFC 7617; the user's name is not looked at), or as `X-Api-Key`.

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
    /// Something that is no key, or several that differ.
    Wrong,
}

/// Reads the credentials of a head that was parsed. Several fields are accepted if they hold the
/// same key, as some libraries send it twice.
pub fn credentials(head: &[u8]) -> Credentials {
    let mut found: Option<ApiKey> = None;
    let of_authorization = values(head, "authorization").map(authorization);
    let of_api_key =
        values(head, "x-api-key").map(|value| ApiKey::parse(std::str::from_utf8(value).ok()?));
    for key in of_authorization.chain(of_api_key) {
        match (key, &found) {
            (None, _) => return Credentials::Wrong,
            (Some(key), Some(before)) if key.hash() != before.hash() => return Credentials::Wrong,
            (Some(key), _) => found = Some(key),
        }
    }
    found.map_or(Credentials::None, Credentials::Key)
}

fn authorization(value: &[u8]) -> Option<ApiKey> {
    let (scheme, value) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return ApiKey::parse(value);
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = Zeroizing::new(BASE64.decode(value.as_bytes()).ok()?);
    let (_, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    ApiKey::parse(password)
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
                Credentials::Wrong => Some(false),
            };
            assert_eq!(found, is_taken, "{fields}");
        }
    }
}
