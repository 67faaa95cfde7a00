//! The table of floods.

use serde::Serialize;

/// The times of an honest device, in µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Times {
    /// How late its tokens come.
    pub(super) tokens_p50: f64,
    pub(super) tokens_p99: f64,
    /// How long its small requests take.
    pub(super) requests_p50: f64,
    pub(super) requests_p99: f64,
}

/// One attack.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// What the attacker has sent from its begin to its end: the unit is that of `per_second`.
    pub(super) sent: u64,
    /// Datagrams, handshakes, bytes of slow requests, or requests that were sent in one second.
    pub(super) per_second: f64,
    /// Datagrams that came back, or attempts that the server let in.
    pub(super) answered: u64,
    /// Whether nothing may come back.
    pub(super) must_be_unanswered: bool,
    pub(super) before: Times,
    pub(super) during: Times,
    /// The server's memory before, and the most of it, in MB.
    pub(super) memory_before: f64,
    pub(super) memory_peak: f64,
    /// The server's processor time for each of these, in µs: with what the honest device took.
    pub(super) cpu_us: f64,
    /// Whether the honest device was served afterwards.
    pub(super) served_after: bool,
}

/// The table as Markdown.
pub(super) fn render(rows: &[Row]) -> String {
    let mut text = "| attack | per second | answered | tokens p50 / p99, µs: before | during | requests p50 / p99, µs: before | during | memory, MB: before | most | CPU, µs each | served after |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n".to_owned();
    for row in rows {
        // What has no rate has no cost of each.
        let cpu =
            if row.per_second > 0.0 { format!("{:.1}", row.cpu_us) } else { "–".to_owned() };
        let Times { tokens_p50, tokens_p99, requests_p50, requests_p99 } = row.before;
        let during = row.during;
        text += &format!(
            "| {} | {:.0} | {} | {tokens_p50:.0} / {tokens_p99:.0} | {:.0} / {:.0} | {requests_p50:.0} / {requests_p99:.0} | {:.0} / {:.0} | {:.1} | {:.1} | {cpu} | {} |\n",
            row.title,
            row.per_second,
            row.answered,
            during.tokens_p50,
            during.tokens_p99,
            during.requests_p50,
            during.requests_p99,
            row.memory_before,
            row.memory_peak,
            if row.served_after { "yes" } else { "**no**" },
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let row = Row { title: "x", served_after: true, ..Row::default() };
        let text = render(&[row]);
        let cells: Vec<_> = text.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(cells, [12, 12, 12], "{text}");
        assert!(text.ends_with("| yes |\n"), "{text}");
    }
}
