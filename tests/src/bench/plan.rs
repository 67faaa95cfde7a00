//! Decides which rows are measured, with whom, how often, and says what is left out and why.

use common::machine::report::{Exit, Failure};

use super::{
    contestant::{Contestant, Kind, Peer},
    row::{Congestion, ROWS, Row, Scene, Work},
};

/// The time to set a contestant up, once in each scene.
const SETUP_SECONDS: f64 = 3.0;
/// The pause between two measurements.
const PAUSE_SECONDS: f64 = 0.2;
const ROUNDS: usize = 3;

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// `--quick`: fewer rows, and less time for each.
    pub quick: bool,
    /// Names of rows, or parts of them; none means all.
    pub rows: Vec<String>,
    /// Names of contestants; none means all.
    pub peers: Vec<String>,
    /// How often each measurement is made.
    pub rounds: Option<usize>,
    /// Names of other builds of Adit.
    pub also: Vec<String>,
}

/// What this machine has.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Why no network lab can be made; `None` if one can.
    pub no_lab: Option<String>,
    /// Why SSH can't be measured; `None` if it can.
    pub no_ssh: Option<String>,
    /// Whether the kernel has BBR.
    pub bbr: bool,
    /// The programs of other tunnels that are missing.
    pub missing: Vec<(Peer, &'static str)>,
}

/// What will be measured.
#[derive(Debug)]
pub struct Plan {
    /// In order.
    pub entries: Vec<Entry>,
    /// All contestants of these rows, in the order of the table.
    pub contestants: Vec<Contestant>,
    /// What was left out.
    pub left_out: Vec<LeftOut>,
}

/// One row, and who takes part.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The row.
    pub row: &'static Row,
    /// Its contestants, which are measured in turn or side by side.
    pub contestants: Vec<Contestant>,
    /// How long each measurement takes, in seconds.
    pub seconds: f64,
    /// How often it is measured.
    pub rounds: usize,
}

/// Why what needs BBR is left out.
const NO_BBR: &str = "the kernel has no BBR here: `modprobe tcp_bbr`";

/// Rows or a contestant that are left out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Rows, or a contestant.
    pub what: String,
    /// Why, and what would change that.
    pub why: String,
}

impl Plan {
    /// Decides.
    ///
    /// # Errors
    /// If a name on the command line is unknown, or nothing is left to measure.
    pub fn new(wishes: &Wishes, machine: &Machine) -> Result<Self, Failure> {
        let rows = chosen_rows(wishes)?;
        let everybody = chosen_contestants(wishes)?;
        let mut left_out = Vec::new();
        let contestants: Vec<_> = everybody
            .into_iter()
            .filter(|one| match why_not(one.kind, machine) {
                Some(why) => {
                    left_out.push(LeftOut { what: one.name.clone(), why });
                    false
                }
                None => true,
            })
            .collect();
        let (rows, without_bbr): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|row| machine.bbr || row.work != Work::Beside { other: Congestion::Bbr });
        left_out.extend(
            without_bbr
                .iter()
                .map(|row| LeftOut { what: row.id.to_owned(), why: NO_BBR.to_owned() }),
        );
        let (rows, without_lab): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|row| row.scene == Scene::Loopback || machine.no_lab.is_none());
        if let Some(why) = machine.no_lab.clone().filter(|_| !without_lab.is_empty()) {
            let mut scenes: Vec<_> = without_lab.iter().map(|row| row.scene.id()).collect();
            scenes.dedup();
            left_out.push(LeftOut { what: format!("the rows of {}", scenes.join(", ")), why });
        }
        // Without a lab only loopback can be measured, also with `--quick`.
        let quick_rows = machine.no_lab.is_none();
        let entries =
            rows.into_iter().filter_map(|row| entry(row, &contestants, wishes, quick_rows));
        let entries: Vec<_> = entries.collect();
        match entries.is_empty() {
            false => Ok(Self { entries, contestants, left_out }),
            true => Err(nothing_left(&left_out)),
        }
    }

    /// About how long it takes, in seconds.
    pub fn seconds(&self) -> f64 {
        let scenes =
            Scene::ALL.iter().filter(|scene| self.entries.iter().any(|e| e.row.scene == **scene));
        let measuring = self.entries.iter().map(Entry::total_seconds).sum::<f64>();
        measuring + scenes.count() as f64 * SETUP_SECONDS
    }
}

