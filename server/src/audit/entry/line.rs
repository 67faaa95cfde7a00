//! How a line is written: its time, its JSON, and texts from applications.

use std::time::{Duration, SystemTime};

use proto::human;
use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};

/// The longest path or model that is written whole, in characters. An application may send a longer
/// one.
const LONGEST: usize = 256;

/// Milliseconds, with microsecond precision.
pub(crate) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The line of an event, with its newline.
pub(crate) fn line<E: Serialize>(at: SystemTime, event: &E) -> Vec<u8> {
    #[derive(Serialize)]
    struct AuditLine<'a, E> {
        // First, so that the first bytes of a file tell its age.
        time: String,
        #[serde(flatten)]
        event: &'a E,
    }
    let mut bytes =
        serde_json::to_vec(&AuditLine { time: timestamp(at), event }).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A time as RFC 3339 in UTC with milliseconds: all have the same length, so that they can be
/// compared as text.
pub(crate) fn timestamp(at: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at).format(format).unwrap_or_default()
}

/// Text from an application: control characters that a terminal would obey are escaped, and the
/// length is bounded.
pub(crate) fn escaped(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(LONGEST));
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST {
            clean.push('…');
            break;
        }
        if human::misleads(c) { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    clean
}
