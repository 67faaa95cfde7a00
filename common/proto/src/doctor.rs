//! The checks of `adit doctor` and `aditd doctor`. A check is a row of a table: its name, the other
//! checks that it needs, and the function that judges what was found. The two programs collect the
//! findings. Here no clock and no socket is named.

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

/// The version of a report as JSON. A report of a later version may have more fields.
pub const SCHEMA: u32 = 1;
/// At most so many lines of the other program are shown, with at most so many bytes in each text.
const MOST_LINES: usize = 64;
const MOST_TEXT: usize = 2048;

/// The part of the report to which a check belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The computer that runs `adit`.
    Laptop,
    /// What is between the two machines.
    Way,
    /// The machine that runs `aditd`.
    Box,
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is well.
    Ok,
    /// It works, but could work better, or will soon stop working.
    Warn,
    /// Something does not work, or is open to others.
    Bad,
    /// A check that this one needs failed, or could not be made.
    NotChecked,
}

/// One check and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The name of the check for scripts, for example `port`. It stays the same in later versions.
    pub id: String,
    pub group: Group,
    /// The name of the check for people.
    pub title: String,
    pub verdict: Verdict,
    /// What was found, in words.
    pub found: String,
    /// What cures it; the likeliest cure comes first.
    #[serde(default)]
    pub cures: Vec<Cure>,
    /// The server does not, or no longer, let this device in.
    #[serde(default)]
    pub denied: bool,
}

/// A whole report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this document: [`SCHEMA`].
    pub schema: u32,
    /// Version of the program that made it.
    pub version: String,
    /// One line for each check that applies, in groups.
    pub lines: Vec<Line>,
}

/// The outcome of a check, without the check's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    verdict: Verdict,
    found: String,
    cures: Vec<Cure>,
    denied: bool,
}

/// A check. It judges findings of the type `F`.
pub struct Check<F> {
    /// The name for scripts.
    pub id: &'static str,
    /// The name for people.
    pub title: &'static str,
    /// The ids of checks of the same report. If one of them failed, this check is not made.
    pub needs: &'static [&'static str],
    /// Judges the findings; `None` if the check does not apply here.
    pub judge: fn(&F) -> Option<Judgement>,
}

/// A judgement: all is well.
pub fn ok(found: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Ok, found: found.into(), cures: Vec::new(), denied: false }
}

/// A judgement: it works, but could work better.
pub fn warn(found: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Warn, ..ok(found) }
}

/// A judgement: it is broken.
pub fn bad(found: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Bad, ..ok(found) }
}

/// A judgement: it could not be checked. `needs` says what the check needs.
pub fn not_checked(needs: impl std::fmt::Display) -> Judgement {
    Judgement { verdict: Verdict::NotChecked, ..ok(format!("not checked: needs {needs}")) }
}

/// A judgement: it is broken. Text and cures are those of the failure.
pub fn failed(failure: &Failure) -> Judgement {
    let causes = failure.causes().iter().map(String::as_str);
    let found: Vec<_> = std::iter::once(failure.what()).chain(causes).collect();
    let judged = bad(found.join(": ")).hints(failure.hints());
    if failure.exit_code() == Exit::NotAllowed { judged.denied() } else { judged }
}

impl Judgement {
    /// Adds a command that cures it when it is typed as it stands.
    pub fn cure(mut self, command: impl Into<String>) -> Self {
        self.cures.push(Cure { note: String::new(), command: Some(command.into()) });
        self
    }

    /// Adds a command that cures it, and a note: what it does, or on which machine to run it.
    pub fn cure_by(mut self, note: impl Into<String>, command: impl Into<String>) -> Self {
        self.cures.push(Cure { note: note.into(), command: Some(command.into()) });
        self
    }

    /// Adds the cures that the hints of a failure contain.
    pub fn hints<T: AsRef<str>>(mut self, hints: &[T]) -> Self {
        self.cures.extend(hints.iter().flat_map(|hint| cure::of_hint(hint.as_ref())));
        self
    }

    /// Marks that the server does not, or no longer, let this device in.
    pub fn denied(mut self) -> Self {
        self.denied = true;
        self
    }

    /// Turns "bad" into "warn", because something else does the same work.
    pub fn softened(mut self) -> Self {
        if self.verdict == Verdict::Bad {
            self.verdict = Verdict::Warn;
        }
        self.denied = false;
        self
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// Makes `checks` and adds their lines to `lines`. Checks that they need may already have lines
/// there.
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

    /// The lines of this report, which the other program sent, as lines of the box. They are
    /// shortened where they are too long, because a peer may send anything.
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

    /// The exit code of the command; `None` if nothing is bad.
    pub fn exit(&self) -> Option<Exit> {
        if self.lines.iter().any(|line| line.denied) {
            return Some(Exit::NotAllowed);
        }
        (self.count(Verdict::Bad) > 0).then_some(Exit::Failed)
    }
}

/// A question on a stream of [`StreamHead::Doctor`](crate::wire::StreamHead::Doctor).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoctorRequest {
    /// What does the server's clock show? The time until the answer is a round trip.
    Clock,
    /// What does the box report? The answer has only what this device may know.
    Report,
}

/// The answer to a [`DoctorRequest`].
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