impl Entry {
    fn total_seconds(&self) -> f64 {
        let turns =
            if self.row.scene.is_side_by_side(self.row.work) { 1 } else { self.contestants.len() };
        (turns * self.rounds) as f64 * (self.seconds + PAUSE_SECONDS)
    }
}

fn entry(
    row: &'static Row,
    contestants: &[Contestant],
    wishes: &Wishes,
    quick_rows: bool,
) -> Option<Entry> {
    let seconds = match (wishes.quick, row.quick) {
        (false, _) => row.seconds,
        (true, Some(quick)) => quick,
        // With `--quick`, a row that is named, or that is the only one of its kind, is measured
        // too.
        (true, None) if !wishes.rows.is_empty() || !quick_rows => row.seconds / 2.0,
        (true, None) => return None,
    };
    // A contestant that is named is measured wherever it can be.
    let quick = wishes.quick && wishes.peers.is_empty();
    let contestants: Vec<_> =
        contestants.iter().filter(|one| one.takes_part(row, quick)).cloned().collect();
    let rounds = match wishes.rounds.unwrap_or(if wishes.quick { 1 } else { ROUNDS }) {
        _ if row.work.is_once() => 1,
        rounds => rounds,
    };
    (!contestants.is_empty()).then_some(Entry { row, contestants, seconds, rounds })
}

fn chosen_rows(wishes: &Wishes) -> Result<Vec<&'static Row>, Failure> {
    let means = |wish: &str, row: &Row| {
        let exact = ROWS.iter().any(|row| row.id == wish);
        if exact { row.id == wish } else { row.id.contains(wish) }
    };
    for wish in &wishes.rows {
        if !ROWS.iter().any(|row| means(wish, row)) {
            return Err(Failure::new(format!("no row has `{wish}` in its name"))
                .hint("`adit-bench --list` shows the rows")
                .exit(Exit::Usage));
        }
    }
    let chosen =
        |row: &&Row| wishes.rows.is_empty() || wishes.rows.iter().any(|wish| means(wish, row));
    Ok(ROWS.iter().filter(chosen).collect())
}

fn chosen_contestants(wishes: &Wishes) -> Result<Vec<Contestant>, Failure> {
    let all = Contestant::all(&wishes.also);
    for wish in &wishes.peers {
        if !all.iter().any(|one| one.name == *wish) {
            let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
            return Err(Failure::new(format!("there is no contestant `{wish}`"))
                .hint(format!("choose from {}", names.join(", ")))
                .exit(Exit::Usage));
        }
    }
    let chosen = |one: &Contestant| wishes.peers.is_empty() || wishes.peers.contains(&one.name);
    Ok(all.into_iter().filter(chosen).collect())
}

fn why_not(kind: Kind, machine: &Machine) -> Option<String> {
    use super::contestant::Carrier;
    match kind {
        Kind::Direct(Congestion::Bbr) if !machine.bbr => Some(NO_BBR.to_owned()),
        Kind::Ssh { .. } | Kind::Adit { carrier: Carrier::Ssh, .. } => machine.no_ssh.clone(),
        Kind::Peer(peer) => {
            let missing = machine.missing.iter().find(|(who, _)| *who == peer);
            missing.map(|(_, program)| format!("`{program}` is not on PATH"))
        }
        Kind::Direct(_) | Kind::Adit { .. } => None,
    }
}

