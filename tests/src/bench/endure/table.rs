//! The table of endurance.

use std::time::Duration;

use serde::Serialize;

use crate::endurance::held::{Held, Holds};

/// One part.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) count: u64,
    pub(super) failed: u64,
    /// The first of them.
    pub(super) failures: Vec<String>,
    pub(super) seconds: f64,
    /// What both programs held before and after, where they lived that long.
    pub(super) held: Option<(Held, Held)>,
    pub(super) note: String,
}

impl Row {
    /// A part that did something so often, without a failure.
    pub(super) fn of(count: u64) -> Self {
        Self { count, ..Self::default() }
    }

    /// What it left open counts as failures.
    pub(super) fn leaks(mut self, leaks: impl IntoIterator<Item = String>) -> Self {
        self.failures.extend(leaks);
        self.failed = self.failures.len() as u64;
        self
    }

    /// A part that could not come to its end.
    pub(super) fn failed(what: &'static str, why: String, took: Duration) -> Self {
        let seconds = took.as_secs_f64();
        Self { what, failed: 1, failures: vec![why], seconds, ..Self::default() }
    }
}

/// The table as Markdown.
pub(super) fn render(rows: &[Row]) -> String {
    let mut text = "| what | times | failed | seconds | aditd: MiB before / after | descriptors | adit: MiB before / after | descriptors | more |\n|---|---:|---:|---:|---:|---:|---:|---:|---|\n".to_owned();
    for row in rows {
        let held = |of: fn(&Held) -> Holds| {
            let Some((before, after)) = &row.held else { return "– | –".to_owned() };
            let (before, after) = (of(before), of(after));
            let mib = |holds: Holds| holds.rss_kib as f64 / 1024.0;
            format!("{:.1} / {:.1} | {} / {}", mib(before), mib(after), before.fds, after.fds)
        };
        let (server, client) = (held(|held| held.server), held(|held| held.client));
        text += &format!(
            "| {} | {} | {} | {:.0} | {server} | {client} | {} |\n",
            row.what, row.count, row.failed, row.seconds, row.note
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let held = Some((Held::default(), Held::default()));
        let whole = Row { what: "x", held, note: "y".to_owned(), ..Row::of(3) };
        assert_eq!(Row::of(3).leaks(None).failed, 0);
        assert_eq!(Row::of(3).leaks(["aditd holds more".to_owned()]).failed, 1);
        let failed = Row::failed("z", "why".to_owned(), Duration::from_secs(7));
        let text = render(&[whole, failed]);
        let cells: Vec<_> = text.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(cells, [10, 10, 10, 10], "{text}");
        assert!(text.contains("| x | 3 | 0 | 0 | 0.0 / 0.0 | 0 / 0 |"), "{text}");
        assert!(text.contains("| z | 0 | 1 | 7 | – | – |"), "{text}");
    }
}
