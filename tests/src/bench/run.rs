//! Runs a plan: scene by scene, row by row, round by round, one contestant after another.

use std::{path::PathBuf, sync::Arc};

use common::machine::{
    process::{minute, unix_now},
    report as shown,
};
use tokio::task::JoinSet;

use super::{
    contestant::Contestant,
    machine::Watch,
    open::Stage,
    plan::{Entry, LeftOut, Plan},
    report::{Measured, Report},
    row::Scene,
    work::{Outcome, measure},
};

/// What all measurements of a run need.
struct Run {
    programs: Arc<Vec<PathBuf>>,
    seed: u64,
    watch: Watch,
    rows: Vec<Measured>,
    left_out: Vec<LeftOut>,
}

/// A contestant of a scene. After a failure it has no stage.
struct Place {
    contestant: Contestant,
    stage: Option<Stage>,
}

/// Measures everything.
pub(super) async fn all(plan: Plan, programs: Vec<PathBuf>, seed: u64, quick: bool) -> Report {
    let began = minute(unix_now());
    let mut run = Run {
        programs: Arc::new(programs),
        seed,
        watch: Watch::new(),
        rows: Vec::new(),
        left_out: plan.left_out.clone(),
    };
    for scene in Scene::ALL {
        let entries: Vec<_> =
            plan.entries.iter().filter(|entry| entry.row.scene == scene).cloned().collect();
        if !entries.is_empty() {
            run.scene(scene, entries, &plan.contestants).await;
        }
    }
    Report::new(began, quick, run.watch.quiet(), run.rows, run.left_out)
}

impl Run {
    async fn scene(&mut self, scene: Scene, entries: Vec<Entry>, everybody: &[Contestant]) {
        let takes_part =
            |one: &&Contestant| entries.iter().any(|entry| entry.contestants.contains(one));
        let who = everybody.iter().filter(takes_part).cloned().collect();
        shown::say(format_args!("{}: {}", scene.id(), scene.title()));
        let mut places = self.set_up(scene, who).await;
        for entry in entries {
            let taking_part = |place: &Place| entry.contestants.contains(&place.contestant);
            let at: Vec<_> = (0..places.len()).filter(|at| taking_part(&places[*at])).collect();
            let names = at.iter().map(|at| places[*at].contestant.name.clone());
            let mut measured = Measured::new(entry.row, names);
            for round in 0..entry.rounds {
                self.watch.work();
                self.round(&entry, round, &mut places, &at, &mut measured).await;
            }
            measured.finish();
            self.rows.push(measured);
        }
    }

    /// Sets all contestants up at the same time. A contestant that fails is left out of the scene.
    async fn set_up(&mut self, scene: Scene, who: Vec<Contestant>) -> Vec<Place> {
        let mut coming = JoinSet::new();
        for (order, contestant) in who.into_iter().enumerate() {
            let (programs, seed) = (self.programs.clone(), self.seed);
            coming.spawn(async move {
                let stage = open(&contestant, scene, programs, seed).await;
                (order, contestant, stage)
            });
        }
        let mut came = coming.join_all().await;
        came.sort_by_key(|(order, ..)| *order);
        let mut places = Vec::new();
        for (_, contestant, stage) in came {
            match stage {
                Ok(stage) => places.push(Place { contestant, stage: Some(stage) }),
                Err(why) => {
                    let what = format!("{} in {}", contestant.name, scene.id());
                    shown::say(format_args!("left out: {what}: {why}"));
                    self.left_out.push(LeftOut { what, why });
                }
            }
        }
        places
    }

    async fn round(
        &self,
        entry: &Entry,
        round: usize,
        places: &mut [Place],
        at: &[usize],
        measured: &mut Measured,
    ) {
        let mut turns: Vec<_> = (0..at.len()).collect();
        // In each round another contestant is first.
        turns.rotate_left(round % at.len().max(1));
        let together = entry.row.scene.is_side_by_side(entry.row.work);
        let groups: Vec<Vec<usize>> =
            if together { vec![turns] } else { turns.into_iter().map(|turn| vec![turn]).collect() };
        for group in groups {
            let mut running = JoinSet::new();
            for turn in group {
                let Place { contestant, stage } = &mut places[at[turn]];
                let (stage, contestant) = (stage.take(), contestant.clone());
                let (entry, programs, seed) = (entry.clone(), self.programs.clone(), self.seed);
                running.spawn(async move {
                    let (stage, outcome) = one(stage, &contestant, &entry, programs, seed).await;
                    (turn, stage, outcome)
                });
            }
            while let Some(ended) = running.join_next().await {
                let Ok((turn, stage, outcome)) = ended else { continue };
                let place = &mut places[at[turn]];
                place.stage = stage;
                shown::say(format_args!(
                    "{} {}: {}",
                    entry.row.id,
                    place.contestant.name,
                    told(&outcome)
                ));
                measured.add(turn, outcome);
            }
        }
    }
}

/// Measures one contestant. It is set up first if an earlier failure has ended it; a failure ends
/// it.
async fn one(
    stage: Option<Stage>,
    contestant: &Contestant,
    entry: &Entry,
    programs: Arc<Vec<PathBuf>>,
    seed: u64,
) -> (Option<Stage>, Result<Outcome, String>) {
    let stage = match stage {
        Some(stage) => stage,
        None => match open(contestant, entry.row.scene, programs, seed).await {
            Ok(stage) => stage,
            Err(why) => return (None, Err(why)),
        },
    };
    match measure(&stage, entry.row.work, entry.seconds).await {
        Ok(outcome) => (Some(stage), Ok(outcome)),
        Err(e) => (None, Err(e.to_string())),
    }
}

/// Sets a contestant up. A process that does not become ready panics with its log; here the panic
/// becomes an error.
async fn open(
    contestant: &Contestant,
    scene: Scene,
    programs: Arc<Vec<PathBuf>>,
    seed: u64,
) -> Result<Stage, String> {
    let contestant = contestant.clone();
    let mut task = JoinSet::new();
    task.spawn(async move { Stage::open(&contestant, scene, &programs, seed).await });
    match task.join_next().await {
        Some(Ok(opened)) => opened.map_err(|e| e.to_string()),
        Some(Err(e)) => Err(e.to_string()),
        None => Err("nothing ran".to_owned()),
    }
}

fn told(outcome: &Result<Outcome, String>) -> String {
    match outcome {
        Ok(outcome) => {
            let numbers = outcome.figures.iter().map(|(figure, value)| {
                let name = serde_json::to_value(figure)
                    .ok()
                    .and_then(|name| name.as_str().map(str::to_owned));
                format!("{} {value:.2}", name.unwrap_or_default())
            });
            numbers.collect::<Vec<_>>().join(", ")
        }
        Err(why) => why.clone(),
    }
}
