//! A report for people: a line for each check, with its cures indented below it. People copy a
//! command as it stands, so it is never wrapped. A note is written as a comment of the shell.

use super::{Cure, Group, Line, Report, Verdict};
use crate::human::{count, misleads, wrapped};

/// How a report is shown.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether it shows colours.
    pub colour: bool,
    /// Columns. Only a command or a single word may be longer.
    pub width: usize,
}

impl Style {
    /// 80 columns without colours.
    pub const PLAIN: Self = Self { colour: false, width: 80 };
}

/// The column at which a finding begins.
const FOUND: usize = 8;
/// The column at which a cure begins.
const CURE: usize = 10;

impl Report {
    /// The report for people. `box_name` is the name of the box, if it is another machine.
    pub fn to_text(&self, style: Style, box_name: Option<&str>) -> String {
        let mut text = String::new();
        for group in [Group::Laptop, Group::Way, Group::Box] {
            let mut lines = self.lines.iter().filter(|line| line.group == group).peekable();
            if lines.peek().is_none() {
                continue;
            }
            text += &heading(group, box_name);
            text.push('\n');
            while let Some(line) = lines.next() {
                // Checks that need the same one share a line.
                let mut titles = vec![plain(&line.title)];
                let is_same = |other: &&Line| {
                    line.verdict == Verdict::NotChecked
                        && other.verdict == Verdict::NotChecked
                        && other.found == line.found
                };
                while let Some(other) = lines.next_if(is_same) {
                    titles.push(plain(&other.title));
                }
                text += &shown(&titles.join(", "), line, style);
            }
            text.push('\n');
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let many = |verdict, what: &str| match self.count(verdict) {
            0 => None,
            n => Some(format!("{n} {what}")),
        };
        let parts = [
            many(Verdict::Bad, "bad"),
            many(Verdict::Warn, "warn"),
            many(Verdict::Ok, "ok"),
            many(Verdict::NotChecked, "not checked"),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        format!("{}: {}", count(self.lines.len() as u64, "check"), parts.join(", "))
    }
}

fn heading(group: Group, box_name: Option<&str>) -> String {
    match (group, box_name) {
        (Group::Laptop, _) => "This laptop".to_owned(),
        (Group::Way, _) => "The way".to_owned(),
        (Group::Box, None) => "The box".to_owned(),
        (Group::Box, Some(name)) => format!("The box ({}): run its commands there", plain(name)),
    }
}

fn shown(titles: &str, line: &Line, style: Style) -> String {
    let (word, colour) = match line.verdict {
        Verdict::Ok => ("ok", 32),
        Verdict::Warn => ("warn", 33),
        Verdict::Bad => ("bad", 31),
        Verdict::NotChecked => ("--", 2),
    };
    let word = format!("{word:<4}");
    let word = if style.colour { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word };
    let found = format!("{titles}: {}", plain(&line.found));
    let mut text = format!("  {word}  {}\n", wrapped(&found, FOUND, style.width));
    for cure in &line.cures {
        text += &shown_cure(cure, style);
    }
    text
}

fn shown_cure(Cure { note, command }: &Cure, style: Style) -> String {
    let mut text = String::new();
    if !note.is_empty() {
        let note = wrapped(&plain(note), CURE, style.width.saturating_sub(2));
        for row in note.lines() {
            text += &format!("{:CURE$}# {}\n", "", row.trim_start());
        }
    }
    if let Some(command) = command {
        text += &format!("{:CURE$}{}\n", "", plain(command));
    }
    text
}

/// A text of another program on one line, without characters that would control the terminal.
fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' => " ".to_owned(),
        c if misleads(c) => c.escape_default().to_string(),
        c => c.to_string(),
    };
    // The rows may be indented.
    let rows: Vec<_> = text.split('\n').map(|row| row.trim_matches(' ')).collect();
    rows.join(" ").chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Judgement, bad, examine, ok, warn};
    use super::*;
    use crate::doctor::{Check, not_checked};

    fn report() -> Report {
        let long = "taken on 127.0.0.1 and [::1] by `ollama` (pid 812), the Ollama of this laptop, so that `adit up` can't listen there";
        let check = |id, title, judge: fn(&Judgement) -> Option<Judgement>| Check {
            id,
            title,
            needs: &[],
            judge,
        };
        let mut lines = Vec::new();
        let given = |judged: &Judgement| Some(judged.clone());
        examine(Group::Laptop, &[check("state", "state", given)], &ok("for you alone"), &mut lines);
        let port = bad(long).cure_by(
            "keep the local Ollama; tools then need OLLAMA_HOST=localhost:11500, and this goes on",
            "adit up --listen localhost:11500 --state-dir '/home/somebody/with/a/very/long/path/for/this'",
        );
        examine(Group::Laptop, &[check("port", "port 11434", given)], &port, &mut lines);
        let evil = warn("\u{1b}[2Jx\n  ok    all is well");
        examine(Group::Box, &[check("evil", "box", given)], &evil, &mut lines);
        let unchecked = [check("m", "models", given), check("a", "at once", given)];
        examine(Group::Box, &unchecked, &not_checked("`Ollama`"), &mut lines);
        Report::new("1", lines)
    }

    #[test]
    fn a_report_is_read_in_eighty_columns_and_its_commands_stay_whole() {
        let expected = "\
This laptop
  ok    state: for you alone
  bad   port 11434: taken on 127.0.0.1 and [::1] by `ollama` (pid 812), the
        Ollama of this laptop, so that `adit up` can't listen there
          # keep the local Ollama; tools then need OLLAMA_HOST=localhost:11500,
          # and this goes on
          adit up --listen localhost:11500 --state-dir '/home/somebody/with/a/very/long/path/for/this'

The box (gpu): run its commands there
  warn  box: \\u{1b}[2Jx ok    all is well
  --    models, at once: not checked: needs `Ollama`

5 checks: 1 bad, 1 warn, 1 ok, 2 not checked";
        assert_eq!(report().to_text(Style::PLAIN, Some("gpu")), expected);
    }

    #[test]
    fn colour_is_all_that_colour_changes() {
        let coloured = report().to_text(Style { colour: true, ..Style::PLAIN }, None);
        assert!(coloured.contains("\u{1b}[31mbad \u{1b}[0m"));
        let mut without = coloured;
        for code in ["\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m", "\u{1b}[2m", "\u{1b}[0m"] {
            without = without.replace(code, "");
        }
        assert_eq!(without, report().to_text(Style::PLAIN, None));
    }

    #[test]
    fn a_narrow_terminal_breaks_lines_between_words_alone() {
        let text = report().to_text(Style { colour: false, width: 40 }, None);
        for line in text.lines().filter(|line| !line.contains("adit up --listen")) {
            assert!(line.chars().count() <= 44, "{line}");
        }
        assert!(text.contains("`ollama` (pid 812)") || text.contains("`ollama`\n"), "{text}");
    }
}
