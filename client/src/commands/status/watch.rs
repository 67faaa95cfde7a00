//! `adit status --watch`: the status once a second, with the last minute in bars.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use common::machine::{
    control,
    report::{Failure, data, style, typed},
};
use proto::human;

use super::{
    ControlRequest, Status, TunnelStatus,
    history::{History, Sample, bars},
    text::INDENT,
};
use crate::profile::ProfileDir;

const EVERY: Duration = Duration::from_secs(1);
/// Clears the line in which the cursor is.
const ERASE_LINE: &str = "\r\u{1b}[K";
/// Moves the cursor to the upper left corner, and clears the screen from there.
const REDRAW: &str = "\u{1b}[H\u{1b}[J";

/// Shows the status until Ctrl-C: on a terminal in place, elsewhere one after the other; with
/// `json` a line of JSON each time.
///
/// # Errors
/// If this device is not enrolled there, or standard output can't be written.
pub(super) async fn run(profile_dir: &ProfileDir, json: bool) -> Result<(), Failure> {
    // If this device is not enrolled, that is the better error.
    if !profile_dir.is_enrolled()? {
        profile_dir.read()?;
    }
    let mut out = std::io::stdout();
    let redraw = out.is_terminal() && !json;
    let (began, mut history) = (Instant::now(), History::default());
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = tokio::signal::ctrl_c() => {
                if redraw {
                    // The terminal has shown the key as `^C`.
                    let _ = out.write_all(ERASE_LINE.as_bytes()).and_then(|()| out.flush());
                }
                return Ok(());
            }
        }
        let status: Option<Status> =
            control::ask(&profile_dir.dir, &ControlRequest::Status).await?;
        let text = match (&status, json) {
            (Some(status), true) => serde_json::to_string(status)
                .map_err(|e| Failure::new("cannot write JSON").source(e))?,
            (None, true) => "null".to_owned(),
            (None, false) => typed(format!(
                "adit is not running; this goes on when it is (start it: `adit up{}`)",
                profile_dir.argument()
            )),
            (Some(status), false) => {
                history.add(sample(status, began.elapsed()));
                let width = style().width;
                format!("{}\n{}", status.to_text(width), drawn(&history, width))
            }
        };
        if redraw {
            // Not with `data`, which escapes such characters, because the text may contain text of
            // a peer.
            let _ = out.write_all(REDRAW.as_bytes());
        }
        data(text)?;
    }
}

fn sample(status: &Status, at: Duration) -> Sample {
    let rtt_ms = match &status.tunnel {
        TunnelStatus::Up(up) if status.tunnel.carries() => Some(up.rtt_ms),
        _ => None,
    };
    Sample { at, rtt_ms, received: status.received, sent: status.sent }
}

/// Rows of at most `width` columns.
fn drawn(history: &History, width: usize) -> String {
    const NUMBER: usize = 12;
    let room = width.saturating_sub(INDENT + NUMBER + 1);
    let latest = |values: &[f64]| bars(&values[values.len().saturating_sub(room)..]);
    let rate = |values: &[f64]| {
        format!("{}/s", human::size(values.last().copied().unwrap_or_default() as u64))
    };
    let (round_trips, received, sent) = (history.round_trips(), history.received(), history.sent());
    let rows = [
        ("Round trip", &round_trips, format!("{:.1} ms", round_trips.last().unwrap_or(&0.0))),
        ("Received", &received, rate(&received)),
        ("Sent", &sent, rate(&sent)),
    ];
    let row = |(name, values, last): (&str, &Vec<f64>, String)| {
        format!("{name:<INDENT$}{last:>NUMBER$} {}", latest(values))
    };
    rows.map(row).join("\n")
}
