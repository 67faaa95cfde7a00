//! Adds fields to the head of an answer while its bytes pass.

use super::Tracker;

/// Fields that are added at the end of the final head of one answer. Interim heads (1xx), a switch of
/// the protocol (101), and what is not HTTP/1 pass unchanged.
#[derive(Debug, Default)]
pub struct AddedFields {
    lines: Vec<u8>,
    /// The CR of a line that may be the empty one is kept until the next byte has come.
    keeps_cr: bool,
    is_over: bool,
}

impl AddedFields {
    /// Adds a field; without one, nothing is added. `name` and `value` must be valid in a head (RFC
    /// 9110 section 5): otherwise nothing is added.
    pub fn add(&mut self, name: &str, value: &str) {
        let is_name =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if is_name && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            self.lines.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
    }

    /// Whether the head has passed, so that nothing is added any more.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Has `answer` follow `bytes`, and returns what the application gets for them.
    pub fn pass(&mut self, answer: &mut Tracker, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + self.lines.len() + 1);
        out.extend(self.take_kept());
        let heads = if self.is_over { 0 } else { answer.take_heads(bytes) };
        out.extend_from_slice(&bytes[..heads]);
        if answer.status().is_some() && !self.is_over {
            // The empty line ends with LF, with or without CR: all of it is in `out`.
            let empty_line = if out.ends_with(b"\r\n") { 2 } else { 1 };
            let at = out.len() - empty_line;
            out.splice(at..at, self.lines.drain(..));
        }
        self.is_over = answer.body.is_some();
        if !self.is_over && answer.head.may_end() {
            self.keeps_cr = out.pop().is_some();
        }
        answer.follow(&bytes[heads..]);
        out.extend_from_slice(&bytes[heads..]);
        out
    }

    /// The byte that is kept back, if there is one: the answer ends in the middle of its head.
    pub fn take_kept(&mut self) -> Option<u8> {
        std::mem::take(&mut self.keeps_cr).then_some(b'\r')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDED: &str = "X-Adit-Queue: position=1, waited=0.5\r\n";

    fn field() -> AddedFields {
        let mut field = AddedFields::default();
        field.add("X-Adit-Queue", "position=1, waited=0.5");
        field
    }

    /// What the application gets for an answer that comes in these parts, and what is kept back at
    /// its end; the tracker must follow as if nothing was added.
    fn passed(mut field: AddedFields, parts: &[&[u8]]) -> String {
        let (mut answer, mut plain) = (Tracker::new(false, false), Tracker::new(false, false));
        let mut out = Vec::new();
        for part in parts {
            out.extend(field.pass(&mut answer, part));
            plain.follow(part);
            let state = |tracker: &Tracker| {
                (
                    tracker.status(),
                    tracker.is_complete(),
                    tracker.is_whole_at_close(),
                    tracker.closes(),
                )
            };
            assert_eq!(state(&answer), state(&plain));
        }
        out.extend(field.take_kept());
        String::from_utf8(out).expect("text")
    }

    #[track_caller]
    fn assert_passed(answer: &str, expected: &str) {
        let bytes = answer.as_bytes();
        for cut in 0..=bytes.len() {
            assert_eq!(passed(field(), &[&bytes[..cut], &bytes[cut..]]), expected, "cut at {cut}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(passed(field(), &single), expected, "byte by byte");
        assert_eq!(passed(AddedFields::default(), &single), answer, "without a field");
    }

    #[test]
    fn a_field_is_added_to_the_final_head_however_it_is_cut() {
        for (head, rest) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n", "\r\nabc"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", "\r\n1\r\na\r\n0\r\n\r\n"),
            ("HTTP/1.1 500 Oops\r\n", "\r\nuntil it closes\r\n\r\n"),
            ("HTTP/1.0 204 No Content\r\nX: y\r\n", "\r\n"),
            ("HTTP/1.1 200 OK\nContent-Length: 0\n", "\n"),
            ("HTTP/1.1 200 OK\nContent-Length: 0\r\n", "\n"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\n", "\r\n"),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 304 Not Modified\r\n",
                "\r\n",
            ),
        ] {
            assert_passed(&format!("{head}{rest}"), &format!("{head}{ADDED}{rest}"));
        }
    }

    #[test]
    fn what_has_no_final_head_passes_as_it_is() {
        for answer in [
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "220 hello\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
            "HTTP/1.1 200 OK\r\nX: 1\r\n\r",
            "HTTP/1.1 200 OK\r\nX: \ry\r\n\rz\r\n\r\n",
            "HTTP/1.1 200 OK",
            "",
        ] {
            assert_passed(answer, answer);
        }
    }

    #[test]
    fn several_fields_are_added_in_their_order() {
        let mut fields = field();
        fields.add("Vary", "Origin");
        let out = passed(fields, &[b"HTTP/1.1 204 No Content\r\n\r\n"]);
        assert_eq!(out, format!("HTTP/1.1 204 No Content\r\n{ADDED}Vary: Origin\r\n\r\n"));
    }

    #[test]
    fn what_could_be_read_as_more_than_a_field_is_not_added() {
        let answer = "HTTP/1.1 200 OK\r\n\r\n";
        for (name, value) in
            [("", "x"), ("a b", "x"), ("A", "x\r\nB: y"), ("A:", "x"), ("A", "\u{e4}")]
        {
            let mut field = AddedFields::default();
            field.add(name, value);
            assert_eq!(passed(field, &[answer.as_bytes()]), answer, "{name}: {value}");
        }
    }
}
