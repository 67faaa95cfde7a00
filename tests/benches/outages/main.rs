//! Measures what an outage costs in addition to its own length: from the return of the path to the
//! next token, over every link of the lab's ladder, by `adit` over UDP and over SSH, and by plain
//! QUIC and `ssh -L` in the same lab.
//!
//! `cargo bench -p adit-tests --bench outages [-- [--long] [LINK…]]`; `--long` adds an outage of
//! 300 s. Needs root and OpenSSH. All links and ways run in parallel: most of the time they wait.

#![allow(missing_docs)]

#[cfg(target_os = "linux")]
mod plain;
#[cfg(target_os = "linux")]
mod ways;

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the lab needs Linux");
}

#[cfg(target_os = "linux")]
fn main() {
    use tests::{
        lab::{LADDER, Lab},
        sshd::Sshd,
    };
    if Lab::is_missing() || !Sshd::is_there() {
        return println!("no lab, or no OpenSSH server and client here: nothing to measure");
    }
    common::machine::process::raise_descriptor_limit();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let long = args.iter().any(|arg| arg == "--long");
    let named = |name: &str| args.iter().any(|arg| arg == name);
    let links: Vec<_> = match LADDER.into_iter().filter(|link| named(link.name)).collect::<Vec<_>>()
    {
        none if none.is_empty() => LADDER.to_vec(),
        some => some,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(measure::all(links, long));
}

#[cfg(target_os = "linux")]
mod measure {
    use std::time::{Duration, Instant};

    use tests::lab::{Chance, Link, seed};
    use tests::stats::quantile;
    use tokio::task::JoinSet;

    use crate::ways::{Open, Way};

    /// The time limit for slow ways.
    const WITHIN: Duration = Duration::from_secs(400);
    const ENDLESS: i64 = -1;

    /// From an outage's end to the next token, and the largest gap, in ms.
    type After = (f64, f64);

    /// The results of one way over one link.
    struct Row {
        link: &'static str,
        way: Way,
        /// For each length of outage, the results of each outage; `None` if the answer was cut.
        outages: Vec<(Duration, Vec<Option<After>>)>,
        /// From the application's disconnect to Ollama's cancellation.
        cancels: Vec<f64>,
    }

    pub(super) async fn all(links: Vec<Link>, long: bool) {
        let mut rows = JoinSet::new();
        for (order, link) in links.into_iter().enumerate() {
            for way in Way::ALL {
                rows.spawn(async move { (order, row(link, way, long).await) });
            }
        }
        let mut rows = rows.join_all().await;
        rows.sort_by_key(|(order, row)| (*order, row.way as u8));
        println!(
            "from the path's return to the next token, median / worst, and the largest gap; times in ms, `cut` = the answer was"
        );
        for (_, row) in rows {
            row.print();
        }
    }

    async fn row(link: Link, way: Way, long: bool) -> Row {
        let mut row = Row { link: link.name, way, outages: Vec::new(), cancels: Vec::new() };
        let Some(open) = Open::new(link, way, seed(900)).await else { return row };
        for _ in 0..10 {
            row.cancels.extend(cancel(&open).await);
        }
        let mut chance = Chance::new(seed(901));
        let lengths =
            [(300, 8), (2_000, 6), (10_000, 4), (60_000, 2), (300_000, usize::from(long))];
        for (ms, count) in lengths.into_iter().filter(|(_, count)| *count > 0) {
            let length = Duration::from_millis(ms);
            let mut came = Vec::new();
            for _ in 0..count {
                // A random pause, so that outages do not always begin at the same point of timers.
                tokio::time::sleep(chance.between(Duration::from_secs(1), Duration::from_secs(4)))
                    .await;
                came.push(outage(&open, length).await);
            }
            row.outages.push((length, came));
        }
        row
    }

    async fn outage(open: &Open, length: Duration) -> Option<After> {
        let mut asked = open.ask(ENDLESS).await;
        if !asked.has_within(3_000, WITHIN).await {
            return None;
        }
        open.lab().cut();
        tokio::time::sleep(length).await;
        let before = asked.last();
        let back = Instant::now();
        open.lab().mend();
        let next = asked.next_after(back, WITHIN).await?;
        Some((next.as_secs_f64() * 1e3, (back + next - before).as_secs_f64() * 1e3))
    }

    async fn cancel(open: &Open) -> Option<f64> {
        let mut asked = open.ask(ENDLESS).await;
        if !asked.has_within(1_000, WITHIN).await {
            return None;
        }
        let before = open.ollama().counters().cancelled;
        let gone = Instant::now();
        drop(asked);
        open.ollama().wait_for(|now| now.cancelled > before, WITHIN).await.ok()?;
        Some(gone.elapsed().as_secs_f64() * 1e3)
    }

    impl Row {
        fn print(mut self) {
            let name = format!("{} {}", self.link, self.way.name());
            let median_and_worst =
                |samples: &mut [f64]| Some((quantile(samples, 0.5)?, quantile(samples, 1.0)?));
            let cancel = median_and_worst(&mut self.cancels)
                .map_or("-".to_owned(), |(median, worst)| format!("{median:.0} / {worst:.0}"));
            println!("{name:<20} cancel {cancel}");
            for (length, came) in self.outages {
                let (mut next, mut gaps): (Vec<f64>, Vec<f64>) =
                    came.iter().flatten().copied().unzip();
                let cut = came.len() - next.len();
                let numbers = median_and_worst(&mut next)
                    .zip(quantile(&mut gaps, 1.0))
                    .map(|((median, worst), gap)| {
                        format!("{median:>7.0} / {worst:>7.0}, gap {gap:>7.0}")
                    })
                    .unwrap_or_default();
                let cut = if cut > 0 {
                    format!("  {cut} of {} cut or late", came.len())
                } else {
                    String::new()
                };
                println!("{name:<20} {:>6.1} s  {numbers}{cut}", length.as_secs_f64());
            }
        }
    }
}
