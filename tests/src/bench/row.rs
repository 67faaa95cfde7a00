//! What is measured: the rows of the benchmark, and their goals.

use std::time::Duration;

use crate::lab::{LOOPBACK, Link, Loss};

/// One row: the same work for everybody who takes part, in the same place.
#[derive(Debug, PartialEq)]
pub struct Row {
    /// Its name on the command line; the part before the slash is the scene's.
    pub id: &'static str,
    /// Where.
    pub scene: Scene,
    /// What.
    pub work: Work,
    /// How long each measurement takes, in seconds.
    pub seconds: f64,
    /// The same with `--quick`; `None` for a row that is left out then.
    pub quick: Option<f64>,
    /// What Adit should reach.
    pub goals: &'static [Goal],
}

/// Where a row is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scene {
    /// Two networks of this machine, joined by a virtual cable.
    Veth,
    /// This machine, without networks of our own.
    Loopback,
    /// 25 ms each way, 100 Mbit/s, no loss.
    W1,
    /// The same with 1 % loss.
    W2,
    /// 60 ms each way, 20 Mbit/s, 3 % loss.
    W3,
    /// 50 ms each way, 500 Mbit/s, no loss.
    Fat,
    /// A laptop behind an address translator, on the link of [`Scene::W1`].
    Roaming,
}

/// What everybody has to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Small requests, one after another, on one connection.
    Requests,
    /// Small requests, one after another, each on a connection of its own.
    Connections,
    /// So many streams of tokens, one each 20 ms, beside a download or alone.
    Tokens {
        /// At once.
        streams: usize,
        /// Whether a download runs beside them.
        beside_download: bool,
    },
    /// Transfers without an end.
    Bulk {
        /// Which way.
        direction: Direction,
        /// At once.
        flows: usize,
    },
    /// A download beside another one, which does not go through the tunnel and began before.
    Beside {
        /// The congestion control of the other one's TCP.
        other: Congestion,
    },
    /// So many idle connections, and what they cost in memory.
    Memory {
        /// Connections.
        idle: usize,
    },
    /// Four streams of tokens, and something that happens to the path.
    Disturbance(Disturbance),
}

/// A direction of a transfer, as the laptop sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the laptop.
    Download,
    /// To the server.
    Upload,
}

/// TCP's congestion control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    /// Cubic, the default of most systems.
    Cubic,
    /// BBR, the default of some systems.
    Bbr,
}

/// What happens to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// The address translator forgets its flows, so that the next packet has another port.
    Nat,
    /// The laptop gets another address.
    Address,
    /// Nothing passes for so long.
    Hole(Duration),
}

/// One number of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Figure {
    /// Half of the times are at most this long, in µs.
    #[serde(rename = "p50_us")]
    P50,
    /// 99 % of the times are at most this long, in µs.
    #[serde(rename = "p99_us")]
    P99,
    /// What a transfer carries, in Mbit/s.
    #[serde(rename = "rate_mbit_s")]
    Rate,
    /// The rate as a part of the fair one, which is half of what both carry.
    #[serde(rename = "fair_share")]
    Share,
    /// Processor time of all processes of both ends, in seconds per GB carried.
    #[serde(rename = "cpu_s_per_gb")]
    Cpu,
    /// Resident memory of all processes of both ends before anything was asked, in MB.
    #[serde(rename = "rss_start_mb")]
    RssStart,
    /// The same with the idle connections of the row.
    #[serde(rename = "rss_idle_mb")]
    RssIdle,
    /// The longest time without a token, in seconds.
    #[serde(rename = "gap_s")]
    Gap,
}

/// What somebody should reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// Who: the name of a contestant.
    pub who: &'static str,
    /// Which number.
    pub figure: Figure,
    /// How much, or how much at the most, in the figure's unit; or as a ratio, see `to`.
    pub bound: Bound,
    /// The row and the contestant whose same figure the bound is a multiple of.
    pub to: Option<(&'static str, &'static str)>,
}

