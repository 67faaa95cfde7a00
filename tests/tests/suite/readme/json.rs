//! Every command prints JSON, or there is a reason why not; a page says what is in it.

use std::collections::{BTreeMap, BTreeSet};

use clap::Command;
use serde_json::Value;

const PAGE: &str = include_str!("../../../../docs/json.md");

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

/// The test that prints an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// That of the commands of `adit`.
    Adit,
    /// That of the commands of `aditd`.
    Aditd,
    /// That of the queue.
    Queue,
    /// That of services besides Ollama.
    Services,
    /// That of people who sign in.
    SignIn,
    /// That of an authority that fails.
    Acme,
    /// That of the tokens of a provider.
    Tokens,
}

/// The objects that the test of the program's commands does not print, or that of the other program
/// does; and the test that prints them.
const OBJECTS: [(By, &[&str]); 6] = [
    (By::Adit, &["server", "variables", "state_dir", "settings", "each of settings"]),
    (
        By::Queue,
        &[
            "sessions",
            "aditd status: queue",
            "aditd status: requests",
            "aditd status: users",
            "aditd status: waiting",
        ],
    ),
    (By::Services, &["services", "adit ls: services"]),
    (By::SignIn, &["oidc"]),
    (By::Acme, &["acme", "acme: cure", "certificate"]),
    (By::Tokens, &["callers", "https", "jwt"]),
];

impl By {
    /// The test that prints the object with this name; `None` if it is a whole document, which is a row.
    fn of(name: &str) -> Option<Self> {
        if name.ends_with(" --json") {
            return None;
        }
        let listed = OBJECTS.into_iter().find(|(_, names)| names.contains(&name));
        Some(match listed {
            Some((by, _)) => by,
            None if name.starts_with("adit ") => Self::Adit,
            None => Self::Aditd,
        })
    }
}

/// The page about JSON, and what of it has been printed.
pub(crate) struct Page {
    rows: Vec<Row>,
    /// The fields of each table of an object, by its heading; none where the keys are free.
    objects: BTreeMap<String, Fields>,
    printed: BTreeSet<String>,
}

/// A row of the tables of commands.
struct Row {
    /// What stands in its first cell.
    key: String,
    command: String,
    /// Empty if another part of the page has them.
    fields: Fields,
}

type Fields = BTreeSet<String>;

/// The fields that a cell names: at the beginning of each part, before what explains them.
fn named(cell: &str) -> Fields {
    let parts = cell.split("; ").filter_map(|part| part.split(": ").next());
    let names = parts.flat_map(|part| part.split(", ")).filter_map(|name| {
        let (name, _) = name.strip_prefix('`')?.split_once('`')?;
        Some(name.to_owned())
    });
    names.collect()
}

/// The rows of the tables in a section: their first and their second cell.
fn table(section: &str) -> impl Iterator<Item = (&str, &str)> {
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.trim_matches(['|', ' ']).split_once(" | "))
}

/// The command whose name begins `words`.
fn command_of(words: &str) -> Option<String> {
    let is_it = |name: &String| {
        words.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    commands().into_iter().map(|(name, _)| name).find(is_it)
}

impl Page {
    pub(crate) fn read() -> Self {
        let (mut rows, mut objects) = (Vec::new(), BTreeMap::new());
        let page = PAGE.replace("\n### ", "\n## ");
        for section in page.split("\n## ").skip(1) {
            let (heading, section) = section.split_once('\n').expect("a heading");
            let heading = heading.replace('`', "");
            if heading == "adit" || heading == "aditd" {
                rows.extend(table(section).map(|(key, fields)| {
                    let key = key.replace('`', "");
                    let command = command_of(&key).unwrap_or_else(|| panic!("no command `{key}`"));
                    Row { key, command, fields: named(fields) }
                }));
            } else if section.contains("\n|---|---|\n") {
                let fields: Fields = table(section).flat_map(|(cell, _)| named(cell)).collect();
                objects.extend(heading.split(", ").map(|name| (name.to_owned(), fields.clone())));
            }
        }
        Self { rows, objects, printed: BTreeSet::new() }
    }

    /// Asserts that a document of a command has the fields of one of its rows and no others, and
    /// that each object in it has those of its table.
    #[track_caller]
    pub(crate) fn has(&mut self, command: &str, document: &Value) {
        let mut fields = fields(document);
        fields.remove("schema");
        let own = self.objects.get(&format!("{command} --json"));
        let mut rows = self.rows.iter().filter(|row| row.command == command);
        let row = rows.find(|row| fields == *own.unwrap_or(&row.fields));
        let key = &row.unwrap_or_else(|| panic!("`{command}`: no row has {fields:?}")).key;
        self.printed.insert(key.clone());
        self.has_objects(command, "", document);
    }

    fn has_objects(&mut self, command: &str, parent: &str, object: &Value) {
        for (field, value) in object.as_object().into_iter().flatten() {
            let all = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for value in all.iter().filter(|value| value.is_object()) {
                let free = self.objects.get(parent).is_some_and(Fields::is_empty);
                let names = match free {
                    true => vec![format!("each of {parent}")],
                    false => vec![
                        format!("{command}: {field}"),
                        format!("{parent}: {field}"),
                        field.clone(),
                    ],
                };
                let known = names.iter().find(|name| self.objects.contains_key(*name));
                let name = known.unwrap_or_else(|| panic!("`{command}`: no table of `{field}`"));
                let table = &self.objects[name];
                assert!(
                    table.is_empty() || fields(value) == *table,
                    "`{command}`: {name}: {value}"
                );
                self.printed.insert(name.clone());
                self.has_objects(command, name, value);
            }
        }
    }

    /// Asserts that each row of these commands has been printed.
    #[track_caller]
    pub(crate) fn is_printed(&self, is_tried: impl Fn(&str) -> bool) {
        let rows = self.rows.iter().filter(|row| is_tried(&row.command) && !row.fields.is_empty());
        let missed: Vec<_> =
            rows.map(|row| &row.key).filter(|key| !self.printed.contains(*key)).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }

    /// Asserts that each object has been printed whose table is the part of this test.
    #[track_caller]
    pub(crate) fn objects_are_printed(&self, by: By) {
        let own = self.objects.keys().filter(|name| By::of(name) == Some(by));
        let missed: Vec<_> = own.filter(|name| !self.printed.contains(*name)).collect();
        assert!(missed.is_empty(), "{missed:?}");
    }
}

fn fields(object: &Value) -> Fields {
    object.as_object().expect("an object").keys().cloned().collect()
}

#[test]
fn the_page_about_json_has_each_command_that_prints_it_and_no_other() {
    let rows: BTreeSet<_> = Page::read().rows.into_iter().map(|row| row.command).collect();
    let printing = commands().into_iter().filter(|(_, has_json)| *has_json).map(|(name, _)| name);
    assert_eq!(rows, printing.collect());
}

#[test]
fn each_object_that_another_test_prints_is_one_of_the_page() {
    let page = Page::read();
    for name in OBJECTS.into_iter().flat_map(|(_, names)| names) {
        assert!(page.objects.contains_key(*name), "there is no table of `{name}`");
    }
}
