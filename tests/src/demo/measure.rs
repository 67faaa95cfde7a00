//! The same questions with and without the tunnel, alternately, and the table of the costs.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use common::machine::report::Failure;
use hyper::StatusCode;

use super::{
    http::{Answer, Client, Whole},
    screen::{Screen, shown},
    source::Source,
};

/// Long answers per way.
const ANSWERS: usize = 5;
const TOKENS: usize = 20;
/// Small requests per way, after some that are not counted.
const SMALL: usize = 200;
const WARM_UP: usize = 20;

/// The measurements of one way.
#[derive(Default)]
struct Way {
    first: Vec<Duration>,
    gaps: Vec<Duration>,
    small: Vec<Duration>,
    answers: Vec<Whole>,
}

/// Measures, prints the table, and checks that both ways gave the same answers.
pub(super) async fn run(
    source: &Source,
    tunnel: SocketAddr,
    screen: &Screen,
) -> Result<(), Failure> {
    // The stand-in answers at once: more measurements of the first token are cheap.
    let words = if source.stand_in.is_some() { 25 } else { 0 };
    let rounds = ANSWERS + words;
    screen
        .piece(&format!("{rounds} short answers each way, each on a new connection, and {SMALL} small requests, all by turns:"));
    let (mut direct, mut through) = (Way::default(), Way::default());
    for round in 0..rounds {
        let question = source.steady_question(if round < ANSWERS { TOKENS } else { 1 });
        let mut turns = [(&mut direct, source.address), (&mut through, tunnel)];
        // The ways take turns to be first: the first one could have an advantage.
        if round % 2 == 1 {
            turns.reverse();
        }
        for (way, address) in turns {
            way.take(Answer::ask(address, &question).await?.whole(|_| {}).await?);
        }
        // A person who waits should see progress.
        screen.piece(if round < ANSWERS { " ." } else { "" });
    }
    small_requests([(&mut direct, source.address), (&mut through, tunnel)]).await?;
    screen.talk("");
    screen.talk(table(&mut direct, &mut through));
    if built_quickly() {
        screen.talk(
            "This demo was built with little optimization, so that it is ready sooner. The programs that \
             `cargo install` builds add less: see docs/performance.md.",
        );
    }
    compare(source, &direct, &through, screen)
}

impl Way {
    fn take(&mut self, answer: Whole) {
        self.first.push(answer.first);
        self.gaps.extend(&answer.gaps);
        self.answers.push(answer);
    }
}

async fn small_requests(ways: [(&mut Way, SocketAddr); 2]) -> Result<(), Failure> {
    const PATH: &str = "/api/version";
    let mut kept = Vec::new();
    for (way, address) in ways {
        kept.push((way, Client::connect(address).await?));
    }
    for request in 0..WARM_UP + SMALL {
        for (way, client) in &mut kept {
            let asked = Instant::now();
            let (status, _) = client.get(PATH).await?;
            if status != StatusCode::OK {
                return Err(Failure::new(format!("{PATH} answered {status}")));
            }
            if request >= WARM_UP {
                way.small.push(asked.elapsed());
            }
        }
    }
    Ok(())
}

/// Whether this program is of the profile `demo`: cargo puts it into a folder of that name.
fn built_quickly() -> bool {
    std::env::current_exe()
        .is_ok_and(|program| program.parent().is_some_and(|dir| dir.ends_with("demo")))
}

/// The stand-in must give the same bytes each time. A real model on a GPU may change a word, which
/// is not the tunnel's fault.
fn compare(source: &Source, direct: &Way, through: &Way, screen: &Screen) -> Result<(), Failure> {
    let mut pairs = direct.answers.iter().zip(&through.answers);
    let count = direct.answers.len();
    if source.stand_in.is_some() {
        if pairs.any(|(direct, through)| direct.raw != through.raw || direct.text.is_empty()) {
            return Err(Failure::new("an answer through the tunnel differs from the direct one"));
        }
        screen.talk(format_args!("All {count} answers are the same both ways, byte for byte."));
    } else if pairs.all(|(direct, through)| direct.text == through.text) {
        screen.talk(format_args!("All {count} answers are the same both ways, word for word."));
    } else {
        screen.talk("The answers differ in their words: this model does not say the same twice, even with a seed.");
    }
    Ok(())
}

fn table(direct: &mut Way, through: &mut Way) -> String {
    let mut rows = [
        row("to the first token, p50", p50(&mut direct.first), p50(&mut through.first)),
        row("between tokens, p50", p50(&mut direct.gaps), p50(&mut through.gaps)),
        row("between tokens, max", max(&direct.gaps), max(&through.gaps)),
        row(
            "GET /api/version on a kept connection, p50",
            p50(&mut direct.small),
            p50(&mut through.small),
        ),
    ];
    // The difference of two extremes is meaningless.
    rows[2][3].clear();
    let header = ["", "direct", "tunnel", "added"].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(&header)
        .chain(&rows)
        .map(|[name, direct, through, added]| {
            format!("  {name:<42}  {direct:>8}  {through:>8}  {added:>9}").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

fn row(name: &str, direct: Option<Duration>, through: Option<Duration>) -> [String; 4] {
    let cell = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), shown);
    let added = match (direct, through) {
        // A difference below the table's precision has no sign.
        (Some(direct), Some(through)) if through.abs_diff(direct) < Duration::from_micros(5) => {
            shown(Duration::ZERO)
        }
        (Some(direct), Some(through)) if through < direct => {
            format!("-{}", shown(direct - through))
        }
        (Some(direct), Some(through)) => format!("+{}", shown(through - direct)),
        _ => String::new(),
    };
    [name.to_owned(), cell(direct), cell(through), added]
}

fn p50(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn max(times: &[Duration]) -> Option<Duration> {
    times.iter().max().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(millis: &[u64]) -> Way {
        let times: Vec<_> = millis.iter().map(|ms| Duration::from_millis(*ms)).collect();
        Way { first: times.clone(), gaps: times.clone(), small: times, answers: Vec::new() }
    }

    #[test]
    fn the_table_has_the_median_the_maximum_and_the_difference() {
        let table = table(&mut way(&[9, 1, 2]), &mut way(&[4, 3, 80]));
        let cells = |name: &str| {
            let row = table.lines().find_map(|line| line.trim().strip_prefix(name));
            row.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(cells("between tokens, p50"), "2.00 ms 4.00 ms +2.00 ms");
        assert_eq!(cells("between tokens, max"), "9.00 ms 80.0 ms");
    }

    #[test]
    fn a_missing_measurement_has_no_number() {
        let table = table(&mut way(&[]), &mut way(&[1]));
        assert!(
            table.lines().skip(1).all(|row| row.contains(" - ") && !row.contains('+')),
            "{table}"
        );
    }
}
