//! A cure: a command as it is typed, and a note about it.

use serde::{Deserialize, Serialize};

/// What cures something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cure {
    /// What the command does, or on which machine to run it; may be empty.
    #[serde(default)]
    pub note: String,
    /// The command; `None` if the note alone is the cure.
    pub command: Option<String>,
}

impl Cure {
    /// Adds `flags` to each command of `program` in it, so that the command works on the same state
    /// directory. Commands are separated by the shell's `;` and `&&`.
    pub fn add_flags(&mut self, program: &str, flags: &str) {
        let Some(command) = &mut self.command else { return };
        let mut all = String::new();
        let parts = command.split_inclusive("; ").flat_map(|part| part.split_inclusive(" && "));
        for part in parts {
            let end = part.trim_end_matches("; ").trim_end_matches(" && ");
            let is_ours = end.split(' ').next() == Some(program) && !end.contains(flags);
            all += end;
            all += if is_ours { flags } else { "" };
            all += &part[end.len()..];
        }
        *command = all;
    }
}

/// The cures in a hint. Each command in it stands between backticks, after the words that belong
/// to it: ``on the server run `aditd invite NAME`, then here `adit enroll` ``.
pub(super) fn of_hint(hint: &str) -> Vec<Cure> {
    let mut cures: Vec<Cure> = Vec::new();
    let mut rest = hint;
    while let Some((note, after)) = rest.split_once('`')
        && let Some((command, after)) = after.split_once('`')
    {
        if is_command(command) {
            cures.push(Cure { note: tidy(note), command: Some(command.to_owned()) });
            rest = after;
        } else {
            // A name or a setting, not a command: it stays in the note.
            let whole = format!("{note}\u{0}{command}\u{0}{after}");
            return finish(cures, &whole);
        }
    }
    finish(cures, rest)
}

/// Adds the text after the last command. It is a note of its own only if no command came before it.
fn finish(mut cures: Vec<Cure>, rest: &str) -> Vec<Cure> {
    let rest = rest.replace('\u{0}', "`");
    match cures.last_mut() {
        None => cures.push(Cure { note: tidy(&rest), command: None }),
        Some(last) if last.note.is_empty() => last.note = tidy(&rest),
        Some(_) => {}
    }
    cures.retain(|cure| cure.command.is_some() || !cure.note.is_empty());
    cures
}

/// Whether this is a command of a shell: it begins with one of the programs that our hints name.
fn is_command(text: &str) -> bool {
    const PROGRAMS: [&str; 29] = [
        "adit",
        "aditd",
        "apt-get",
        "cargo",
        "chmod",
        "curl",
        "eval",
        "export",
        "grep",
        "install",
        "journalctl",
        "kill",
        "loginctl",
        "ls",
        "mv",
        "ollama",
        "pkcs11-tool",
        "rm",
        "ssh",
        "ssh-add",
        "ssh-copy-id",
        "ssh-keygen",
        "sudo",
        "systemctl",
        "timedatectl",
        "touch",
        "tpm2_changeauth",
        "tpm2_getcap",
        "unset",
    ];
    let first = text.split_whitespace().next().unwrap_or_default();
    let program = first.rsplit('/').next().unwrap_or_default();
    PROGRAMS.contains(&program)
}

/// A note without the punctuation that joined it to a command.
fn tidy(words: &str) -> String {
    let joins = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | ':' | '(' | ')' | '.');
    let words = words.trim_matches(joins);
    let words = words.strip_prefix("or ").unwrap_or(words);
    match words {
        "run" | "with" | "and" | "or" | "then" => String::new(),
        words => words.trim_matches(joins).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_to_each_command_of_the_program_and_to_no_other() {
        for (command, with) in [
            ("adit up", "adit up --x"),
            ("adit up --x", "adit up --x"),
            ("kill 7; adit up lab", "kill 7; adit up lab --x"),
            ("adit enroll && adit up", "adit enroll --x && adit up --x"),
            ("aditd serve", "aditd serve"),
        ] {
            let mut cure = Cure { note: String::new(), command: Some(command.to_owned()) };
            cure.add_flags("adit", " --x");
            assert_eq!(cure.command.as_deref(), Some(with));
        }
    }

    #[test]
    fn each_command_of_a_hint_is_a_cure_with_the_words_before_it() {
        for (hint, cures) in [
            ("start it with `adit up lab`", &[("start it with", "adit up lab")][..]),
            (
                "on the server run `aditd invite NAME`, then here `adit enroll --name lab`",
                &[
                    ("on the server run", "aditd invite NAME"),
                    ("then here", "adit enroll --name lab"),
                ],
            ),
            (
                "if nobody has copied it: `chmod 600 '/x/identity.json'`",
                &[("if nobody has copied it", "chmod 600 '/x/identity.json'")],
            ),
            (
                "start it there: `aditd serve`, or `sudo systemctl start aditd` if it is a service",
                &[
                    ("start it there", "aditd serve"),
                    ("if it is a service", "sudo systemctl start aditd"),
                ],
            ),
            ("check both clocks", &[("check both clocks", "")]),
            (
                "look at `upstream` in its configuration",
                &[("look at `upstream` in its configuration", "")],
            ),
            ("`/usr/bin/ssh -p 22 me@gpu`", &[("", "/usr/bin/ssh -p 22 me@gpu")]),
            ("", &[]),
            ("an odd ` mark", &[("an odd ` mark", "")]),
        ] {
            let found: Vec<_> = of_hint(hint)
                .into_iter()
                .map(|cure| (cure.note, cure.command.unwrap_or_default()))
                .collect();
            let found: Vec<_> = found.iter().map(|(n, c)| (n.as_str(), c.as_str())).collect();
            assert_eq!(found, cures, "{hint}");
        }
    }
}
