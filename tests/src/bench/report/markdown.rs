//! The report as Markdown: the table, the ratios, the goals, what was left out.

use std::fmt::Write;

use super::{Judged, Measured, Report, Result};
use crate::{
    bench::{
        contestant::Peer,
        row::{Figure, Scene},
    },
    stats::median,
};

/// Ratios that are worth a column: whose, to whose.
const RATIOS: [(&str, &str); 4] =
    [("adit", "direct"), ("adit", "ssh"), ("adit-ssh", "ssh"), ("adit-http", "adit")];

/// All of it.
pub fn render(report: &Report) -> String {
    let mut text = format!(
        "# Benchmark of Adit {}, {} UTC\n\n{}\n",
        report.version,
        report.began,
        machine(report)
    );
    let names = names(&report.rows);
    let header: Vec<_> = names.iter().map(|name| heading(name)).collect();
    text += &table(&header, &report.rows, |row, figures| {
        names
            .iter()
            .map(|name| row.of(name).map_or_else(String::new, |result| cell(row, result, figures)))
            .collect()
    });
    text += &ratios(report, &names);
    text += &scenes(&report.rows);
    text += &goals(&report.goals);
    text += &failures(report);
    text
}

/// The ratios that say most, and those to other builds.
fn ratios(report: &Report, names: &[&str]) -> String {
    let others = names.iter().filter_map(|name| Some((own_name(name)?, (*name).to_owned())));
    let known = RATIOS.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
    let there = |name: &String| names.contains(&name.as_str());
    let pairs: Vec<_> = known.chain(others).filter(|(a, b)| there(a) && there(b)).collect();
    if pairs.is_empty() {
        return String::new();
    }
    let header: Vec<_> =
        pairs.iter().map(|(a, b)| format!("{} ÷ {}", heading(a), heading(b))).collect();
    let table = table(&header, &report.rows, |row, figures| {
        pairs.iter().map(|(a, b)| ratio(row, a, b, figures)).collect()
    });
    format!("\nRatios, of medians:\n\n{table}")
}

/// What this build is called that does the same as another build's contestant.
fn own_name(name: &str) -> Option<String> {
    let is_peer = Peer::ALL.iter().any(|peer| peer.name() == name);
    let other = !is_peer && !ORDER.contains(&name);
    let suffix = ["-ssh-http", "-http", "-ssh"].into_iter().find(|suffix| name.ends_with(suffix));
    other.then(|| format!("adit{}", suffix.unwrap_or_default()))
}

/// What the machine was like, and how far to believe the numbers.
fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{} processors, Linux {}. Before the run {:.1} processes wanted to run. A piece of work of {:.1} ms took {:.0} % longer in the slowest tenth of its runs.",
        machine.processors,
        machine.kernel,
        machine.load_before,
        machine.work_ms,
        (machine.work_p90_ms / machine.work_ms.max(f64::MIN_POSITIVE) - 1.0) * 100.0,
    );
    if let Some(stolen) = machine.stolen {
        let _ =
            write!(text, " The hypervisor took {:.1} % of the processors' time.", stolen * 100.0);
    }
    let spreads: Vec<_> = report
        .rows
        .iter()
        .flat_map(|row| {
            row.contestants.iter().flat_map(|result| {
                result.figures.keys().filter_map(|figure| result.spread(*figure))
            })
        })
        .collect();
    if let Some(spread) = median(&spreads) {
        let _ = write!(
            text,
            " From its lowest to its highest round a number differs by {:.0} % (median).",
            spread * 100.0
        );
    }
    if report.quick {
        text += " This was a quick run: each number comes from one measurement.";
    }
    text + "\n"
}

fn names(rows: &[Measured]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for result in rows.iter().flat_map(|row| &row.contestants) {
        if !names.contains(&result.name.as_str()) {
            names.push(&result.name);
        }
    }
    // Not everybody is in the first row: the order is that of the contestants.
    let order = |name: &&str| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len());
    names.sort_by_key(order);
    names
}

const ORDER: [&str; 8] =
    ["direct", "direct-bbr", "ssh", "ssh-gcm", "adit", "adit-http", "adit-ssh", "adit-ssh-http"];

