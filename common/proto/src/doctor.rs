//! What `adit doctor` and `aditd doctor` look at, and what they make of it. A check is a line of a
//! table: what it is called, which other checks it needs, and how it judges what was found. Whoever
//! finds things out stands elsewhere; here no clock and no socket is named.

#[cfg(test)]
mod breakage;
pub mod bundle;
pub mod cure;
pub mod gpu_box;
pub mod laptop;
pub mod text;
pub mod way;

use serde::{Deserialize, Serialize};

pub use self::cure::Cure;
use crate::failure::{Exit, Failure};

/// The version of a report as JSON. A later one may have more fields.
pub const SCHEMA: u32 = 1;
/// Lines of the other program that are shown, and bytes of text in one of them.
const MOST_LINES: usize = 64;
const MOST_TEXT: usize = 2048;

/// Where something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// On the computer that runs `adit`.
    Laptop,
    /// Between both.
    Way,
    /// On the machine that runs `aditd`.
    Box,
}

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and could be better, or will not work for long.
    Warn,
    /// Something does not work, or is open to others.
    Bad,
    /// What it needs is broken or could not be asked.
    NotChecked,
}

/// One check and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// For programs: `port`, `certificate` …
    pub id: String,
    /// Where.
    pub group: Group,
    /// For people.
    pub title: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found, in words.
    pub found: String,
    /// What cures it, the likeliest first.
    #[serde(default)]
    pub cures: Vec<Cure>,
    /// This device is not, or no longer, allowed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub denied: bool,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this document: [`SCHEMA`].
    pub schema: u32,
    /// Version of the program that made it.
    pub version: String,
    /// One line for each check that applies, in groups.
    pub lines: Vec<Line>,
}

/// What a check makes of the findings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    verdict: Verdict,
    found: String,
    cures: Vec<Cure>,
    denied: bool,
}

/// A check of findings of the type `F`.
pub struct Check<F> {
    /// For programs.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// Checks of the same report without which this one says nothing, by id.
    pub needs: &'static [&'static str],
    /// The judgement; `None` if it does not apply here.
    pub judge: fn(&F) -> Option<Judgement>,
}

/// It is as it should be.
pub fn ok(found: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Ok, found: found.into(), cures: Vec::new(), denied: false }
}

/// It could be better.
pub fn warn(found: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Warn, ..ok(found) }
}

/// It is broken.
pub fn bad(found: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Bad, ..ok(found) }
}

/// It could not be looked at; `needs` is what that would take.
pub fn not_checked(needs: impl std::fmt::Display) -> Judgement {
    Judgement { verdict: Verdict::NotChecked, ..ok(format!("not checked: needs {needs}")) }
}

/// It is broken as a failure says, with its cures.
pub fn failed(failure: &Failure) -> Judgement {
    let causes = failure.causes().iter().map(String::as_str);
    let found: Vec<_> = std::iter::once(failure.what()).chain(causes).collect();
    let judged = bad(found.join(": ")).hints(failure.hints());
    if failure.exit_code() == Exit::NotAllowed { judged.denied() } else { judged }
}

impl Judgement {
    /// A command that cures it, run as it stands.
    pub fn cure(mut self, command: impl Into<String>) -> Self {
        self.cures.push(Cure { note: String::new(), command: Some(command.into()) });
        self
    }

    /// A command that cures it, and what it is for or where it is run.
    pub fn cure_by(mut self, note: impl Into<String>, command: impl Into<String>) -> Self {
        self.cures.push(Cure { note: note.into(), command: Some(command.into()) });
        self
    }

    /// Cures in the words of a failure's hints.
    pub fn hints<T: AsRef<str>>(mut self, hints: &[T]) -> Self {
        self.cures.extend(hints.iter().flat_map(|hint| cure::of_hint(hint.as_ref())));
        self
    }

    /// This device is not, or no longer, allowed.
    pub fn denied(mut self) -> Self {
        self.denied = true;
        self
    }

    /// The same, where something else does its work.
    pub fn softened(mut self) -> Self {
        if self.verdict == Verdict::Bad {
            self.verdict = Verdict::Warn;
        }
        self.denied = false;
        self
    }

    /// How it came out.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// Makes the lines of `checks` and adds them to `lines`, where what they need may stand already.
pub fn examine<F>(group: Group, checks: &[Check<F>], found: &F, lines: &mut Vec<Line>) {
    for check in checks {
        let is_broken = |line: &&Line| {
            check.needs.contains(&&*line.id)
                && matches!(line.verdict, Verdict::Bad | Verdict::NotChecked)
        };
        let judged = match lines.iter().find(is_broken) {
            Some(needed) => Some(not_checked(format!("`{}`", needed.title))),
            None => (check.judge)(found),
        };
        lines.extend(judged.map(|judged| Line {
            id: check.id.to_owned(),
            group,
            title: check.title.to_owned(),
            verdict: judged.verdict,
            found: judged.found,
            cures: judged.cures,
            denied: judged.denied,
        }));
    }
}

impl Report {
    /// A report of this program.
    pub fn new(version: impl Into<String>, lines: Vec<Line>) -> Self {
        Self { schema: SCHEMA, version: version.into(), lines }
    }

