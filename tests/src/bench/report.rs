//! What a run of the benchmark found, and how it is shown.

pub mod markdown;
pub mod plot;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::stats::{distribution, median, spread};

use super::{
    machine::Quiet,
    plan::LeftOut,
    row::{Bound, Figure, Goal, ROWS, Row},
    work::Outcome,
};

/// The version of the JSON.
const SCHEMA: u32 = 1;

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this shape.
    pub schema: u32,
    /// When it began, as `2026-11-27T18:30` (UTC).
    pub began: String,
    /// Adit's version.
    pub version: &'static str,
    /// Whether it was a quick one.
    pub quick: bool,
    /// How quiet the machine was.
    pub machine: Quiet,
    /// In order.
    pub rows: Vec<Measured>,
    /// Of the rows that were measured.
    pub goals: Vec<Judged>,
    /// What was left out.
    pub left_out: Vec<LeftOut>,
}

/// One row.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// The row.
    #[serde(skip)]
    pub row: &'static Row,
    /// Its name.
    pub id: &'static str,
    /// Where.
    pub scene: &'static str,
    /// In the order of the table.
    pub contestants: Vec<Result>,
}

/// One contestant in one row.
#[derive(Debug, Default, Serialize)]
pub struct Result {
    /// Who.
    pub name: String,
    /// Of each round.
    pub figures: BTreeMap<Figure, Vec<f64>>,
    /// Quantiles of the times of all rounds: the part of them, from 0 to 1, that took no more than
    /// so many µs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub distribution_us: Vec<(f64, f64)>,
    /// What kept rounds from being measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    #[serde(skip)]
    samples: Vec<f64>,
}

/// A goal, and what was measured.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// The row.
    pub row: &'static str,
    /// Who.
    pub who: &'static str,
    /// Of which number.
    pub figure: Figure,
    /// A multiple of another's number, or none.
    pub relative_to: Option<String>,
    /// No more than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// No less than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// The number, or the ratio.
    pub measured: f64,
    /// Whether it is reached.
    pub met: bool,
}

impl Report {
    /// Puts it together.
    pub fn new(
        began: String,
        quick: bool,
        machine: Quiet,
        rows: Vec<Measured>,
        left_out: Vec<LeftOut>,
    ) -> Self {
        let goals = rows.iter().flat_map(|measured| {
            measured.row.goals.iter().filter_map(|goal| judge(&rows, measured.row.id, goal))
        });
        let goals = goals.collect();
        Self {
            schema: SCHEMA,
            began,
            version: env!("CARGO_PKG_VERSION"),
            quick,
            machine,
            rows,
            goals,
            left_out,
        }
    }
}

impl Measured {
    /// A row that nobody has been measured in.
    pub fn new(row: &'static Row, names: impl IntoIterator<Item = String>) -> Self {
        let result = |name| Result { name, ..Result::default() };
        let contestants = names.into_iter().map(result).collect();
        Self { row, id: row.id, scene: row.scene.id(), contestants }
    }

    /// Adds what one round found.
    pub fn add(&mut self, contestant: usize, outcome: std::result::Result<Outcome, String>) {
        let Some(result) = self.contestants.get_mut(contestant) else { return };
        match outcome {
            Ok(outcome) => {
                for (figure, value) in outcome.figures {
                    result.figures.entry(figure).or_default().push(value);
                }
                result.samples.extend(outcome.samples);
            }
            Err(why) => result.failed.push(why),
        }
    }

    /// Makes the distributions, when all rounds are over.
    pub fn finish(&mut self) {
        for result in &mut self.contestants {
            result.distribution_us = distribution(&mut std::mem::take(&mut result.samples));
        }
    }

    fn of(&self, name: &str) -> Option<&Result> {
        self.contestants.iter().find(|result| result.name == name)
    }
}

impl Result {
    /// The median of the rounds.
    pub fn median(&self, figure: Figure) -> Option<f64> {
        self.figures.get(&figure).and_then(|rounds| median(rounds))
    }

