//! The counts, the file with those that were accepted, and the comparison.

use std::{collections::BTreeMap, fmt, path::Path, process::Command};

use common::machine::report::Failure;
use serde::{Deserialize, Serialize};

use crate::stats::median;

/// How much larger than the accepted count a count may be, as a part of it.
const BAND: f64 = 0.10;
const ACCEPT: &str = "cargo run -p adit-tests --bin adit-bench -- instructions --accept";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    /// One token of an answer.
    Token,
    /// One small request and its answer, on a kept connection.
    Request,
    /// 1,000,000 bytes to the laptop.
    MegabyteDown,
    /// 1,000,000 bytes to the server.
    MegabyteUp,
}

impl Work {
    /// All of it.
    pub(super) const ALL: [Self; 4] =
        [Self::Token, Self::Request, Self::MegabyteDown, Self::MegabyteUp];

    fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Request => "request",
            Self::MegabyteDown => "MB down",
            Self::MegabyteUp => "MB up",
        }
    }
}

/// All counts: by work, and by end.
type Rounds = BTreeMap<Work, BTreeMap<String, Vec<f64>>>;

/// Instructions for each unit of work, by end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    schema: u32,
    /// The compiler that built the programs: another one makes other instructions.
    rustc: String,
    #[serde(serialize_with = "medians", deserialize_with = "singles")]
    counts: Rounds,
}

fn medians<S: serde::Serializer>(counts: &Rounds, serializer: S) -> Result<S::Ok, S::Error> {
    let middle = |counts: &Vec<f64>| median(counts).unwrap_or(0.0).round() as u64;
    let ends = |ends: &BTreeMap<String, Vec<f64>>| -> BTreeMap<String, u64> {
        ends.iter().map(|(end, counts)| (end.clone(), middle(counts))).collect()
    };
    let counts: BTreeMap<Work, _> =
        counts.iter().map(|(work, by_end)| (*work, ends(by_end))).collect();
    counts.serialize(serializer)
}

fn singles<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Rounds, D::Error> {
    let counts = BTreeMap::<Work, BTreeMap<String, f64>>::deserialize(deserializer)?;
    let ends = |ends: BTreeMap<String, f64>| {
        ends.into_iter().map(|(end, count)| (end, vec![count])).collect()
    };
    Ok(counts.into_iter().map(|(work, by_end)| (work, ends(by_end))).collect())
}

impl Counts {
    /// None yet, with this machine's compiler.
    pub(super) fn here() -> Self {
        let rustc = Command::new("rustc").arg("--version").output();
        let rustc = rustc
            .map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
            .unwrap_or_default();
        Self { schema: 1, rustc, counts: BTreeMap::new() }
    }

    /// Adds one.
    pub(super) fn add(&mut self, work: Work, end: &str, count: f64) {
        self.counts.entry(work).or_default().entry(end.to_owned()).or_default().push(count);
    }

    /// Adds all of `more`.
    pub(super) fn extend(&mut self, more: Self) {
        for (work, ends) in more.counts {
            for (end, counts) in ends {
                self.counts.entry(work).or_default().entry(end).or_default().extend(counts);
            }
        }
    }

    /// Reads the accepted ones.
    pub(super) fn read(file: &Path) -> Result<Self, Failure> {
        let failed = || {
            Failure::new(format!("cannot read the accepted counts in {}", file.display()))
                .hint(format!("`{ACCEPT}` makes them anew"))
        };
        let text = std::fs::read(file).map_err(|e| failed().source(e))?;
        serde_json::from_slice(&text).map_err(|e| failed().source(e))
    }

    /// Writes them as accepted.
    pub(super) fn write(&self, file: &Path) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(self).map_err(std::io::Error::other);
        let written = json.and_then(|json| std::fs::write(file, json + "\n"));
        written.map_err(|e| Failure::new(format!("cannot write {}", file.display())).source(e))
    }

    fn each(&self) -> impl Iterator<Item = (Work, &str, &[f64])> {
        self.counts.iter().flat_map(|(work, ends)| {
            ends.iter().map(|(end, counts)| (*work, end.as_str(), counts.as_slice()))
        })
    }

    fn of(&self, work: Work, end: &str) -> Option<f64> {
        median(self.counts.get(&work)?.get(end)?)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (work, end, counts)) in self.each().enumerate() {
            let line = if at == 0 { "" } else { "\n" };
            write!(f, "{line}{:<8} {end:<6} {:>12.0}", work.name(), median(counts).unwrap_or(0.0))?;
        }
        Ok(())
    }
}

/// The accepted counts beside the present ones.
#[derive(Debug)]
pub(super) struct Comparison {
    accepted: Counts,
    now: Counts,
}

impl Comparison {
    pub(super) fn new(accepted: Counts, now: Counts) -> Self {
        Self { accepted, now }
    }

    /// Takes the present counts of another tunnel where they are lower.
    pub(super) fn with_fewer_of(mut self, other: Counts) -> Self {
        for (work, ends) in other.counts {
            for (end, counts) in ends {
                let present = self.now.counts.entry(work).or_default().entry(end).or_default();
                let is_lower = median(present).is_none_or(|now| median(&counts) < Some(now));
                if is_lower {
                    *present = counts;
                }
            }
        }
        self
    }