    /// The lines of the other program, whatever it says of their group, and not too many: a peer may
    /// send anything.
    pub fn lines_of_box(mut self) -> Vec<Line> {
        self.lines.truncate(MOST_LINES);
        for line in &mut self.lines {
            line.group = Group::Box;
            for text in [&mut line.id, &mut line.title, &mut line.found] {
                shorten(text);
            }
            line.cures.truncate(8);
            for cure in &mut line.cures {
                shorten(&mut cure.note);
                cure.command.iter_mut().for_each(shorten);
            }
        }
        self.lines
    }

    /// How many lines have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.lines.iter().filter(|line| line.verdict == verdict).count()
    }

    /// How the command ends: `None` if nothing is bad.
    pub fn exit(&self) -> Option<Exit> {
        if self.lines.iter().any(|line| line.denied) {
            return Some(Exit::NotAllowed);
        }
        (self.count(Verdict::Bad) > 0).then_some(Exit::Failed)
    }
}

/// What is asked on a stream of [`StreamHead::Doctor`](crate::wire::StreamHead::Doctor).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoctorRequest {
    /// What does the server's clock show? The time of the answer is the round trip.
    Clock,
    /// What is wrong with the box, as far as this device may know it?
    Report,
}

/// What is answered there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoctorAnswer {
    /// What the clock shows, in Unix milliseconds.
    Clock(i64),
    /// What was found.
    Report(Report),
}

fn shorten(text: &mut String) {
    let end = (0..=MOST_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Found {
        works: bool,
    }

    const CHECKS: [Check<Found>; 4] = [
        Check {
            id: "root",
            title: "the root",
            needs: &[],
            judge: |found| {
                Some(if found.works { ok("fine") } else { bad("broken").cure("mend it") })
            },
        },
        Check { id: "leaf", title: "the leaf", needs: &["root"], judge: |_| Some(ok("green")) },
        Check { id: "worm", title: "the worm", needs: &["leaf"], judge: |_| Some(warn("hungry")) },
        Check { id: "none", title: "nothing", needs: &[], judge: |_| None },
    ];

    fn report(works: bool) -> Report {
        let mut lines = Vec::new();
        examine(Group::Laptop, &CHECKS, &Found { works }, &mut lines);
        Report::new("1", lines)
    }

    #[test]
    fn what_needs_something_broken_is_not_checked_and_so_is_what_needs_that() {
        let shown = |works| -> Vec<_> {
            let lines = report(works).lines.into_iter();
            lines.map(|line| (line.verdict, line.found)).collect()
        };
        let is = |verdict, found: &str| (verdict, found.to_owned());
        assert_eq!(
            shown(true),
            [is(Verdict::Ok, "fine"), is(Verdict::Ok, "green"), is(Verdict::Warn, "hungry")]
        );
        assert_eq!(
            shown(false),
            [
                is(Verdict::Bad, "broken"),
                is(Verdict::NotChecked, "not checked: needs `the root`"),
                is(Verdict::NotChecked, "not checked: needs `the leaf`"),
            ]
        );
    }

    #[test]
    fn the_exit_code_says_whether_something_is_bad_or_not_allowed() {
        assert_eq!((report(true).exit(), report(false).exit()), (None, Some(Exit::Failed)));
        let mut denied = report(false);
        denied.lines[0].denied = true;
        assert_eq!(denied.exit(), Some(Exit::NotAllowed));
        let told = failed(&Failure::new("no").exit(Exit::NotAllowed).hint("ask `root`"));
        assert_eq!((told.denied, told.cures.len()), (true, 1));
    }

    #[test]
    fn what_a_peer_says_is_bounded_and_stays_in_its_group() {
        let mut lie = report(true);
        lie.lines[0].found = "ä".repeat(10_000);
        lie.lines[0].cures = vec![Cure::default(); 100];
        lie.lines = vec![lie.lines[0].clone(); 1000];
        let lines = lie.lines_of_box();
        assert_eq!(lines.len(), MOST_LINES);
        assert!(lines.iter().all(|line| line.group == Group::Box && line.cures.len() <= 8));
        assert!(lines[0].found.len() <= MOST_TEXT && lines[0].found.ends_with('ä'));
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_a_later_one_too() {
        let report = report(false);
        let mut json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(json["lines"][1]["verdict"], "not_checked");
        json["lines"][0]["severity"] = 7.into();
        assert_eq!(serde_json::from_value::<Report>(json).expect("a report"), report);
    }
}
