//! `docs/reference.md` is made of the command lines themselves, and `docs/configuration.md` has
//! every setting of both files and no other.

use std::{collections::BTreeSet, fmt::Write, os::unix::process::CommandExt, path::PathBuf};

use clap::{Arg, Command};
use server::{Config, Flags, ServeFlags};

use crate::PROGRAM;

/// Set to anything, it makes the test write the reference instead of comparing it.
const UPDATE: &str = "ADIT_UPDATE_REFERENCE";
const HEAD: &str = "# Commands and flags

Made of the programs' own help: `just reference` writes this page. A flag overrides its environment
variable, and both override a configuration file. Separate several values in a variable by commas.
";

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn placeholder(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default().iter().map(|name| name.as_str());
    let names = names.collect::<Vec<_>>().join(" ");
    let many = arg.get_num_args().is_some_and(|n| n.max_values() > 1)
        || matches!(arg.get_action(), clap::ArgAction::Append);
    format!("{names}{}", if many && !names.is_empty() { "…" } else { "" })
}

fn shown(arg: &Arg) -> String {
    let takes_value = arg.get_action().takes_values();
    let value = if takes_value { placeholder(arg) } else { String::new() };
    match (arg.get_short(), arg.get_long()) {
        (_, None) if arg.is_positional() => value,
        (Some(short), Some(long)) => format!("-{short}, --{long} {value}"),
        (None, Some(long)) => format!("--{long} {value}"),
        (Some(short), None) => format!("-{short} {value}"),
        (None, None) => value,
    }
}

fn help(arg: &Arg) -> String {
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() && arg.get_action().takes_values() {
        let _ = write!(help, ": {}", values.join(", "));
    }
    let defaults = arg.get_default_values();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        let defaults: Vec<_> = defaults.iter().map(|value| value.to_string_lossy()).collect();
        let _ = write!(help, " [default: {}]", defaults.join(", "));
    }
    cell(&help)
}

fn describe(page: &mut String, command: &Command, path: &str, global: &BTreeSet<String>) {
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let _ = write!(page, "\n## {path}\n\n{about}\n");
    let is_told =
        |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let own: Vec<&Arg> = command
        .get_arguments()
        .filter(is_told)
        .filter(|arg| path.split(' ').count() == 1 || !global.contains(arg.get_id().as_str()))
        .collect();
    if !own.is_empty() {
        page.push_str("\n| argument | environment | what it does |\n|---|---|---|\n");
        for arg in own {
            let environment = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
            let _ = writeln!(
                page,
                "| `{}` | {} | {} |",
                cell(&shown(arg)),
                environment.unwrap_or_default(),
                help(arg)
            );
        }
    }
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        if sub.get_name() != "help" {
            describe(page, sub, &format!("{path} {}", sub.get_name()), global);
        }
    }
}

fn reference() -> String {
    let mut page = HEAD.to_owned();
    for mut command in [client::command(), server::command()] {
        command.build();
        let global = command.get_arguments().filter(|arg| arg.is_global_set());
        let global = global.map(|arg| arg.get_id().to_string()).collect();
        let name = command.get_name().to_owned();
        describe(&mut page, &command, &name, &global);
    }
    page
}

#[test]
fn the_reference_is_what_the_programs_say_of_themselves() {
    let (path, is) = (docs("reference.md"), reference());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &is).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    if written == is {
        return;
    }
    let differs = written.lines().zip(is.lines()).find(|(written, is)| written != is);
    panic!(
        "docs/reference.md is old: `just reference` writes it anew. First difference: {differs:?}"
    );
}

/// What `adit` says of a file of settings with this content, and whether it takes it.
pub(super) fn adit_says(content: &str) -> (bool, String) {
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("adit.toml");
    std::fs::write(&path, content).expect("written");
    let mut adit = std::process::Command::new(PROGRAM);
    adit.arg0("adit").arg("config").arg("--config").arg(&path);
    let out = adit.arg("--state-dir").arg(tmp.path().join("state")).output().expect("it runs");
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// The settings that the error for an unknown one names.
fn named(error: &str) -> BTreeSet<String> {
    let (_, known) = error.split_once("the settings here are ").expect("it names them");
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The settings of a table of the laptop's file.
fn settings_of_adit(table: &str) -> BTreeSet<String> {
    let (taken, error) = adit_says(&format!("{table}\nno_such_setting = 1\n"));
    assert!(!taken, "an unknown setting");
    named(&error)
}

/// The settings of a table of the box's file.
fn settings(table: &str) -> BTreeSet<String> {
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("aditd.toml");
    std::fs::write(&path, format!("{table}\nno_such_setting = 1\n")).expect("written");
    let flags = Flags { state_dir: Some(tmp.path().join("state")), config: Some(path) };
    let error = Config::resolve(&flags, &ServeFlags::default()).expect_err("an unknown setting");
    named(&error.to_string())
}

#[test]
fn the_page_on_the_configuration_has_each_setting_and_no_other() {
    let page = std::fs::read_to_string(docs("configuration.md")).expect("the page");
    for (heading, settings) in [
        ("## Settings", settings("")),
        ("## `[limits]`", settings("[limits]")),
        ("## `[roles.NAME]`", settings("[roles.tagger]\nallow = [\"GET /\"]")),
        ("## `[devices.NAME]`", settings("[devices.laptop]")),
        ("## `[users.NAME]`", settings("[users.alice]")),
        ("## The laptop: `adit.toml`", settings_of_adit("")),
        ("## `[servers.NAME]`", settings_of_adit("[servers.lab]")),
    ] {
        let (_, part) = page.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
        let part = part.split("\n## ").next().unwrap_or_default();
        let told: BTreeSet<String> = part
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split('`').next())
            .map(str::to_owned)
            .collect();
        assert_eq!(told, settings, "{heading}");
    }
}