    /// How much each count has grown, as a part of the accepted one; `None` for one that nobody has
    /// accepted.
    fn grown(&self) -> Vec<(Work, &str, f64, Option<f64>)> {
        let lines = self.now.each().map(|(work, end, counts)| {
            let now = median(counts).unwrap_or(0.0);
            let accepted = self.accepted.of(work, end).filter(|accepted| *accepted > 0.0);
            (work, end, now, accepted.map(|accepted| now / accepted - 1.0))
        });
        lines.collect()
    }

    /// Whether all have stayed in the band.
    ///
    /// # Errors
    /// Those that have not, and how to accept them.
    pub(super) fn verdict(&self, file: &Path) -> Result<(), Failure> {
        let lines = self.grown();
        let bad: Vec<_> =
            lines.iter().filter(|(.., grown)| grown.is_none_or(|grown| grown > BAND)).collect();
        if bad.is_empty() {
            return Ok(());
        }
        let mut failure = Failure::new(format!(
            "{} of {} instruction counts are more than {:.0} % above those in {}",
            bad.len(),
            lines.len(),
            BAND * 100.0,
            file.display()
        ));
        for (work, end, now, grown) in bad {
            let how = grown.map_or("nobody has accepted one".to_owned(), |grown| {
                format!("{:+.1} %", grown * 100.0)
            });
            failure = failure.hint(format!("{end}, per {}: {now:.0}, {how}", work.name()));
        }
        if self.accepted.rustc != self.now.rustc {
            failure = failure.hint(format!(
                "those were counted with {}, these with {}: a compiler can change them, too",
                self.accepted.rustc, self.now.rustc
            ));
        }
        Err(failure.hint(format!("if that has to be: `{ACCEPT}`, and say why in the commit")))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<6} {:>12} {:>12} {:>8}", "per", "by", "accepted", "now", "")?;
        for (work, end, now, grown) in self.grown() {
            let accepted = self.accepted.of(work, end).unwrap_or(0.0);
            let grown = grown.map_or_else(String::new, |grown| format!("{:+.1} %", grown * 100.0));
            write!(f, "\n{:<8} {end:<6} {accepted:>12.0} {now:>12.0} {grown:>8}", work.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(Work, &str, f64)]) -> Counts {
        let mut counts = Counts { schema: 1, rustc: "rustc 1".to_owned(), counts: BTreeMap::new() };
        for (work, end, count) in of {
            counts.add(*work, end, *count);
        }
        counts
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("counts.json");
        let kept = counts(&[(Work::Token, "adit", 5.4), (Work::MegabyteUp, "aditd", 7.0)]);
        kept.write(&file).expect("written");
        let read = Counts::read(&file).expect("read");
        assert_eq!(read, counts(&[(Work::Token, "adit", 5.0), (Work::MegabyteUp, "aditd", 7.0)]));
        std::fs::write(&file, "{").expect("written");
        let said = Counts::read(&file).expect_err("damaged").to_string();
        assert!(said.contains("--accept"), "{said}");
    }

    #[test]
    fn growth_beyond_the_band_fails_and_says_what_by_how_much_and_how_to_accept_it() {
        let accepted = counts(&[(Work::Token, "adit", 100.0), (Work::Token, "aditd", 100.0)]);
        let file = Path::new("instructions.json");
        let verdict = |adit, aditd| {
            let now = counts(&[(Work::Token, "adit", adit), (Work::Token, "aditd", aditd)]);
            Comparison::new(accepted.clone(), now).verdict(file)
        };
        assert!(verdict(109.0, 50.0).is_ok(), "fewer are welcome");
        let said = verdict(100.0, 120.0).expect_err("grown").to_string();
        assert!(
            said.contains("1 of 2") && said.contains("aditd, per token: 120, +20.0 %"),
            "{said}"
        );
        assert!(said.contains("instructions --accept") && !said.contains("compiler"), "{said}");
    }

    #[test]
    fn growth_has_to_show_in_each_tunnel() {
        let of = |up, down| {
            counts(&[(Work::MegabyteUp, "adit", up), (Work::MegabyteDown, "adit", down)])
        };
        let first = Comparison::new(of(100.0, 100.0), of(120.0, 100.0));
        assert!(first.verdict(Path::new("x")).is_err());
        let second = first.with_fewer_of(of(109.0, 120.0));
        assert!(second.verdict(Path::new("x")).is_ok(), "{second}");
    }

    #[test]
    fn many_tunnels_are_accepted_as_their_median() {
        let mut all = counts(&[(Work::Token, "adit", 1.0)]);
        all.extend(counts(&[(Work::Token, "adit", 9.0)]));
        all.extend(counts(&[(Work::Token, "adit", 2.0)]));
        assert_eq!(all.of(Work::Token, "adit"), Some(2.0));
    }

    #[test]
    fn the_median_counts_and_another_compiler_is_named() {
        let accepted = counts(&[(Work::Request, "adit", 100.0)]);
        let mut now = counts(&[
            (Work::Request, "adit", 100.0),
            (Work::Request, "adit", 900.0),
            (Work::Request, "adit", 101.0),
        ]);
        now.rustc = "rustc 2".to_owned();
        assert!(Comparison::new(accepted.clone(), now.clone()).verdict(Path::new("x")).is_ok());
        now.add(Work::Token, "adit", 1.0);
        let said =
            Comparison::new(accepted, now).verdict(Path::new("x")).expect_err("new").to_string();
        assert!(said.contains("nobody has accepted one") && said.contains("rustc 2"), "{said}");
    }
}
