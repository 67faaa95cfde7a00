//! Every command prints JSON, or there is a reason why not; a page says what is in it.

use std::{collections::BTreeSet, path::Path};

use clap::Command;

/// The commands that print no JSON, and why.
const OTHERS: [(&str, &[&str]); 3] = [
    ("it runs until it is stopped, and writes a log", &["adit up", "aditd serve"]),
    ("it becomes the program that it runs", &["adit run"]),
    (
        "a format of its own: a script for a shell, or the bytes of a tunnel",
        &["adit completions", "aditd completions", "aditd relay"],
    ),
];

fn leaves(command: &Command, before: &str, all: &mut Vec<(String, bool)>) {
    let name = format!("{before}{}", command.get_name());
    let below: Vec<_> =
        command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help").collect();
    if below.is_empty() {
        let has_json = command.get_arguments().any(|arg| arg.get_long() == Some("json"));
        all.push((name.clone(), has_json));
    }
    for command in below {
        leaves(command, &format!("{name} "), all);
    }
}

/// Each command of both programs that people type, and whether it has `--json`.
pub(crate) fn commands() -> Vec<(String, bool)> {
    let mut all = Vec::new();
    leaves(&client::command(), "", &mut all);
    leaves(&server::command(), "", &mut all);
    all
}

#[test]
fn each_command_prints_json_or_there_is_a_reason_why_not() {
    let all = commands();
    assert!(all.len() > 50, "{all:?}");
    let others: Vec<&str> = OTHERS.iter().flat_map(|(_, names)| *names).copied().collect();
    for (name, has_json) in &all {
        let is_listed = others.contains(&name.as_str());
        assert!(*has_json || is_listed, "`{name}` has neither --json nor a reason");
        assert!(!(*has_json && is_listed), "`{name}` has --json: it needs no reason");
    }
    for name in others {
        assert!(all.iter().any(|(known, _)| known == name), "there is no command `{name}`");
    }
}

#[test]
fn the_page_about_json_has_each_command_that_prints_it_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let page = std::fs::read_to_string(path).expect("the page");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let rows: BTreeSet<String> = rows.map(str::to_owned).collect();
    let printing = commands().into_iter().filter(|(_, has_json)| *has_json).map(|(name, _)| name);
    assert_eq!(rows, printing.collect());
}