/// One side of a goal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Scene {
    /// All scenes, in the order in which they are measured.
    pub const ALL: [Self; 7] =
        [Self::Veth, Self::Loopback, Self::W1, Self::W2, Self::W3, Self::Fat, Self::Roaming];

    /// Its name on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Loopback => "loopback",
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
            Self::Fat => "fat",
            Self::Roaming => "roaming",
        }
    }

    /// What is special about it, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Veth => "two network namespaces of this machine, joined by veth",
            Self::Loopback => "loopback",
            Self::W1 => "25 ms each way, 100 Mbit/s, a queue of 100 ms, no loss",
            Self::W2 => "the same as w1 with 1 % random loss",
            Self::W3 => "60 ms each way, 20 Mbit/s, a queue of 100 ms, 3 % random loss",
            Self::Fat => "50 ms each way, 500 Mbit/s, a queue of 100 ms, no loss",
            Self::Roaming => "the link of w1, the laptop behind an address translator",
        }
    }

    /// The emulated link, if there is one.
    pub fn link(self) -> Option<Link> {
        let ms = Duration::from_millis;
        let w1 = Link { name: "w1", delay: ms(25), rate: Some(100_000_000), ..LOOPBACK };
        match self {
            Self::Veth | Self::Loopback => None,
            Self::W1 | Self::Roaming => Some(w1),
            Self::W2 => Some(Link { name: "w2", loss: Loss::Random(0.01), ..w1 }),
            Self::W3 => Some(Link {
                name: "w3",
                delay: ms(60),
                rate: Some(20_000_000),
                loss: Loss::Random(0.03),
                ..w1
            }),
            Self::Fat => Some(Link { name: "fat", delay: ms(50), rate: Some(500_000_000), ..w1 }),
        }
    }

    /// How many times in µs make one in the unit that is shown, and that unit.
    pub fn unit(self) -> (f64, &'static str) {
        if self.link().is_some() { (1000.0, "ms") } else { (1.0, "µs") }
    }

    /// Whether all contestants may be measured at the same time, each on a link of its own. That is
    /// so where the link is the limit and the processors are mostly idle.
    pub fn is_side_by_side(self, work: Work) -> bool {
        match work {
            Work::Disturbance(_) => true,
            Work::Connections => self.link().is_some(),
            Work::Tokens { streams, beside_download: false } => {
                self.link().is_some() && streams <= 16
            }
            Work::Bulk { .. } | Work::Tokens { .. } => self == Self::W3,
            Work::Requests | Work::Memory { .. } | Work::Beside { .. } => false,
        }
    }
}

impl Work {
    /// The lines that it makes in the table: what each says, and its numbers.
    pub fn lines(self, scene: Scene) -> Vec<(String, Vec<Figure>)> {
        let unit = scene.unit().1;
        let times =
            |what: &str| (format!("{what} p50 / p99, {unit}"), vec![Figure::P50, Figure::P99]);
        match self {
            Self::Requests => vec![times("small request, kept connection")],
            Self::Connections => vec![times("new connection + request")],
            Self::Tokens { streams, beside_download: false } => {
                vec![times(&format!("{streams} token streams, lateness"))]
            }
            Self::Tokens { streams, .. } => vec![
                times(&format!("{streams} token streams during a download, lateness")),
                ("… that download, Mbit/s".to_owned(), vec![Figure::Rate]),
            ],
            Self::Bulk { direction, flows } => {
                let name = if direction == Direction::Download { "download" } else { "upload" };
                let plural = if flows == 1 { "" } else { "s" };
                let mut lines =
                    vec![(format!("{flows} {name}{plural}, Mbit/s"), vec![Figure::Rate])];
                if scene.link().is_none() {
                    lines.push((format!("CPU s per GB, {name}"), vec![Figure::Cpu]));
                }
                lines
            }
            Self::Beside { other } => {
                let name = match other {
                    Congestion::Cubic => "Cubic",
                    Congestion::Bbr => "BBR",
                };
                let what = format!("1 download beside one of TCP {name}, part of the fair rate");
                vec![
                    (what, vec![Figure::Share]),
                    ("… its rate, Mbit/s".to_owned(), vec![Figure::Rate]),
                ]
            }
            Self::Memory { idle } => vec![(
                format!("RSS MB at start / with {idle} idle connections"),
                vec![Figure::RssStart, Figure::RssIdle],
            )],
            Self::Disturbance(what) => {
                vec![(
                    format!("{}, largest gap between tokens, s", what.title()),
                    vec![Figure::Gap],
                )]
            }
        }
    }

    /// Whether one measurement is enough: a second one would not start from the same state, or each
    /// takes so long that noise does not matter.
    pub fn is_once(self) -> bool {
        matches!(self, Self::Memory { .. } | Self::Disturbance(_) | Self::Beside { .. })
    }
}

