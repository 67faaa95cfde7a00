//! ARCHITECTURE.md has a line for each source file, in the table of its crate.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{imports::files, root};

/// A table of ARCHITECTURE.md.
struct Table {
    /// The first cell of its head, and the folder at which the paths in it begin.
    head: &'static str,
    /// The folder whose files need a line, below `head`.
    folder: &'static str,
    /// Whether a folder stands for all files in it where no row names one of them.
    folders_suffice: bool,
}

const TABLES: [Table; 5] = [
    Table { head: "common/proto/src", folder: "", folders_suffice: false },
    Table { head: "common/src", folder: "", folders_suffice: false },
    Table { head: "client/src", folder: "", folders_suffice: false },
    Table { head: "server/src", folder: "", folders_suffice: false },
    Table { head: "tests", folder: "src", folders_suffice: true },
];

fn map() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).expect("readable")
}

/// The rows of a table.
fn rows<'a>(map: &'a str, head: &str) -> Vec<&'a str> {
    let begin = format!("| `{head}` |");
    let lines = map.lines().skip_while(|line| !line.starts_with(&begin));
    lines.take_while(|line| line.starts_with('|')).skip(2).collect()
}

/// What stands between backticks.
fn spans(row: &str) -> impl Iterator<Item = &str> {
    row.split('`').skip(1).step_by(2)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The files that a row names. A name may leave out the folder of another file of the row, or the
/// folder that is called like such a file.
fn named(row: &str, files: &BTreeSet<String>, folders_suffice: bool) -> BTreeSet<String> {
    let mut folders = BTreeSet::from([String::new()]);
    let mut before = 0;
    while folders.len() > before {
        before = folders.len();
        for (folder, name) in folders.clone().iter().flat_map(|f| spans(row).map(move |s| (f, s))) {
            let path = join(folder, name);
            if let Some(own) = path.strip_suffix('/') {
                let is_there = files.iter().any(|file| file.starts_with(&path));
                folders.extend(is_there.then(|| own.to_owned()));
            } else if files.contains(&path) {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                folders.extend([parent, path.trim_end_matches(".rs")].map(str::to_owned));
            }
        }
    }
    // A name that fits in several folders is meant in the innermost.
    let innermost = |name: &str| {
        let fits = folders.iter().map(|folder| join(folder, name));
        fits.filter(|path| files.contains(path)).max_by_key(String::len)
    };
    let mut named: BTreeSet<_> = spans(row).filter_map(innermost).collect();
    let whole = spans(row).filter(|name| name.ends_with('/') && folders_suffice);
    for whole in whole.flat_map(|name| folders.iter().map(move |folder| join(folder, name))) {
        let within: Vec<_> = files.iter().filter(|file| file.starts_with(&whole)).collect();
        if within.iter().all(|file| !named.contains(*file)) {
            named.extend(within.into_iter().cloned());
        }
    }
    named
}

fn missing(map: &str, table: &Table) -> Vec<String> {
    let base = root().join(table.head);
    let mut found: Vec<PathBuf> = Vec::new();
    files(&base.join(table.folder), &mut found);
    let relative = |path: &Path| path.strip_prefix(&base).expect("below it").display().to_string();
    let files: BTreeSet<String> = found.iter().map(|path| relative(path)).collect();
    let rows = rows(map, table.head);
    assert!(rows.len() > 3, "the table {} was read", table.head);
    let named: BTreeSet<_> =
        rows.iter().flat_map(|row| named(row, &files, table.folders_suffice)).collect();
    let is_root = |file: &str| matches!(file, "lib.rs" | "main.rs" | "src/lib.rs");
    let missing = files.difference(&named).filter(|file| !is_root(file));
    missing.map(|file| format!("{}/{file}", table.head)).collect()
}

#[test]
fn every_file_has_its_line_in_the_table_of_its_crate() {
    let map = map();
    let missing: Vec<_> = TABLES.iter().flat_map(|table| missing(&map, table)).collect();
    assert!(missing.is_empty(), "not in ARCHITECTURE.md:\n{}", missing.join("\n"));
    // A name in another crate's table does not count.
    let without = map.replace("| `tunnel/loss.rs` |", "| `tunnel/` |");
    assert!(without.contains("losses.rs") && without != map, "the line is there");
    let missing: Vec<_> = TABLES.iter().flat_map(|table| self::missing(&without, table)).collect();
    assert_eq!(missing, ["client/src/tunnel/loss.rs"]);
}

#[test]
fn every_folder_of_the_suite_is_named() {
    let map = map();
    let row = rows(&map, "tests").into_iter().find(|row| row.starts_with("| `tests/suite/`"));
    let named: BTreeSet<_> = spans(row.expect("a row")).collect();
    let entries = fs::read_dir(root().join("tests/tests/suite")).expect("the suite");
    let folders = entries.map(|entry| entry.expect("an entry").path());
    let folders = folders
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned());
    let missing: Vec<_> = folders.filter(|folder| !named.contains(&**folder)).collect();
    assert!(missing.is_empty(), "not in ARCHITECTURE.md: {missing:?}");
}