    /// How far the rounds are apart, as a part of the median.
    pub fn spread(&self, figure: Figure) -> Option<f64> {
        self.figures.get(&figure).and_then(|rounds| spread(rounds))
    }
}

fn judge(rows: &[Measured], row: &'static str, goal: &Goal) -> Option<Judged> {
    let figure = |id: &str, name: &str| {
        rows.iter().find(|measured| measured.id == id)?.of(name)?.median(goal.figure)
    };
    let own = figure(row, goal.who)?;
    let measured = match goal.to {
        Some((id, name)) => own / figure(id, name)?,
        None => own,
    };
    let (at_most, at_least, met) = match goal.bound {
        Bound::AtMost(most) => (Some(most), None, measured <= most),
        Bound::AtLeast(least) => (None, Some(least), measured >= least),
    };
    let relative_to = goal
        .to
        .map(|(id, name)| if id == row { name.to_owned() } else { format!("{name} in {id}") });
    debug_assert!(ROWS.iter().any(|known| known.id == row));
    Some(Judged {
        row,
        who: goal.who,
        figure: goal.figure,
        relative_to,
        at_most,
        at_least,
        measured,
        met,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine at rest.
    pub(in crate::bench) fn quiet() -> Quiet {
        Quiet {
            processors: 2,
            kernel: "6.18".to_owned(),
            load_before: 0.1,
            stolen: Some(0.01),
            work_ms: 4.0,
            work_p90_ms: 4.4,
        }
    }

    /// A row in which each contestant has these numbers in its rounds.
    pub(in crate::bench) fn measured(id: &str, rounds: &[(&str, &[(Figure, f64)])]) -> Measured {
        let row = ROWS.iter().find(|row| row.id == id).expect("a row");
        let mut names: Vec<_> = rounds.iter().map(|(name, _)| (*name).to_owned()).collect();
        names.dedup();
        let mut measured = Measured::new(row, names);
        for (name, figures) in rounds {
            let at =
                measured.contestants.iter().position(|result| result.name == *name).expect("there");
            let figures: BTreeMap<_, _> = figures.iter().copied().collect();
            measured.add(at, Ok(Outcome { figures, samples: vec![1.0, 2.0, 3.0] }));
        }
        measured.finish();
        measured
    }

    #[test]
    fn a_goal_is_judged_by_the_median_alone_or_as_a_ratio() {
        let rows = vec![
            measured(
                "veth/requests",
                &[
                    ("ssh", &[(Figure::P50, 200.0)]),
                    ("adit", &[(Figure::P50, 100.0)]),
                    ("adit", &[(Figure::P50, 900.0)]),
                    ("adit", &[(Figure::P50, 90.0)]),
                ],
            ),
            measured("w2/tokens-64", &[("adit", &[(Figure::P50, 1.0), (Figure::P99, 38_001.0)])]),
        ];
        let report = Report::new("now".to_owned(), false, quiet(), rows, Vec::new());
        let told: Vec<_> =
            report.goals.iter().map(|goal| (goal.row, goal.measured, goal.met)).collect();
        assert_eq!(told, [("veth/requests", 0.5, true), ("w2/tokens-64", 38_001.0, false)]);
        assert_eq!(report.goals[0].relative_to.as_deref(), Some("ssh"));
    }

    #[test]
    fn the_json_names_units_and_has_a_schema() {
        let mut row =
            measured("veth/download", &[("adit", &[(Figure::Rate, 1.5), (Figure::Cpu, 2.0)])]);
        row.add(0, Err("cut".to_owned()));
        let report = Report::new("now".to_owned(), true, quiet(), vec![row], Vec::new());
        let json = serde_json::to_value(&report).expect("json");
        assert_eq!(json["schema"], 1);
        let adit = &json["rows"][0]["contestants"][0];
        assert_eq!(adit["figures"]["rate_mbit_s"], serde_json::json!([1.5]));
        assert_eq!(adit["figures"]["cpu_s_per_gb"], serde_json::json!([2.0]));
        assert_eq!(adit["failed"], serde_json::json!(["cut"]));
        assert_eq!(adit["distribution_us"][0], serde_json::json!([0.0, 1.0]));
    }
}
