//! The request with which a browser comes back from a sign-in to the device (RFC 6749 sections 4.1.2
//! and 4.1.2.1, RFC 8252 section 7.3), and the page that it gets.

use percent_encoding::percent_decode_str;

use crate::wire::RedirectAnswer;

/// The longest head of a request, in bytes.
pub const LONGEST_HEAD: usize = 16 << 10;

/// What a browser has asked for.
pub enum Asked {
    /// It has come back from the sign-in that has this state.
    Back(RedirectAnswer),
    /// Something else: the icon of the page, or a request that nobody should have sent.
    Other,
}

/// What the request that begins with `head` asks for. Only an answer with this `state` counts.
pub fn asked(head: &[u8], state: &str) -> Asked {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    let mut words = line.trim_end().split(' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let Some(("/", query)) = target.split_once('?') else { return Asked::Other };
    let of = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(key, _)| *key == name)?.1.replace('+', " ");
        Some(percent_decode_str(&value).decode_utf8().ok()?.into_owned())
    };
    if method != Some("GET") || of("state").as_deref() != Some(state) {
        return Asked::Other;
    }
    match (of("error"), of("code")) {
        (Some(error), _) => {
            Asked::Back(RedirectAnswer::Error { error, description: of("error_description") })
        }
        (None, Some(code)) => Asked::Back(RedirectAnswer::Code { code, iss: of("iss") }),
        (None, None) => Asked::Other,
    }
}

/// The answer to that request.
pub fn answer(asked: &Asked) -> String {
    let (status, text) = match asked {
        Asked::Back(_) => {
            ("200 OK", "You can close this page. The terminal says whether it worked.")
        }
        Asked::Other => ("404 Not Found", "There is nothing here."),
    };
    let body = format!("<!doctype html><meta charset=utf-8><title>adit</title><p>{text}</p>");
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Referrer-Policy: no-referrer\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(head: &str) -> String {
        match asked(head.as_bytes(), "s-t") {
            Asked::Other => "other".to_owned(),
            Asked::Back(RedirectAnswer::Code { code, iss }) => format!("code {code} {iss:?}"),
            Asked::Back(RedirectAnswer::Error { error, description }) => {
                format!("error {error} {description:?}")
            }
        }
    }

    #[test]
    fn only_the_answer_to_this_sign_in_counts() {
        for (head, expected) in [
            ("GET /?code=a%2Fb&state=s-t HTTP/1.1\r\nHost: x", "code a/b None"),
            ("GET /?state=s-t&code=c&iss=https%3A%2F%2Fa HTTP/1.1", "code c Some(\"https://a\")"),
            ("GET /?error=access_denied&state=s-t HTTP/1.1", "error access_denied None"),
            (
                "GET /?error=x&error_description=no+way&state=s-t HTTP/1.1",
                "error x Some(\"no way\")",
            ),
            ("GET /?error=x&code=c&state=s-t HTTP/1.1", "error x None"),
            ("GET /?code=c&state=other HTTP/1.1", "other"),
            ("GET /?code=c HTTP/1.1", "other"),
            ("GET /?state=s-t HTTP/1.1", "other"),
            ("GET /favicon.ico HTTP/1.1", "other"),
            ("GET /x?code=c&state=s-t HTTP/1.1", "other"),
            ("POST /?code=c&state=s-t HTTP/1.1", "other"),
            ("GET /?code=%ff&state=s-t HTTP/1.1", "other"),
            ("", "other"),
        ] {
            assert_eq!(shown(head), expected, "{head}");
        }
        let page = answer(&Asked::Other);
        let (head, body) = page.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    }
}
