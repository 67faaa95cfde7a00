//! A line of a program's log as data: from the text that the program has written, or from the journal of
//! systemd.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The levels, as the programs write them.
const LEVELS: [(&str, &str); 5] = [
    ("ERROR", "error"),
    ("WARN", "warn"),
    ("INFO", "info"),
    ("DEBUG", "debug"),
    ("TRACE", "trace"),
];

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// When it was written (RFC 3339, UTC); null if the line does not say it.
    pub time: Option<String>,
    /// `error`, `warn`, `info`, `debug` or `trace`; null if the line does not say it.
    pub level: Option<&'static str>,
    pub message: String,
}

impl LogLine {
    /// From a line of text: a time, a level, a message. Both are missing in some lines.
    pub fn of_text(line: &str) -> Self {
        let (word, after) = first_word(line);
        let is_time = humantime::parse_rfc3339(word).is_ok();
        let (time, rest) = if is_time { (Some(word.to_owned()), after) } else { (None, line) };
        let (word, after) = first_word(rest);
        match LEVELS.iter().find(|(name, _)| *name == word) {
            Some((_, level)) => Self { time, level: Some(level), message: after.trim().to_owned() },
            None => Self { time, level: None, message: rest.trim().to_owned() },
        }
    }

    /// From a line of `journalctl --output=json`. `None` if it has no message.
    pub fn of_journal(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Entry {
            #[serde(rename = "MESSAGE")]
            message: Message,
            #[serde(rename = "__REALTIME_TIMESTAMP")]
            microseconds: String,
        }
        // Bytes, if it has any that are not text.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Message {
            Text(String),
            Bytes(Vec<u8>),
        }
        let Entry { message, microseconds } = serde_json::from_str(line).ok()?;
        let text = match message {
            Message::Text(text) => text,
            Message::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        };
        let since = Duration::from_micros(microseconds.parse().ok()?);
        let of_journal = UNIX_EPOCH
            .checked_add(since)
            .map(|at| humantime::format_rfc3339_micros(at).to_string());
        let line = Self::of_text(&text);
        Some(Self { time: line.time.or(of_journal), ..line })
    }
}

/// The first word of a line, and what is after it.
fn first_word(line: &str) -> (&str, &str) {
    let line = line.trim_start();
    line.split_once(char::is_whitespace).unwrap_or((line, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_its_time_its_level_and_its_message() {
        for (text, time, level, message) in [
            (
                "2026-11-28T16:58:16.123456Z  INFO listening on http://127.0.0.1:11434",
                Some("2026-11-28T16:58:16.123456Z"),
                Some("info"),
                "listening on http://127.0.0.1:11434",
            ),
            (" WARN home: no answer", None, Some("warn"), "home: no answer"),
            ("`adit up` begins", None, None, "`adit up` begins"),
            ("2026-11-28 16:58 (UTC): x", None, None, "2026-11-28 16:58 (UTC): x"),
            ("INFORMATION", None, None, "INFORMATION"),
            ("ERROR", None, Some("error"), ""),
            ("", None, None, ""),
        ] {
            let line = LogLine::of_text(text);
            assert_eq!((line.time.as_deref(), line.level), (time, level), "{text}");
            assert_eq!(line.message, message, "{text}");
        }
    }

    #[test]
    fn the_journal_says_when_a_line_was_written() {
        let line = r#"{"MESSAGE":" INFO ready","__REALTIME_TIMESTAMP":"1800000000000001","X":"y"}"#;
        let line = LogLine::of_journal(line).expect("a line");
        assert_eq!(line.time.as_deref(), Some("2027-01-15T08:00:00.000001Z"));
        assert_eq!((line.level, &*line.message), (Some("info"), "ready"));
        let bytes = r#"{"MESSAGE":[104,105,255],"__REALTIME_TIMESTAMP":"1"}"#;
        assert_eq!(LogLine::of_journal(bytes).expect("a line").message, "hi\u{fffd}");
        let no_message = r#"{"MESSAGE":null,"__REALTIME_TIMESTAMP":"1"}"#;
        for none in ["", "x", "{}", no_message] {
            assert_eq!(LogLine::of_journal(none), None, "{none}");
        }
    }
}