fn nothing_left(left_out: &[LeftOut]) -> Failure {
    let failure = Failure::new("nothing is left to measure");
    match left_out.is_empty() {
        true => failure.hint("these rows and contestants do not meet: name others, or leave `--rows` or `--peers` out"),
        false => left_out.iter().fold(failure, |failure, one| {
            failure.hint(format!("{} left out: {}", one.what, one.why))
        }),
    }
    .exit(Exit::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare() -> Machine {
        Machine {
            missing: Peer::ALL.map(|peer| (peer, peer.programs()[0])).into(),
            bbr: true,
            ..Machine::default()
        }
    }

    fn planned(wishes: &Wishes, machine: &Machine) -> Plan {
        Plan::new(wishes, machine).expect("a plan")
    }

    fn ids(plan: &Plan) -> Vec<&str> {
        plan.entries.iter().map(|entry| entry.row.id).collect()
    }

    #[test]
    fn every_day_takes_less_than_five_minutes() {
        let quick = planned(&Wishes { quick: true, ..Wishes::default() }, &bare());
        assert!(quick.seconds() < 290.0, "{}", quick.seconds());
        let scenes: std::collections::BTreeSet<_> =
            quick.entries.iter().map(|e| e.row.scene).collect();
        assert!(scenes.len() >= 6, "{scenes:?}");
    }

    #[test]
    fn a_name_means_its_row_and_a_part_of_a_name_all_that_have_it() {
        let rows = |names: &[&str]| Wishes {
            rows: names.iter().map(ToString::to_string).collect(),
            ..Wishes::default()
        };
        assert_eq!(ids(&planned(&rows(&["w2/download"]), &bare())), ["w2/download"]);
        assert_eq!(
            ids(&planned(&rows(&["roaming/hole"]), &bare())),
            ["roaming/hole-10", "roaming/hole-30"]
        );
        assert_eq!(
            ids(&planned(&rows(&["fat", "w1/upload"]), &bare())),
            ["w1/upload", "fat/download"]
        );
        assert!(Plan::new(&rows(&["w9"]), &bare()).is_err());
        // A contestant that is named is measured with `--quick`, too.
        let quick = Wishes { quick: true, ..rows(&["fat"]) };
        assert_eq!(planned(&quick, &bare()).entries[0].seconds, 5.0);
    }

    #[test]
    fn without_root_the_rows_that_need_it_are_left_out_and_it_says_so() {
        let machine = Machine { no_lab: Some("the lab needs root".to_owned()), ..bare() };
        for quick in [false, true] {
            let plan = planned(&Wishes { quick, ..Wishes::default() }, &machine);
            assert!(
                ids(&plan).iter().all(|id| id.starts_with("loopback/")) && plan.entries.len() > 5
            );
            let why = plan.left_out.iter().find(|one| one.what.contains("w2")).expect("said");
            assert_eq!(why.why, "the lab needs root");
        }
        let nothing = Wishes { rows: vec!["fat".to_owned()], ..Wishes::default() };
        let said = Plan::new(&nothing, &machine).expect_err("nothing to measure");
        assert!(said.to_string().contains("the lab needs root"), "{said}");
    }

    #[test]
    fn without_bbr_its_contestant_and_the_row_beside_it_are_left_out_and_it_says_so() {
        let plan = planned(&Wishes::default(), &Machine { bbr: false, ..bare() });
        let told =
            |what: &str| plan.left_out.iter().any(|one| one.what == what && one.why == NO_BBR);
        assert!(told("direct-bbr") && told("w1/beside-bbr"), "{:?}", plan.left_out);
        assert!(!ids(&plan).contains(&"w1/beside-bbr"));
        assert!(ids(&plan).contains(&"w1/beside-cubic"));
    }

    #[test]
    fn without_ssh_only_what_needs_it_is_left_out() {
        let machine = Machine { no_ssh: Some("no sshd".to_owned()), ..bare() };
        let plan = planned(&Wishes::default(), &machine);
        let who: std::collections::BTreeSet<_> = plan
            .entries
            .iter()
            .flat_map(|entry| &entry.contestants)
            .map(|one| &*one.name)
            .collect();
        assert_eq!(Vec::from_iter(who), ["adit", "adit-http", "direct", "direct-bbr"]);
        let left: Vec<_> =
            plan.left_out.iter().filter(|one| one.why == "no sshd").map(|one| &*one.what).collect();
        assert_eq!(left, ["ssh", "ssh-gcm", "adit-ssh", "adit-ssh-http"]);
    }

    #[test]
    fn who_is_found_joins_and_who_is_named_is_alone() {
        let machine = Machine { missing: vec![], ..bare() };
        let everybody = planned(&Wishes::default(), &machine);
        assert!(everybody.left_out.is_empty());
        assert!(everybody.entries[1].contestants.iter().any(|one| one.name == "wstunnel"));
        let named =
            Wishes { peers: vec!["adit-http".to_owned()], quick: true, ..Wishes::default() };
        let plan = planned(&named, &machine);
        assert!(plan.entries.iter().all(|entry| entry.contestants.len() == 1));
        assert!(ids(&plan).contains(&"w2/download"), "wherever it can be");
        let nobody = Wishes { peers: vec!["wireguard".to_owned()], ..Wishes::default() };
        assert!(Plan::new(&nobody, &machine).is_err());
    }

    #[test]
    fn rounds_are_for_what_noise_touches() {
        let plan = planned(&Wishes { rounds: Some(5), ..Wishes::default() }, &bare());
        let rounds = |id: &str| {
            plan.entries.iter().find(|entry| entry.row.id == id).expect("planned").rounds
        };
        assert_eq!(
            (rounds("veth/requests"), rounds("veth/memory"), rounds("roaming/nat")),
            (5, 1, 1)
        );
    }
}