impl Congestion {
    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

impl Disturbance {
    fn title(self) -> String {
        match self {
            Self::Nat => "NAT gives another port".to_owned(),
            Self::Address => "the laptop gets another address".to_owned(),
            Self::Hole(length) => format!("{} s black hole", length.as_secs()),
        }
    }
}

const fn adit(figure: Figure, bound: Bound) -> Goal {
    Goal { who: "adit", figure, bound, to: None }
}

const fn ratio(
    who: &'static str,
    figure: Figure,
    bound: Bound,
    row: &'static str,
    peer: &'static str,
) -> Goal {
    Goal { who, figure, bound, to: Some((row, peer)) }
}

const fn row(
    id: &'static str,
    scene: Scene,
    work: Work,
    seconds: f64,
    quick: Option<f64>,
    goals: &'static [Goal],
) -> Row {
    Row { id, scene, work, seconds, quick, goals }
}

const fn tokens(streams: usize) -> Work {
    Work::Tokens { streams, beside_download: false }
}

const BESIDE: Work = Work::Tokens { streams: 16, beside_download: true };
const UPLOAD: Work = Work::Bulk { direction: Direction::Upload, flows: 1 };

const fn downloads(flows: usize) -> Work {
    Work::Bulk { direction: Direction::Download, flows }
}

const fn hole(seconds: u64) -> Work {
    Work::Disturbance(Disturbance::Hole(Duration::from_secs(seconds)))
}

use Bound::{AtLeast, AtMost};
use Figure::{Cpu, Gap, P50, P99, Rate, RssIdle, RssStart, Share};
use Scene::{Fat, Loopback, Roaming, Veth, W1, W2, W3};

/// All rows, in the order in which they are measured. Memory is measured first in its scene,
/// because earlier transfers would count.
#[rustfmt::skip]
pub const ROWS: [Row; 36] = [
    row("veth/memory", Veth, Work::Memory { idle: 1000 }, 1.0, Some(1.0), &[
        adit(RssStart, AtMost(20.0)), adit(RssIdle, AtMost(40.0))]),
    row("veth/requests", Veth, Work::Requests, 2.0, Some(1.0), &[
        ratio("adit", P50, AtMost(0.55), "veth/requests", "ssh")]),
    row("veth/connections", Veth, Work::Connections, 2.0, Some(1.0), &[]),
    row("veth/tokens-16", Veth, tokens(16), 3.0, Some(2.0), &[adit(P99, AtMost(500.0))]),
    row("veth/tokens-256", Veth, tokens(256), 3.0, Some(2.0), &[
        adit(P50, AtMost(200.0)), adit(P99, AtMost(1500.0))]),
    row("veth/download", Veth, downloads(1), 3.0, Some(2.0), &[
        ratio("adit", Rate, AtLeast(1.0), "veth/download", "ssh-gcm"), adit(Cpu, AtMost(1.5)),
        ratio("adit-ssh", Rate, AtLeast(0.9), "veth/download", "ssh")]),
    row("veth/upload", Veth, UPLOAD, 3.0, Some(2.0), &[
        ratio("adit", Rate, AtLeast(1.0), "veth/upload", "ssh-gcm"),
        ratio("adit-ssh", Rate, AtLeast(0.9), "veth/upload", "ssh")]),
    row("loopback/memory", Loopback, Work::Memory { idle: 1000 }, 1.0, None, &[]),
    row("loopback/requests", Loopback, Work::Requests, 2.0, None, &[]),
    row("loopback/connections", Loopback, Work::Connections, 2.0, None, &[]),
    row("loopback/tokens-16", Loopback, tokens(16), 3.0, None, &[]),
    row("loopback/tokens-256", Loopback, tokens(256), 3.0, None, &[]),
    row("loopback/download", Loopback, downloads(1), 3.0, Some(2.0), &[
        ratio("adit", Rate, AtLeast(1.5), "loopback/download", "ssh-gcm")]),
    row("loopback/upload", Loopback, UPLOAD, 3.0, None, &[]),
    row("w1/connections", W1, Work::Connections, 5.0, Some(3.0), &[adit(P50, AtMost(52_000.0))]),
    row("w1/tokens-16", W1, tokens(16), 5.0, Some(3.0), &[]),
    row("w1/tokens-16-download", W1, BESIDE, 8.0, Some(5.0), &[
        adit(P50, AtMost(31_000.0)), adit(P99, AtMost(45_000.0)), adit(Rate, AtLeast(85.0)),
        ratio("adit-ssh", P50, AtMost(2.0), "w1/tokens-16-download", "adit")]),
    row("w1/download", W1, downloads(1), 6.0, None, &[adit(Rate, AtLeast(92.0))]),
    row("w1/upload", W1, UPLOAD, 6.0, None, &[adit(Rate, AtLeast(92.0))]),
    row("w1/beside-cubic", W1, Work::Beside { other: Congestion::Cubic }, 60.0, None, &[
        adit(Share, AtLeast(0.5)), adit(Share, AtMost(1.5))]),
    row("w1/beside-bbr", W1, Work::Beside { other: Congestion::Bbr }, 60.0, None, &[
        adit(Share, AtLeast(0.5)), adit(Share, AtMost(1.5))]),
    row("w2/download", W2, downloads(1), 8.0, Some(5.0), &[
        adit(Rate, AtLeast(85.0)), ratio("adit-ssh", Rate, AtLeast(0.9), "w2/download", "ssh")]),
    row("w2/downloads-8", W2, downloads(8), 8.0, None, &[adit(Rate, AtLeast(93.0))]),
    row("w2/connections", W2, Work::Connections, 8.0, Some(4.0), &[
        adit(P50, AtMost(52_000.0)), adit(P99, AtMost(60_000.0))]),
    row("w2/tokens-64", W2, tokens(64), 6.0, Some(3.0), &[adit(P99, AtMost(38_000.0))]),
    row("w2/tokens-16-download", W2, BESIDE, 8.0, Some(5.0), &[
        adit(P50, AtMost(30_000.0)), adit(P99, AtMost(45_000.0)),
        ratio("adit-ssh", P50, AtMost(2.0), "w1/tokens-16", "ssh")]),
    row("w3/download", W3, downloads(1), 10.0, None, &[adit(Rate, AtLeast(17.0))]),
    row("w3/downloads-8", W3, downloads(8), 10.0, Some(8.0), &[adit(Rate, AtLeast(17.0))]),
    row("w3/connections", W3, Work::Connections, 10.0, None, &[
        adit(P50, AtMost(125_000.0)), adit(P99, AtMost(250_000.0))]),
    row("w3/tokens-64", W3, tokens(64), 8.0, Some(5.0), &[
        adit(P50, AtMost(62_000.0)), adit(P99, AtMost(130_000.0))]),
    row("w3/tokens-16-download", W3, BESIDE, 10.0, Some(6.0), &[
        adit(P50, AtMost(66_000.0)), adit(P99, AtMost(120_000.0))]),
    row("fat/download", Fat, downloads(1), 10.0, None, &[adit(Rate, AtLeast(400.0))]),
    row("roaming/nat", Roaming, Work::Disturbance(Disturbance::Nat), 10.0, Some(6.0), &[adit(Gap, AtMost(0.15))]),
    row("roaming/address", Roaming, Work::Disturbance(Disturbance::Address), 10.0, Some(6.0), &[adit(Gap, AtMost(0.15))]),
    row("roaming/hole-10", Roaming, hole(10), 20.0, Some(20.0), &[adit(Gap, AtMost(10.15))]),
    row("roaming/hole-30", Roaming, hole(30), 60.0, None, &[adit(Gap, AtMost(30.15))]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_row_has_a_name_of_its_own_that_begins_with_its_scene() {
        let names: BTreeSet<_> = ROWS.iter().map(|row| row.id).collect();
        assert_eq!(names.len(), ROWS.len());
        for row in &ROWS {
            assert_eq!(row.id.split('/').next(), Some(row.scene.id()));
        }
        let scenes: Vec<_> = ROWS.iter().map(|row| row.scene).collect();
        assert!(scenes.is_sorted(), "each scene is set up once");
    }

    #[test]
    fn a_goal_is_about_a_figure_that_its_row_has() {
        let figures = |row: &Row| -> Vec<Figure> {
            row.work.lines(row.scene).into_iter().flat_map(|(_, figures)| figures).collect()
        };
        for row in &ROWS {
            for goal in row.goals {
                assert!(figures(row).contains(&goal.figure), "{} {goal:?}", row.id);
                if let Some((to, _)) = goal.to {
                    let to = ROWS.iter().find(|row| row.id == to).expect("a row");
                    assert!(figures(to).contains(&goal.figure), "{} {goal:?}", row.id);
                }
            }
        }
    }

    #[test]
    fn disturbances_need_a_lab_and_memory_comes_before_everything_in_its_scene() {
        for (at, row) in ROWS.iter().enumerate() {
            if matches!(row.work, Work::Disturbance(_)) {
                assert_eq!(row.scene, Scene::Roaming);
            }
            if matches!(row.work, Work::Memory { .. }) {
                assert!(at == 0 || ROWS[at - 1].scene != row.scene);
            }
        }
    }
}
