//! Which web pages may read answers (the Fetch standard, "CORS protocol"): those of a list, and
//! pages that came from this server itself.

use std::str::FromStr;

use proto::http1::{fields::values, head::RequestHead};
use serde::Deserialize;

/// The longest list of fields that a preflight may ask for, in bytes.
const MOST_ASKED: usize = 1024;
/// How long a browser may remember the answer to a preflight, in seconds.
const MAX_AGE: u32 = 600;

/// An origin as a browser sends it: `https://chat.example.com`; or `*` for every one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct PageOrigin(String);

impl FromStr for PageOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an origin: write it as a browser sends it, for example \"https://chat.example.com\" or \"http://localhost:3000\", or \"*\" for every page"
            )
        };
        if text == "*" {
            return Ok(Self(text.to_owned()));
        }
        let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
        let is_scheme = !scheme.is_empty()
            && scheme
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
        let is_host = !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]*".contains(&b))
            && !host.contains('*');
        if is_scheme && is_host { Ok(Self(text.to_owned())) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for PageOrigin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Where a request comes from, as far as CORS is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Page {
    /// It has no `Origin`, or that of this server.
    Own,
    /// A page whose script may read the answer.
    Allowed(String),
    /// A page that may not even ask.
    Refused(String),
}

/// Judges the `Origin` of a request.
pub(super) fn page(origins: &[PageOrigin], head: &RequestHead, bytes: &[u8]) -> Page {
    let mut sent = values(bytes, "origin");
    let (Some(origin), None) = (sent.next(), sent.next()) else {
        return match values(bytes, "origin").next() {
            None => Page::Own,
            Some(_) => Page::Refused("several".to_owned()),
        };
    };
    let Some(origin) =
        std::str::from_utf8(origin).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()))
    else {
        return Page::Refused("unreadable".to_owned());
    };
    if !head.host.is_empty() && origin.eq_ignore_ascii_case(&format!("https://{}", head.host)) {
        return Page::Own;
    }
    let is_listed = origins.iter().any(|listed| listed.0 == "*" || listed.0 == origin);
    if is_listed {
        Page::Allowed(origin.to_owned())
    } else {
        Page::Refused(origin.chars().take(100).collect())
    }
}

/// The fields that let the page read an answer.
pub(super) fn answer_fields(origin: &str) -> Vec<(&'static str, String)> {
    vec![
        ("Access-Control-Allow-Origin", origin.to_owned()),
        ("Access-Control-Expose-Headers", "X-Adit-Queue, Retry-After".to_owned()),
        ("Vary", "Origin".to_owned()),
    ]
}

/// The answer to a preflight of an allowed page. The key comes with the request itself.
pub(super) fn preflight(origin: &str, bytes: &[u8]) -> Vec<u8> {
    let asked =
        values(bytes, "access-control-request-headers").collect::<Vec<_>>().join(&b", "[..]);
    let is_list = asked.len() <= MOST_ASKED
        && asked.iter().all(|b| b.is_ascii_alphanumeric() || b"-_ ,".contains(b));
    let asked = String::from_utf8(asked).ok().filter(|_| is_list).unwrap_or_default();
    let headers = match asked.as_str() {
        "" => String::new(),
        asked => format!("Access-Control-Allow-Headers: {asked}\r\n"),
    };
    // A page of the internet asks for a server of the local network.
    let is_private =
        values(bytes, "access-control-request-private-network").any(|value| value == b"true");
    let private = if is_private { "Access-Control-Allow-Private-Network: true\r\n" } else { "" };
    format!(
        "HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: {origin}\r\n\
         Access-Control-Allow-Methods: GET, HEAD, POST, PUT, DELETE\r\n{headers}{private}\
         Access-Control-Max-Age: {MAX_AGE}\r\nVary: Origin\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(origins: &[&str], fields: &str) -> Page {
        let bytes = format!("POST / HTTP/1.1\r\nHost: gpu.lan:8443\r\n{fields}\r\n");
        let head = RequestHead::parse(bytes.as_bytes()).expect("a head");
        let origins: Vec<_> = origins.iter().map(|text| text.parse().expect("an origin")).collect();
        page(&origins, &head, bytes.as_bytes())
    }

    #[test]
    fn only_listed_pages_and_the_servers_own_may_ask() {
        let listed = ["https://chat.example.com", "http://localhost:3000"];
        let allowed = |origin: &str| Page::Allowed(origin.to_owned());
        for (fields, page) in [
            ("", Page::Own),
            ("Origin: https://gpu.lan:8443\r\n", Page::Own),
            ("Origin: https://chat.example.com\r\n", allowed("https://chat.example.com")),
            ("Origin: http://localhost:3000\r\n", allowed("http://localhost:3000")),
            (
                "Origin: http://chat.example.com\r\n",
                Page::Refused("http://chat.example.com".into()),
            ),
            ("Origin: null\r\n", Page::Refused("null".into())),
            (
                "Origin: https://chat.example.com\r\nOrigin: https://x\r\n",
                Page::Refused("several".into()),
            ),
        ] {
            assert_eq!(judged(&listed, fields), page, "{fields}");
        }
        assert_eq!(judged(&["*"], "Origin: https://x.y\r\n"), allowed("https://x.y"));
    }

    #[test]
    fn what_is_no_origin_is_refused_in_the_configuration() {
        for wrong in [
            "",
            "chat.example.com",
            "https://",
            "https://a/b",
            "https://*.a",
            "https://A",
            "https://a\r\nX: y",
        ] {
            assert!(wrong.parse::<PageOrigin>().is_err(), "{wrong}");
        }
        assert!("app://obsidian.md".parse::<PageOrigin>().is_ok());
    }

    #[test]
    fn a_preflight_is_answered_with_what_it_asks_for_if_that_is_a_list_of_names() {
        let of = |asked: &str| {
            let head = format!(
                "OPTIONS / HTTP/1.1\r\nHost: a\r\nAccess-Control-Request-Headers: {asked}\r\n\r\n"
            );
            String::from_utf8(preflight("https://a.b", head.as_bytes())).expect("text")
        };
        let answer = of("authorization, content-type");
        assert!(
            answer.contains("Access-Control-Allow-Headers: authorization, content-type\r\n"),
            "{answer}"
        );
        assert!(
            answer.ends_with("\r\n\r\n") && answer.contains("Origin: https://a.b\r\n"),
            "{answer}"
        );
        assert!(!of("a;b").contains("Allow-Headers"));
    }
}
