//! The fields of a request's head as bytes: read, and left out. The head must be one that
//! [`RequestHead::parse`](super::head::RequestHead::parse) has accepted: its lines end with CR LF,
//! and none goes on in the next.

/// The values of the fields with this name, without the spaces around them.
pub fn values<'a>(head: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    lines(head).filter_map(move |line| {
        let (own, value) = field(line)?;
        own.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
    })
}

/// The head without the fields of these names, and with this `Host` in place of its own.
pub fn forwarded(head: &[u8], without: &[&str], host: &str) -> Vec<u8> {
    let is_left_out = |line: &[u8]| {
        field(line).is_some_and(|(own, _)| {
            own.eq_ignore_ascii_case(b"host")
                || without.iter().any(|name| own.eq_ignore_ascii_case(name.as_bytes()))
        })
    };
    let mut out = Vec::with_capacity(head.len() + host.len());
    for (i, line) in lines(head).enumerate() {
        if i > 0 && is_left_out(line) {
            continue;
        }
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        if i == 0 {
            out.extend_from_slice(format!("Host: {host}\r\n").as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The lines of a head, without its empty line.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = head.split(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).take_while(|line| !line.is_empty())
}

fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"POST /v1/a:b HTTP/1.1\r\nHost: gpu.example.com:8443\r\nAUTHORIZATION: Bearer x\r\nX:  y \r\nX-Api-Key:z\r\nx: \r\n\r\n";

    #[test]
    fn fields_are_found_whatever_their_case_and_never_in_the_first_line() {
        let of = |name| values(HEAD, name).collect::<Vec<_>>();
        assert_eq!(of("authorization"), [b"Bearer x"]);
        assert_eq!(of("x"), [&b"y"[..], b""]);
        assert_eq!(of("x-api-key"), [b"z"]);
        assert!(of("cookie").is_empty() && of("POST /v1/a").len() <= 1);
    }

    #[test]
    fn a_forwarded_head_has_another_host_and_no_credentials() {
        let out = forwarded(HEAD, &["authorization", "x-api-key"], "localhost");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "POST /v1/a:b HTTP/1.1\r\nHost: localhost\r\nX:  y \r\nx: \r\n\r\n"
        );
        let old = forwarded(b"GET / HTTP/1.0\r\n\r\n", &[], "localhost");
        assert_eq!(old, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n");
    }
}
