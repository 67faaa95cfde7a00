//! What `--json` and aditd's API print: a JSON object with the number of its schema.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    failure::{Exit, Failure},
    human,
};

/// The number of the schema. Fields may be added to a schema; none changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// An object with the number of its schema before its own fields.
#[derive(Debug, Serialize)]
pub struct Document<T> {
    schema: u32,
    #[serde(flatten)]
    content: T,
}

impl<T: Serialize> Document<T> {
    /// The fields of `content`, which is a struct or a map.
    pub fn new(content: T) -> Self {
        Self { schema: SCHEMA, content }
    }
}

/// What is printed instead of an answer if there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NoAnswer {
    error: Failure,
}

impl From<Failure> for NoAnswer {
    fn from(error: Failure) -> Self {
        Self { error }
    }
}

impl NoAnswer {
    /// From the text in which the parser of the command line says what is wrong: what it is, tips,
    /// and how the command is used, with empty lines between. `exit` is the exit code.
    pub fn of_usage(text: &str, exit: Exit) -> Self {
        let mut parts = text.trim().split("\n\n");
        let one_line = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
        let what = one_line(parts.next().unwrap_or_default());
        let failure = Failure::new(what.strip_prefix("error: ").unwrap_or(&what)).exit(exit);
        let is_cure = |part: &&str| {
            let part = part.trim_start();
            ["tip: ", "hint: ", "Usage: "].iter().any(|begin| part.starts_with(begin))
        };
        Self { error: parts.filter(is_cure).map(one_line).fold(failure, Failure::hint) }
    }
}

/// JSON with escapes for the characters that a terminal would obey: all of them are in
/// strings.
pub fn escaped(json: String) -> String {
    let is_harmless = |c: char| c == '\n' || !human::misleads(c);
    if json.chars().all(is_harmless) {
        return json;
    }
    let (mut text, mut units) = (String::with_capacity(json.len()), [0; 2]);
    for c in json.chars() {
        if is_harmless(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut units) {
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_schema_comes_first() {
        let failure = Failure::new("no").exit(Exit::Usage);
        let text = serde_json::to_string(&Document::new(NoAnswer::from(failure))).expect("JSON");
        assert_eq!(text, r#"{"schema":1,"error":{"what":"no","causes":[],"hints":[],"exit":2}}"#);
    }

    #[test]
    fn json_stays_json_where_a_terminal_would_obey_a_character() {
        let value = ["a\u{1b}[2J", "b\u{9b}x", "c\u{202e}d", "\u{e0041}\n\"ö\""];
        for text in [serde_json::to_string(&value), serde_json::to_string_pretty(&value)] {
            let text = escaped(text.expect("JSON"));
            assert!(text.chars().all(|c| c == '\n' || !human::misleads(c)), "{text:?}");
            let read: Vec<String> = serde_json::from_str(&text).expect("JSON");
            assert_eq!(read, value);
        }
    }

    #[test]
    fn a_wrong_command_line_is_an_error_like_others() {
        for (text, what, hints) in [
            (
                "error: unexpected argument '--jsn' found\n\n  tip: a similar argument exists: '--json'\n\nUsage: aditd status --json\n\nFor more information, try '--help'.\n",
                "unexpected argument '--jsn' found",
                &["tip: a similar argument exists: '--json'", "Usage: aditd status --json"][..],
            ),
            (
                "error: the following required arguments were not provided:\n  <DEVICE>\n  <ROLE>\n\nUsage: aditd device role <DEVICE> <ROLE>\n",
                "the following required arguments were not provided: <DEVICE> <ROLE>",
                &["Usage: aditd device role <DEVICE> <ROLE>"],
            ),
            ("", "", &[]),
        ] {
            let NoAnswer { error } = NoAnswer::of_usage(text, Exit::Usage);
            assert_eq!((error.what(), error.hints().len()), (what, hints.len()), "{text}");
            assert!(error.hints().iter().zip(hints).all(|(is, wanted)| is == wanted), "{error:?}");
        }
    }
}
