//! Tables and JSON, as commands print them.

use comfy_table::{Table, presets};
use proto::document::escaped;
use serde::Serialize;

use crate::machine::report::Failure;

/// A table as text, without lines around it.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    let text = table.to_string();
    let lines = text.lines().map(str::trim_end);
    lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// Indented JSON.
///
/// # Errors
/// If the value has no form in JSON.
pub fn to_json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map(escaped).map_err(no_json)
}

/// JSON in one line.
///
/// # Errors
/// If the value has no form in JSON.
pub fn to_json_line(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map(escaped).map_err(no_json)
}

fn no_json(error: serde_json::Error) -> Failure {
    Failure::new("cannot write JSON").source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_and_nothing_at_the_ends_of_lines() {
        let rows = [["a".to_owned(), "long".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(table(["X", "Y"], rows), "X       Y\na       long\nlonger");
    }
}