fn heading(name: &str) -> String {
    match name {
        "direct-bbr" => "direct, BBR",
        "ssh" => "ssh -L",
        "ssh-gcm" => "ssh, AES-GCM",
        "adit" => "Adit, UDP",
        "adit-http" => "Adit, UDP, http",
        "adit-ssh" => "Adit, SSH",
        "adit-ssh-http" => "Adit, SSH, http",
        other => other,
    }
    .to_owned()
}

fn table(
    header: &[String],
    rows: &[Measured],
    cells: impl Fn(&Measured, &[Figure]) -> Vec<String>,
) -> String {
    let mut text =
        format!("| row | {} |\n|---|{}\n", header.join(" | "), "---:|".repeat(header.len()));
    for row in rows {
        for (title, figures) in row.row.work.lines(row.row.scene) {
            let cells = cells(row, &figures);
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(text, "| {}: {title} | {} |", row.scene, cells.join(" | "));
            }
        }
    }
    text
}

fn cell(row: &Measured, result: &Result, figures: &[Figure]) -> String {
    let shown: Vec<_> = figures
        .iter()
        .filter_map(|figure| {
            result.median(*figure).map(|value| number(value / divisor(row.row.scene, *figure)))
        })
        .collect();
    match (shown.is_empty(), result.failed.is_empty()) {
        (false, _) => shown.join(" / "),
        (true, false) => "failed".to_owned(),
        (true, true) => String::new(),
    }
}

/// From the unit that is kept to the unit that is shown.
fn divisor(scene: Scene, figure: Figure) -> f64 {
    match figure {
        Figure::P50 | Figure::P99 => scene.unit().0,
        Figure::Rate
        | Figure::Share
        | Figure::Cpu
        | Figure::RssStart
        | Figure::RssIdle
        | Figure::Gap => 1.0,
    }
}

fn ratio(row: &Measured, a: &str, b: &str, figures: &[Figure]) -> String {
    let of = |name: &str, figure: Figure| row.of(name).and_then(|result| result.median(figure));
    let ratios = figures.iter().filter_map(|figure| Some(of(a, *figure)? / of(b, *figure)?));
    ratios.map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" / ")
}

/// Three digits that matter, and thousands apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), String::new()), |(whole, rest)| (whole, format!(".{rest}")));
    let digits = whole.len();
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (digits - at) % 3 == 0 && grouped.ends_with(|c: char| c.is_ascii_digit()) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &rest
}

fn scenes(rows: &[Measured]) -> String {
    let mut text = "\n".to_owned();
    for scene in Scene::ALL {
        if rows.iter().any(|row| row.row.scene == scene) {
            let _ = writeln!(text, "- `{}`: {}", scene.id(), scene.title());
        }
    }
    text
}

fn goals(goals: &[Judged]) -> String {
    if goals.is_empty() {
        return String::new();
    }
    let met = goals.iter().filter(|goal| goal.met).count();
    let mut text = format!(
        "\n{met} of {} goals are met:\n\n| row | who | goal | measured | |\n|---|---|---|---:|---|\n",
        goals.len()
    );
    for goal in goals {
        let (divisor, unit) = match (&goal.relative_to, goal.figure) {
            (Some(_), _) => (1.0, "×".to_owned()),
            (None, Figure::P50 | Figure::P99) => (1000.0, "ms".to_owned()),
            (None, figure) => (1.0, unit(figure).to_owned()),
        };
        let (sign, bound) = match (goal.at_most, goal.at_least) {
            (Some(most), _) => ("≤", most),
            (_, least) => ("≥", least.unwrap_or_default()),
        };
        let to = goal.relative_to.as_deref().map(|to| format!(" {to}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} | {} {sign} {} {unit}{to} | {} | {} |",
            goal.row,
            goal.who,
            name(goal.figure),
            number(bound / divisor),
            number(goal.measured / divisor),
            if goal.met { "met" } else { "**not met**" },
        );
    }
    text
}

fn name(figure: Figure) -> &'static str {
    match figure {
        Figure::P50 => "p50",
        Figure::P99 => "p99",
        Figure::Rate => "rate",
        Figure::Share => "fair share",
        Figure::Cpu => "CPU",
        Figure::RssStart => "RSS at start",
        Figure::RssIdle => "RSS, idle connections",
        Figure::Gap => "largest gap",
    }
}

