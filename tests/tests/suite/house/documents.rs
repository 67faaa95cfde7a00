//! Whatever the documents name exists: files, tests, commands, flags, environment variables, links.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::root;

/// Documents beside those in `docs/`.
const TOP: [&str; 4] = ["README.md", "SECURITY.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
/// Folders that are not part of the project.
const FOREIGN: [&str; 3] = ["target", ".git", ".ci-cache"];
/// A snake-case word with this many underscores or more is the name of a test.
const TEST_NAME: usize = 5;

/// A document, and where its links lead from.
struct Document {
    path: PathBuf,
    text: String,
}

fn documents() -> Vec<Document> {
    let pages = fs::read_dir(root().join("docs")).expect("the folder docs");
    let pages = pages.map(|entry| entry.expect("an entry").path());
    let all = TOP.map(|name| root().join(name)).into_iter().chain(pages);
    all.filter(|path| path.extension().is_some_and(|end| end == "md"))
        .map(|path| Document { text: fs::read_to_string(&path).expect("readable"), path })
        .collect()
}

impl Document {
    fn name(&self) -> String {
        self.path.file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// The text without its code blocks, and the lines of those in a shell's language.
    fn without_blocks(&self) -> (String, Vec<String>) {
        let (mut text, mut shell) = (String::new(), Vec::new());
        let mut language: Option<&str> = None;
        for line in self.text.lines() {
            match (line.strip_prefix("```"), language) {
                (Some(_), Some(_)) => language = None,
                (Some(fence), None) => language = Some(fence),
                (None, Some("sh")) => shell.push(line.to_owned()),
                (None, Some(_)) => {}
                (None, None) => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        (text, shell)
    }

    /// What stands between backticks, each on one line.
    fn code(&self) -> Vec<String> {
        let (text, _) = self.without_blocks();
        let paragraphs = text.split("\n\n").flat_map(|part| match part.starts_with('|') {
            true => part.lines().map(ToOwned::to_owned).collect(),
            false => vec![part.split_whitespace().collect::<Vec<_>>().join(" ")],
        });
        let spans = paragraphs.flat_map(|part| {
            let part = part.replace("`` ` ``", "");
            part.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect::<Vec<_>>()
        });
        spans.collect()
    }

    /// The commands that a reader can type. A text that ends with `…` is a message.
    fn commands(&self) -> Vec<String> {
        let (_, shell) = self.without_blocks();
        let is_ours = |line: &String| {
            !line.ends_with(" …") && ["adit ", "aditd "].iter().any(|name| line.starts_with(name))
        };
        let all = self.code().into_iter().chain(shell);
        let all = all.map(|line| line.strip_prefix("sudo ").unwrap_or(&line).to_owned());
        all.filter(is_ours).collect()
    }
}

/// Every file and folder of the project, relative to its root, with `/` at the end of a folder.
fn tree() -> BTreeSet<String> {
    fn walk(dir: &Path, below: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if FOREIGN.contains(&&*name) {
                continue;
            }
            let relative = format!("{below}{name}");
            if path.is_dir() {
                walk(&path, &format!("{relative}/"), found);
                found.insert(format!("{relative}/"));
            } else {
                found.insert(relative);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&root(), "", &mut found);
    found
}

fn is_path(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    text.contains('/') && !text.starts_with('/') && text.chars().all(is_plain)
}

/// Fails with everything that is missing, each with the document that names it.
fn assert_none(missing: &[String]) {
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}

#[test]
fn every_path_and_link_in_the_documents_exists() {
    let tree = tree();
    let top: BTreeSet<&str> = tree.iter().filter_map(|path| path.split('/').next()).collect();
    let (mut missing, mut paths) = (Vec::new(), 0);
    for document in documents() {
        let name = document.name();
        for code in document.code() {
            let first = code.split('/').next().unwrap_or_default();
            let is_there = || {
                let folder = format!("{}/", code.trim_end_matches('/'));
                tree.contains(&code) || tree.contains(&folder)
            };
            if is_path(&code) && top.contains(first) {
                paths += 1;
                // The map of the architecture may leave the crate's folder out.
                let ends_so = |path: &String| {
                    name == "ARCHITECTURE.md" && path.ends_with(&format!("/{code}"))
                };
                if !is_there() && !tree.iter().any(ends_so) {
                    missing.push(format!("{name}: no file `{code}`"));
                }
            } else if name == "ARCHITECTURE.md" && code.ends_with(".rs") {
                paths += 1;
                let file = code.trim_start_matches("../");
                if !tree.iter().any(|path| path == file || path.ends_with(&format!("/{file}"))) {
                    missing.push(format!("{name}: no file `{code}`"));
                }
            }
        }
        let folder = document.path.parent().expect("a folder");
        let links = document.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let to = link.split('#').next().unwrap_or(link);
            if !folder.join(to).exists() {
                missing.push(format!("{name}: no file for the link `{link}`"));
            }
        }
    }
    assert!(paths > 100, "{paths} paths were checked");
    assert_none(&missing);
}

/// The names of all functions in the project's sources, by file.
fn functions() -> BTreeMap<String, BTreeSet<String>> {
    let sources = tree().into_iter().filter(|path| path.ends_with(".rs"));
    let read = |path: String| {
        let text = fs::read_to_string(root().join(&path)).expect("readable");
        let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
        let names = names.map(ToOwned::to_owned).collect();
        (path, names)
    };
    sources.map(read).collect()
}

/// Whether `gate::limits` or `gate::limits::a_test` names a module or a test of the suite.
fn is_in_suite(name: &str, functions: &BTreeMap<String, BTreeSet<String>>) -> bool {
    let suite = |path: &str| {
        ["", "/mod"]
            .iter()
            .find_map(|end| functions.get(&format!("tests/tests/suite/{path}{end}.rs")))
    };
    let path = name.replace("::", "/");
    if suite(&path).is_some() {
        return true;
    }
    let Some((module, function)) = path.rsplit_once('/') else { return false };
    suite(module).is_some_and(|names| names.contains(function))
}

/// Whether `common::transport` names a module of a crate: the log names its lines like this.
fn is_module(name: &str, functions: &BTreeMap<String, BTreeSet<String>>) -> bool {
    let Some((name, module)) = name.split_once("::") else { return false };
    let folder = if name == "proto" { "common/proto" } else { name };
    functions.contains_key(&format!("{folder}/src/{}.rs", module.replace("::", "/")))
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let functions = functions();
    let all: BTreeSet<&String> = functions.values().flatten().collect();
    let is_snake = |text: &str| {
        text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b':'))
    };
    let (mut missing, mut tests) = (Vec::new(), 0);
    for document in documents() {
        // The name may be the filter of a command.
        let code = document.code();
        let named = code.iter().flat_map(|code| code.rsplit(' ').next());
        for name in named.filter(|name| is_snake(name)) {
            let is_there = match name.contains("::") {
                true => is_in_suite(name, &functions) || is_module(name, &functions),
                false if name.matches('_').count() < TEST_NAME => continue,
                false => all.iter().any(|function| *function == name),
            };
            tests += 1;
            if !is_there {
                missing.push(format!("{}: no test `{name}`", document.name()));
            }
        }
    }
    assert!(tests > 20, "{tests} names were checked");
    assert_none(&missing);
}

/// Why a command line as a document writes it cannot be typed, if it cannot.
fn wrong_command(line: &str) -> Option<String> {
    let line = line.split([';', '|', '#', '&']).next().unwrap_or(line);
    let mut words = line.split_whitespace();
    let mut command = match words.next() {
        Some("adit") => client::command(),
        Some("aditd") => server::command(),
        _ => return None,
    };
    command.build();
    let mut may_be_sub = true;
    // Behind `--` is the command of somebody else.
    for word in words.take_while(|word| *word != "--") {
        let word = word.trim_start_matches('[').trim_end_matches([']', '…', ',']);
        if let Some(flag) = word.strip_prefix("--").map(|flag| flag.split('=').next()) {
            let flag = flag.unwrap_or_default();
            let is_known = command.get_arguments().any(|arg| arg.get_long() == Some(flag));
            if !is_known && !matches!(flag, "help" | "version") {
                return Some(format!("`{}` has no flag --{flag}", command.get_name()));
            }
            may_be_sub = false;
        } else if may_be_sub && command.has_subcommands() && !word.starts_with('-') {
            let Some(sub) = command.find_subcommand(word).cloned() else {
                return Some(format!("`{}` has no command `{word}`", command.get_name()));
            };
            command = sub;
        } else {
            may_be_sub = false;
        }
    }
    None
}

#[test]
fn every_command_that_the_documents_name_exists_with_its_flags() {
    let (mut missing, mut commands) = (Vec::new(), 0);
    for document in documents() {
        for line in document.commands() {
            commands += 1;
            if let Some(why) = wrong_command(&line) {
                missing.push(format!("{}: `{line}`: {why}", document.name()));
            }
        }
    }
    assert!(commands > 80, "{commands} commands were checked");
    assert_none(&missing);
    for wrong in
        ["adit fly", "aditd device eat laptop", "adit up --fast", "aditd invite --role x -q --y"]
    {
        assert!(wrong_command(wrong).is_some(), "{wrong}");
    }
}

/// Adds the flags and the environment variables of a command and of those below it.
fn settings(command: &clap::Command, found: &mut BTreeSet<String>) {
    for argument in command.get_arguments() {
        found.extend(argument.get_long().map(|flag| format!("--{flag}")));
        found.extend(argument.get_env().map(|name| name.to_string_lossy().into_owned()));
    }
    command.get_subcommands().for_each(|sub| settings(sub, found));
}

#[test]
fn every_environment_variable_of_ours_that_the_documents_name_exists() {
    let mut known = BTreeSet::new();
    settings(&client::command(), &mut known);
    settings(&server::command(), &mut known);
    let sources = tree().into_iter().filter(|path| path.ends_with(".rs") || path == "justfile");
    let sources: String =
        sources.map(|path| fs::read_to_string(root().join(path)).expect("readable")).collect();
    let (mut missing, mut variables) = (Vec::new(), 0);
    for document in documents() {
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        for word in document.text.split(|c: char| !is_name(c) && !c.is_ascii_digit()) {
            if !word.starts_with("ADIT_") && !word.starts_with("ADITD_") {
                continue;
            }
            variables += 1;
            if !known.contains(word) && !sources.contains(&format!("\"{word}\"")) {
                missing.push(format!("{}: no variable {word}", document.name()));
            }
        }
    }
    assert!(variables > 15, "{variables} variables were checked");
    assert_none(&missing);
}

#[test]
fn every_package_target_and_recipe_in_the_documents_exists() {
    let tree = tree();
    let manifests = tree.iter().filter(|path| path.ends_with("Cargo.toml"));
    let manifests: String =
        manifests.map(|path| fs::read_to_string(root().join(path)).expect("readable")).collect();
    let recipes = fs::read_to_string(root().join("justfile")).expect("readable");
    let (mut missing, mut named) = (Vec::new(), 0);
    for document in documents() {
        let (_, shell) = document.without_blocks();
        for line in document.code().into_iter().chain(shell) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_there = |kind: &str, name: &str| match kind {
                "-p" | "--package" => manifests.contains(&format!("name = \"{name}\"")),
                "--bin" => tree.iter().any(|path| path.ends_with(&format!("bin/{name}.rs"))),
                "--bench" => ["", "/main"]
                    .iter()
                    .any(|end| tree.contains(&format!("tests/benches/{name}{end}.rs"))),
                "--path" => tree.contains(&format!("{name}/")),
                "just" => recipes
                    .lines()
                    .any(|line| line.split([' ', ':']).next() == Some(name) && line.contains(':')),
                _ => true,
            };
            let is_cargo = words.first() == Some(&"cargo");
            for pair in words
                .windows(2)
                .filter(|pair| is_cargo || (pair[0] == "just" && words[0] == "just"))
            {
                named += 1;
                if !is_there(pair[0], pair[1]) {
                    missing.push(format!("{}: `{line}`: no {}", document.name(), pair[1]));
                }
            }
        }
    }
    assert!(named > 10, "{named} names were checked");
    assert_none(&missing);
}
