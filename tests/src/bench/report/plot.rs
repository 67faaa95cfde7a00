//! The distributions of lateness as SVG: one panel for each row with tokens, with percentiles from
//! left to right so that the tail is as wide as the rest, and time from bottom to top; both
//! logarithmic.

use std::fmt::Write;

use super::{Measured, Report, Result};
use crate::bench::row::Work;

const PANEL: (f64, f64) = (460.0, 300.0);
const COLUMNS: usize = 2;
/// Around the plot in a panel: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (56.0, 34.0, 14.0, 36.0);
/// Each halving of what is above is as wide as the one before; the last ones are one sample in
/// 8,192.
const HALVINGS: f64 = 13.0;
const LEGEND: f64 = 40.0;
/// They can be told apart also by people who see few colours (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#000000", "#999999", "#d55e00", "#e69f00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7"];

/// The picture, or nothing if no row with tokens was measured.
pub fn render(report: &Report) -> Option<String> {
    let rows: Vec<_> = report
        .rows
        .iter()
        .filter(|row| matches!(row.row.work, Work::Tokens { .. }))
        .filter(|row| row.contestants.iter().any(|one| !one.distribution_us.is_empty()))
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for result in rows.iter().flat_map(|row| &row.contestants) {
        if !names.contains(&result.name.as_str()) {
            names.push(&result.name);
        }
    }
    if rows.is_empty() {
        return None;
    }
    let columns = COLUMNS.min(rows.len());
    let (width, height) =
        (columns as f64 * PANEL.0, rows.len().div_ceil(columns) as f64 * PANEL.1 + LEGEND);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    legend(&mut svg, &names);
    for (at, row) in rows.iter().enumerate() {
        let (column, line) = (at % columns, at / columns);
        let _ = writeln!(
            svg,
            "<g transform=\"translate({} {})\">",
            column as f64 * PANEL.0,
            line as f64 * PANEL.1 + LEGEND
        );
        panel(&mut svg, row, &names);
        svg += "</g>\n";
    }
    Some(svg + "</svg>\n")
}

fn legend(svg: &mut String, names: &[&str]) {
    let mut x = MARGIN.0;
    for (at, name) in names.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"20\" x2=\"{}\" y2=\"20\" stroke=\"{}\" stroke-width=\"2\"/><text x=\"{}\" y=\"24\">{}</text>",
            x + 18.0,
            colour(at),
            x + 22.0,
            escaped(name),
        );
        x += 40.0 + 7.0 * name.chars().count() as f64;
    }
}

fn panel(svg: &mut String, row: &Measured, names: &[&str]) {
    let scale = Scale::of(row);
    let title = row
        .row
        .work
        .lines(row.row.scene)
        .into_iter()
        .next()
        .map(|(title, _)| title)
        .unwrap_or_default();
    let title = title.split(" p50").next().unwrap_or_default().to_owned();
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"20\" font-size=\"12\" font-weight=\"bold\">{}: {}</text>",
        MARGIN.0,
        row.scene,
        escaped(&title)
    );
    for exponent in scale.low..=scale.high {
        let y = scale.y(10f64.powi(exponent));
        line(svg, (MARGIN.0, y), (PANEL.0 - MARGIN.2, y));
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            MARGIN.0 - 4.0,
            y + 4.0,
            time(exponent)
        );
    }
    for (percent, label) in [(0.0, "0"), (0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9")] {
        let x = scale.x(percent);
        line(svg, (x, MARGIN.1), (x, PANEL.1 - MARGIN.3));
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{label} %</text>",
            PANEL.1 - MARGIN.3 + 14.0
        );
    }
    for (at, name) in names.iter().enumerate() {
        if let Some(result) = row.contestants.iter().find(|result| result.name == *name) {
            curve(svg, &scale, result, colour(at));
        }
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#dddddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn curve(svg: &mut String, scale: &Scale, result: &Result, colour: &str) {
    if result.distribution_us.is_empty() {
        return;
    }
    let points = result
        .distribution_us
        .iter()
        .map(|(q, us)| format!("{:.1},{:.1}", scale.x(*q), scale.y(*us)));
    let points: Vec<_> = points.collect();
    let _ = writeln!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"><title>{}</title></polyline>",
        points.join(" "),
        escaped(&result.name)
    );
}

/// From quantiles and µs to a panel.
struct Scale {
    /// The lowest and the highest power of ten, in µs.
    low: i32,
    high: i32,
}

impl Scale {
    fn of(row: &Measured) -> Self {
        let values =
            row.contestants.iter().flat_map(|one| &one.distribution_us).map(|(_, us)| us.max(1.0));
        let (mut low, mut high) = (f64::MAX, 1.0f64);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        Self { low, high: high.max(low + 1) }
    }

    fn x(&self, quantile: f64) -> f64 {
        let halvings = (-(1.0 - quantile).log2()).min(HALVINGS);
        MARGIN.0 + halvings / HALVINGS * (PANEL.0 - MARGIN.0 - MARGIN.2)
    }

    fn y(&self, us: f64) -> f64 {
        let part = (us.max(1.0).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        PANEL.1 - MARGIN.3 - part.clamp(0.0, 1.0) * (PANEL.1 - MARGIN.1 - MARGIN.3)
    }
}

/// A power of ten of µs, in the unit that people use.
fn time(exponent: i32) -> String {
    match exponent {
        ..3 => format!("{} µs", 10i64.pow(exponent.max(0) as u32)),
        3..6 => format!("{} ms", 10i64.pow(exponent as u32 - 3)),
        _ => format!("{} s", 10i64.pow(exponent.min(12) as u32 - 6)),
    }
}

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        report::tests::{measured, quiet},
        row::Figure,
    };

    fn report(rows: Vec<Measured>) -> Report {
        Report::new("now".to_owned(), false, quiet(), rows, Vec::new())
    }

    #[test]
    fn each_row_with_tokens_has_a_panel_and_each_contestant_a_curve_in_it() {
        let figures: &[_] = &[(Figure::P50, 1.0)];
        let svg = render(&report(vec![
            measured("veth/requests", &[("adit", figures)]),
            measured("w2/tokens-64", &[("direct", figures), ("a<b", figures)]),
            measured("w3/tokens-64", &[("direct", figures)]),
        ]))
        .expect("a picture");
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert_eq!(svg.matches("<g ").count(), 2);
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }

    #[test]
    fn without_tokens_there_is_no_picture() {
        assert!(
            render(&report(vec![measured("veth/requests", &[("adit", &[(Figure::P50, 1.0)])])]))
                .is_none()
        );
    }

    #[test]
    fn the_tail_is_as_wide_as_the_rest_and_stays_in_the_panel() {
        let scale = Scale { low: 0, high: 3 };
        assert!((scale.x(0.75) - scale.x(0.5) - (scale.x(0.5) - scale.x(0.0))).abs() < 1e-6);
        assert!(scale.x(1.0) <= PANEL.0 && scale.y(1e9) >= 0.0 && scale.y(0.0) <= PANEL.1);
        assert_eq!((time(0), time(4), time(6)), ("1 µs".into(), "10 ms".into(), "1 s".into()));
    }
}
