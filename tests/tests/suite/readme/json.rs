//! Every command that prints data prints it as JSON too, or there is a reason why not.

use std::{collections::BTreeSet, path::Path};

use clap::Command;

/// What a command without `--json` prints on its standard output.
const OTHERS: [(&str, &[&str]); 5] = [
    (
        "nothing: its exit code says how it went",
        &[
            "adit enroll",
            "adit down",
            "adit warm",
            "adit upgrade",
            "adit remove",
            "adit rename",
            "adit forget",
            "adit service install",
            "adit service uninstall",
            "aditd service install",
            "aditd service uninstall",
        ],
    ),
    ("it runs until it is stopped, and logs", &["adit up", "aditd serve"]),
    ("what another program prints", &["adit run", "adit service status", "aditd service status"]),
    (
        "a log, line by line, as it was written",
        &["adit logs", "adit service logs", "aditd service logs"],
    ),
    (
        "text in a format of its own: for a shell, in PEM, or the bytes of a tunnel",
        &["adit env", "adit completions", "aditd completions", "aditd relay"],
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
fn each_command_that_prints_data_prints_json_too() {
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
