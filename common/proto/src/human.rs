//! Sizes, lengths of time and counts as people read them.

use std::time::Duration;

/// Bytes with the largest unit that fits: `512 bytes`, `64 MiB`, `1.4 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return count(bytes, "byte");
    }
    // A number that would be rounded up to 1024 is written in the next unit.
    let fits = |unit: usize| bytes as f64 / 1024f64.powi(unit as i32 + 1) < 1023.95;
    let unit = (0..UNITS.len()).find(|unit| fits(*unit)).unwrap_or(UNITS.len() - 1);
    let number = bytes as f64 / 1024f64.powi(unit as i32 + 1);
    let text = format!("{number:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

/// A length of time in its two largest units, no finer than a second: `29d 23h`, `3h 12m`.
pub fn time(length: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let mut left = length.as_secs();
    let largest = UNITS.iter().position(|(unit, _)| left >= *unit);
    let Some(largest) = largest else { return "0s".to_owned() };
    let mut parts = Vec::new();
    for (unit, name) in UNITS.iter().skip(largest).take(2) {
        if left >= *unit {
            parts.push(format!("{}{name}", left / unit));
        }
        left %= unit;
    }
    parts.join(" ")
}

/// A length of time as it is, in a form that can be read again: `1m 30s 500ms`.
pub fn exact_time(length: Duration) -> String {
    let days = length.as_secs() / 86_400;
    let rest = length - Duration::from_secs(days * 86_400);
    match (days, rest.is_zero()) {
        (0, _) => humantime::format_duration(rest).to_string(),
        (_, true) => format!("{days}d"),
        (_, false) => format!("{days}d {}", humantime::format_duration(rest)),
    }
}

/// A number of things: `1 request`, `2 requests`.
pub fn count(number: impl Into<u64>, thing: &str) -> String {
    let number = number.into();
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Wraps a text into rows of at most `width` characters. All rows but the first are indented by
/// `indent`; the first begins there, too. A row is longer only if one word is. Text between backticks
/// is a command that people copy, so it counts as one word.
pub fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let (mut rows, mut column, mut is_command) = (String::new(), indent, false);
    let words = text.split(|c: char| {
        is_command ^= c == '`';
        c == ' ' && !is_command
    });
    for (i, word) in words.enumerate() {
        let length = columns(word);
        if i > 0 && column + 1 + length > width {
            rows.push_str(&format!("\n{:indent$}", ""));
            column = indent;
        } else if i > 0 {
            rows.push(' ');
            column += 1;
        }
        rows.push_str(word);
        column += length;
    }
    rows
}

/// How many columns a text takes at a terminal, without its colours (`ESC [ … m`). Each character
/// counts as one.
fn columns(text: &str) -> usize {
    let mut in_colour = false;
    let shown = text.chars().filter(|c| {
        let is_shown = !in_colour && *c != '\u{1b}';
        in_colour = (in_colour && *c != 'm') || *c == '\u{1b}';
        is_shown
    });
    shown.count()
}

/// Whether a character could change what a terminal does, or how it shows the text around: control
/// characters, invisible characters, and those that change the direction of text.
pub fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_as_people_read_it() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1 MiB"),
            (64 << 20, "64 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_length_of_time_has_two_units_at_the_most() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3 * 3600 + 61, "3h 1m"),
            (90_061, "1d 1h"),
            (2_588_400, "29d 23h"),
            (86_401, "1d"),
            (7200, "2h"),
        ] {
            assert_eq!(time(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn an_exact_length_of_time_can_be_read_again() {
        for (ms, text) in [
            (0, "0s"),
            (90_500, "1m 30s 500ms"),
            (30 * 86_400_000, "30d"),
            (100 * 86_400_000 + 3_600_000, "100d 1h"),
        ] {
            let length = Duration::from_millis(ms);
            assert_eq!(exact_time(length), text);
            assert_eq!(humantime::parse_duration(text), Ok(length));
        }
    }

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!(
            [count(0u64, "request"), count(1u64, "request"), count(2u64, "request")],
            ["0 requests", "1 request", "2 requests"]
        );
    }

    #[test]
    fn a_long_line_is_wrapped_and_a_command_stays_whole() {
        assert_eq!(wrapped("up for 3s", 13, 30), "up for 3s");
        assert_eq!(
            wrapped("up for 3s, QUIC over UDP to somewhere", 13, 30),
            "up for 3s, QUIC\n             over UDP to\n             somewhere"
        );
        assert_eq!(
            wrapped("down (try `ssh -p 22 me@gpu true`)", 13, 30),
            "down (try\n             `ssh -p 22 me@gpu true`)"
        );
        let long = "x".repeat(40);
        assert_eq!(wrapped(&long, 13, 30), long);
    }

    #[test]
    fn what_a_terminal_would_not_show_as_it_is_misleads() {
        for c in "\u{1b}\n\u{7f}\u{9b}\u{202e}\u{2066}\u{200b}\u{feff}".chars() {
            assert!(misleads(c), "{c:?}");
        }
        for c in "a ä漢🦙…:/".chars() {
            assert!(!misleads(c), "{c:?}");
        }
    }
}