fn unit(figure: Figure) -> &'static str {
    match figure {
        Figure::P50 | Figure::P99 => "µs",
        Figure::Rate => "Mbit/s",
        Figure::Share => "of the fair rate",
        Figure::Cpu => "s per GB",
        Figure::RssStart | Figure::RssIdle => "MB",
        Figure::Gap => "s",
    }
}

fn failures(report: &Report) -> String {
    let mut text = String::new();
    for row in &report.rows {
        for result in row.contestants.iter().filter(|result| !result.failed.is_empty()) {
            let _ = writeln!(text, "- {}, {}: {}", row.id, result.name, result.failed.join("; "));
        }
    }
    if !text.is_empty() {
        text = format!("\nFailed:\n\n{text}");
    }
    if !report.left_out.is_empty() {
        text += "\nLeft out:\n\n";
        for one in &report.left_out {
            let _ = writeln!(text, "- {}: {}", one.what, one.why);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        plan::LeftOut,
        report::tests::{measured, quiet},
    };

    #[test]
    fn numbers_have_the_digits_that_matter() {
        for (value, shown) in [
            (0.0, "0.00"),
            (0.5, "0.50"),
            (9.994, "9.99"),
            (12.34, "12.3"),
            (99.96, "100.0"),
            (123.4, "123"),
            (1234.0, "1,234"),
            (55_939.4, "55,939"),
            (1_000_000.0, "1,000,000"),
        ] {
            assert_eq!(number(value), shown);
        }
    }

    fn report() -> String {
        let times = |p50: f64, p99: f64| [(Figure::P50, p50), (Figure::P99, p99)];
        let mut nat = measured("roaming/nat", &[("adit", &[(Figure::Gap, 0.123)])]);
        nat.contestants.push(Result {
            name: "direct".to_owned(),
            failed: vec!["cut".to_owned()],
            ..Result::default()
        });
        let rows = vec![
            measured(
                "veth/requests",
                &[("ssh", &times(200.0, 800.0)), ("adit", &times(100.0, 400.0))],
            ),
            measured(
                "w2/tokens-64",
                &[("direct", &times(25_000.0, 95_000.0)), ("adit", &times(25_100.0, 30_000.0))],
            ),
            nat,
        ];
        let left_out = vec![LeftOut {
            what: "wstunnel".to_owned(),
            why: "`wstunnel` is not on PATH".to_owned(),
        }];
        render(&Report::new("2026-11-27T18:30".to_owned(), false, quiet(), rows, left_out))
    }

    #[test]
    fn another_build_is_compared_with_this_one() {
        assert_eq!(own_name("before").as_deref(), Some("adit"));
        assert_eq!(own_name("before-ssh-http").as_deref(), Some("adit-ssh-http"));
        assert_eq!(
            [own_name("ssh"), own_name("direct"), own_name("wstunnel"), own_name("adit-ssh")],
            [const { None }; 4]
        );
    }

    #[test]
    fn the_table_has_a_column_for_each_and_a_line_for_each_row() {
        let report = report();
        let lines: Vec<_> = report.lines().collect();
        for line in [
            "| row | direct | ssh -L | Adit, UDP |",
            "| veth: small request, kept connection p50 / p99, µs |  | 200 / 800 | 100 / 400 |",
            "| w2: 64 token streams, lateness p50 / p99, ms | 25.0 / 95.0 |  | 25.1 / 30.0 |",
            "| roaming: NAT gives another port, largest gap between tokens, s | failed |  | 0.12 |",
            "| veth: small request, kept connection p50 / p99, µs |  | 0.50 / 0.50 |",
            "| veth/requests | adit | p50 ≤ 0.55 × ssh | 0.50 | met |",
            "| w2/tokens-64 | adit | p99 ≤ 38.0 ms | 30.0 | met |",
            "- roaming/nat, direct: cut",
            "- wstunnel: `wstunnel` is not on PATH",
        ] {
            assert!(lines.contains(&line), "{line}\nis not in\n{report}");
        }
    }
}
